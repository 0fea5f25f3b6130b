"""A run from the first message to the report, on whatever grid the engine provides.

Statistics round, training rounds through Flower's ``Strategy.start``, then the selected model is
released, measured once on the split that chose nothing, and reported.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedglioma.case import Gene
from fedglioma.counts import global_counts
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.plan import SimulationPlan
from fedglioma.data.prepare import PreparedCase
from fedglioma.errors import FedGliomaError, ProtocolError, QuorumError
from fedglioma.metrics.tables import evaluate
from fedglioma.seeds import derive_seed
from fedglioma.training.learner import Learner, initial_learner
from fedglioma.weights import FlatArrays, Layout, pack, to_record, unpack
from fedglioma.wire import (
    STATISTICS,
    Refusal,
    StatisticsReply,
    StatisticsRequest,
    body_of,
    is_refusal,
    request_record,
)
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.heldout import HeldOut, best_round, predictions_of
from fedglioma_server.outcome import write_outcome
from fedglioma_server.privacy import privacy_record
from fedglioma_server.records import RoundRecord, SiteData, write_json, write_rounds
from fedglioma_server.release import write_card, write_model
from fedglioma_server.report import write_report
from fedglioma_server.runfolder import RunFolder, now
from fedglioma_server.strategy import STRATEGIES

logger = logging.getLogger(__name__)

CONNECT_S = 120.0
POLL_S = 0.1

Finished = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class Coordinator:
    """What the coordinating centre brings to a run: terms, its held-out cases, and where to write."""

    plan: SimulationPlan

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.plan.run_folder)

    @property
    def device(self) -> torch.device:
        """Where the held-out cases are evaluated."""
        return torch.device(self.plan.device)

    def dataset(self, cases: tuple[PreparedCase, ...]) -> CaseDataset:
        """Return held-out cases for evaluation: centre crops, nothing random."""
        return CaseDataset(cases, crop=self.plan.settings.crop, augment=None, seed=0)


def run_federation(grid: Grid, coordinator: Coordinator, finished: Finished = lambda _line: None) -> None:
    """Run all rounds that are still to do, then release, evaluate and report.

    A run that was interrupted continues after its last complete round; every random draw follows from
    the run's seed, the site and the round, so that it ends where the undisturbed run would have ended.

    Raises
    ------
    QuorumError
        Too few sites answered.
    FedGliomaError
        A checkpoint is damaged, or the sites build another network.
    """
    folder, settings = coordinator.folder, coordinator.plan.settings
    if coordinator.plan.threads:
        torch.set_num_threads(coordinator.plan.threads)
    nodes = statistics_round(grid, coordinator)
    counts = _record_sites(folder, nodes)
    learner = initial_learner(settings, counts)
    layout = Layout.of(learner.model, learner.loss)
    checkpoints = Checkpoints(folder.checkpoints, layout)
    _require_same_layout(nodes, layout)
    rounds, arrays = _resume(folder, checkpoints, learner)
    done = max(rounds[-1].round, 0) if rounds else 0
    strategy = STRATEGIES[settings.strategy](settings, nodes, counts, layout, done=done)
    heldout = HeldOut(
        folder=folder,
        checkpoints=checkpoints,
        learner=learner.to(coordinator.device),
        dataset=coordinator.dataset(coordinator.plan.selection),
        batch_size=settings.batch_size,
        device=coordinator.device,
        strategy=strategy,
        rounds=rounds,
        finished=finished,
    )
    strategy.start(
        grid=grid,
        initial_arrays=to_record(arrays),
        num_rounds=settings.rounds - done,
        timeout=settings.round_timeout_s,
        evaluate_fn=heldout,
    )
    conclude(coordinator, checkpoints, heldout.rounds, learner)


def statistics_round(grid: Grid, coordinator: Coordinator) -> dict[int, StatisticsReply]:
    """Return what each node says of itself; nodes that refuse are named in the log and left out.

    Raises
    ------
    QuorumError
        Fewer sites than the quorum joined.
    ProtocolError
        Two nodes claim the same site.
    """
    settings = coordinator.plan.settings
    content = request_record(StatisticsRequest(settings=settings))
    messages = [
        Message(content, dst_node_id=node, message_type=STATISTICS, group_id="0")
        for node in connected(
            grid, len(coordinator.plan.sites), wait_s=min(CONNECT_S, settings.round_timeout_s)
        )
    ]
    nodes: dict[int, StatisticsReply] = {}
    for reply in grid.send_and_receive(messages, timeout=settings.round_timeout_s):
        node = reply.metadata.src_node_id
        if reply.has_error():
            logger.warning("node %d did not join: Flower error %s", node, reply.error.code)
        elif is_refusal(reply.content):
            refusal = body_of(reply.content, Refusal)
            logger.warning("%s did not join: %s: %s", refusal.site, refusal.error, refusal.reason)
        else:
            nodes[node] = body_of(reply.content, StatisticsReply)
    names = [reply.site for reply in nodes.values()]
    if len(set(names)) != len(names):
        raise ProtocolError(f"two nodes claim to be the same site: {', '.join(sorted(names))}")
    if len(nodes) < settings.quorum:
        raise QuorumError(f"{len(nodes)} of {len(messages)} sites joined, {settings.quorum} are needed")
    return dict(sorted(nodes.items(), key=lambda item: item[1].site))


def connected(grid: Grid, expected: int, *, wait_s: float) -> list[int]:
    """Return the nodes that are there once all expected ones are, or when the wait is over.

    Engines with processes of their own start the server's app while nodes still register.
    """
    end = time.monotonic() + wait_s
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < end:
        time.sleep(POLL_S)
    return nodes


def _record_sites(folder: RunFolder, nodes: dict[int, StatisticsReply]) -> dict[Gene, tuple[float, float]]:
    replies = list(nodes.values())
    counts = global_counts([(reply.labels, reply.small_cell_limit) for reply in replies])
    sites = {
        reply.site: SiteData(
            cases=reply.cases,
            labels=reply.labels,
            modalities=reply.modalities,
            small_cell_limit=reply.small_cell_limit,
        )
        for reply in replies
    }
    suppressed = sum(
        cell is None for reply in replies for cells in reply.labels.values() for cell in cells[:2]
    )
    folder.update(sites=sites, class_counts=counts, suppressed_cells=suppressed, status="running")
    return counts


def _require_same_layout(nodes: dict[int, StatisticsReply], layout: Layout) -> None:
    other = sorted(reply.site for reply in nodes.values() if reply.layout != layout.digest)
    if other:
        raise ProtocolError(
            f"{', '.join(other)}: builds another network than the coordinator; install one version everywhere"
        )


def _resume(
    folder: RunFolder, checkpoints: Checkpoints, learner: Learner
) -> tuple[list[RoundRecord], FlatArrays]:
    """Return the complete rounds and the weights after the last of them; the initial ones for a new run."""
    rounds = folder.rounds()
    available = set(checkpoints.rounds())
    while rounds and rounds[-1].round not in available:
        rounds.pop()
    if not rounds:
        return [], pack(learner.model, learner.loss)
    arrays = checkpoints.load(rounds[-1].round)
    write_rounds(folder.rounds_file, rounds)
    logger.info("continuing after round %d", rounds[-1].round)
    return rounds, arrays


def conclude(
    coordinator: Coordinator, checkpoints: Checkpoints, rounds: list[RoundRecord], learner: Learner
) -> None:
    """Release the selected round's model, measure it on the report split, write survival and report."""
    folder, settings = coordinator.folder, coordinator.plan.settings
    chosen = best_round(rounds)
    if chosen is None:
        raise FedGliomaError(f"{folder.path}: no round was completed, there is no model to release")
    arrays = checkpoints.load(chosen.round)
    record = folder.read()
    write_model(folder.model, record, chosen, arrays, checkpoints.layout)
    unpack(arrays, learner.model, learner.loss)
    held_out = [*coordinator.plan.selection, *coordinator.plan.report]
    splits = ["selection"] * len(coordinator.plan.selection) + ["report"] * len(coordinator.plan.report)
    predictions = predictions_of(
        learner,
        held_out,
        splits,
        crop=settings.crop,
        batch_size=settings.batch_size,
        device=coordinator.device,
    )
    folder.evaluation.mkdir(parents=True, exist_ok=True)
    predictions.write_csv(folder.evaluation / "predictions.csv")
    evaluation = evaluate(
        predictions,
        split="report",
        synthetic=record.synthetic,
        resamples=settings.bootstrap,
        seed=derive_seed(settings.seed, "bootstrap") % 2**32,
    )
    evaluation.write(folder.evaluation / "metrics.json")
    write_outcome(folder.survival, held_out, predictions, synthetic=record.synthetic)
    privacy = privacy_record(record)
    write_json(folder.path / "privacy.json", privacy)
    write_card(folder.model, record, chosen, evaluation, privacy.statement)
    folder.update(status="completed", finished=now())
    write_report(folder.path)
