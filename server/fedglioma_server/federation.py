"""A run from the first message to the report, on whatever grid the engine provides.

Statistics round, training rounds through Flower's ``Strategy.start``, then the selected model is
released, measured once on the split that chose nothing, and reported.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedglioma.case import TASKS, Gene
from fedglioma.counts import global_counts
from fedglioma.errors import ConfigError
from fedglioma.machine import return_free_memory
from fedglioma.pooled import Pooled
from fedglioma.scale import Scale
from fedglioma.training.learner import Learner, initial_learner, layout_of
from fedglioma.training.released import take_over
from fedglioma.weights import FlatArrays, pack, to_record
from fedglioma.wire import StatisticsReply
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.company import frozen_words
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.heldout import EndedEarly, HeldOut, out_of_patience
from fedglioma_server.intensities import Agreed, agree_on_scale, agree_on_sum, words_of
from fedglioma_server.privacy import DROWNED, noise_words
from fedglioma_server.readings import batch_size
from fedglioma_server.records import RoundRecord, RunRecord, SiteData, write_rounds
from fedglioma_server.roll import Roll, site_data
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.secure_strategy import SecureStrategy
from fedglioma_server.spending import noise_over_gradient
from fedglioma_server.strategy import RoundStrategy
from fedglioma_server.updates import Spool

logger = logging.getLogger(__name__)

Finished = Callable[[RoundRecord], None]


def run_federation(grid: Grid, coordinator: Coordinator, finished: Finished = lambda _line: None) -> None:
    """Run all rounds that are still to do, then release, evaluate and report.

    A run that was interrupted continues after its last complete round; every random draw follows from
    the run's seed, the site and the round, so that it ends where the undisturbed run would have ended.

    Raises
    ------
    QuorumError
        Too few sites answered.
    Stopped
        Somebody asked for the end; the round in flight is complete.
    FedGliomaError
        A checkpoint is damaged, or the sites build another network.
    """
    folder, settings = coordinator.folder, coordinator.settings
    if coordinator.threads:
        torch.set_num_threads(coordinator.threads)
    roll = Roll(grid, coordinator)
    roll.call()
    counts, scale = _record_sites(coordinator, roll.nodes)
    learner = initial_learner(settings, counts)
    layout = layout_of(settings)
    if coordinator.initial is not None:
        take_over(coordinator.initial, learner)
    checkpoints = Checkpoints(folder.checkpoints, layout)
    rounds, arrays = _resume(folder, checkpoints, learner)
    done = max(rounds[-1].round, 0) if rounds else 0
    coordinator.audit(
        "run_resumed" if rounds else "run_started",
        run=folder.path.name,
        round=done,
        sites=sorted(roll.answers),
    )
    kind = SecureStrategy if settings.secure_aggregation else RoundStrategy
    strategy = kind(
        settings,
        roll.nodes,
        counts,
        layout,
        spool=Spool(folder.work / "updates", folder.updates if settings.keep_updates else None),
        run=folder.key(),
        scale=scale,
        shared=roll.shared,
        done=done,
        usable=coordinator.usable,
    )
    if done:
        strategy.restore(checkpoints.load_state(done))
    strategy.audit_head = coordinator.audit_head
    strategy.ledger_heads = _ledger_heads(roll.answers, rounds)
    if isinstance(strategy, SecureStrategy):
        strategy.pooled = _with_company(folder.read().pooled)
        strategy.froze = partial(_record_frozen, folder)
    heldout = HeldOut(
        folder=folder,
        checkpoints=checkpoints,
        learner=learner.to(coordinator.device),
        dataset=coordinator.dataset(coordinator.selection),
        batch_size=batch_size(settings),
        device=coordinator.device,
        strategy=strategy,
        rounds=rounds,
        finished=finished,
        stop_asked=coordinator.stop_asked,
    )
    initial = to_record(arrays)
    del arrays
    heldout.between = partial(_between, initial, roll)
    if not out_of_patience(rounds, settings.early_stopping):
        try:
            strategy.start(
                grid=grid,
                initial_arrays=initial,
                num_rounds=settings.rounds - done,
                timeout=settings.round_timeout_s,
                evaluate_fn=heldout,
            )
        except EndedEarly:
            logger.info("ended early: no lower held-out loss for %d rounds", settings.early_stopping)
    strategy.spool.remove()
    conclude(coordinator, checkpoints, heldout.rounds, learner)
    coordinator.audit("run_finished", run=folder.path.name, round=heldout.rounds[-1].round)
    roll.dismiss()


def _ledger_heads(answers: dict[str, StatisticsReply], rounds: list[RoundRecord]) -> dict[str, str]:
    """Return the head of each site's privacy ledger as it was last heard."""
    return {site: reply.ledger_head for site, reply in answers.items() if reply.ledger_head} | {
        site: entry.ledger_head
        for line in rounds
        for site, entry in line.sites.items()
        if entry.ledger_head is not None
    }


def _record_frozen(folder: RunFolder, number: int, heads: list[str]) -> None:
    """Note which heads of a masked round stayed as they were; a round that is done again counts once."""
    before = folder.read().frozen
    tasks = [task for task in TASKS if task in before or task in heads]
    after = {
        task: sorted({*before.get(task, []), number} if task in heads else {*before[task]} - {number})
        for task in tasks
    }
    if after != before:
        folder.update(frozen=after, frozen_words=frozen_words(after))


def _between(initial: ArrayRecord, roll: Roll) -> None:
    """Between two rounds: let go of the weights that the run began with, and ask who came late.

    Flower's loop would hold the first weights to its end. What many sites' objects left free in the heap
    would count on top of the next round's.
    """
    initial.clear()
    return_free_memory()
    roll.call_late()


def _record_sites(
    coordinator: Coordinator, nodes: dict[int, StatisticsReply]
) -> tuple[dict[Gene, tuple[float, float]], Scale | None]:
    """Return class counts and intensity scale of the run: those it was started with, where it is resumed."""
    folder, replies = coordinator.folder, list(nodes.values())
    kept = folder.read()
    counts = kept.class_counts or _class_counts(kept, replies)
    scale, doubts = kept.scale, kept.scale_doubts
    if scale is None and kept.settings.common_scale:
        agreed = _agreed(kept, replies)
        scale, doubts = agreed.scale, list(agreed.doubts)
        _tell_of_scale(coordinator, agreed)
        if coordinator.initial is not None:
            logger.warning(
                "the model that the run starts from was trained on images of another preparation, or on "
                "another intensity scale: the hospitals agree on a scale of their own"
            )
    elif kept.scale_from_model and scale is not None:
        logger.info("intensity scale %s of the model that the run started from", scale.id[:12])
    suppressed = sum(
        cell is None
        for reply in replies
        if not kept.settings.secure_statistics
        for cells in reply.labels.values()
        for cell in cells[:2]
    )
    folder.update(
        sites={reply.site: _site_data(reply, kept) for reply in replies},
        class_counts=counts,
        scale=scale,
        scale_id=None if scale is None else scale.id,
        scale_doubts=doubts,
        suppressed_cells=suppressed,
        synthetic=kept.synthetic or any(reply.synthetic for reply in replies),
        status="running",
    )
    _tell_of_noise(folder.read())
    return counts, scale


def _with_company(told: Pooled | None) -> Pooled | None:
    """Refuse to go on from masked counts of an earlier version, which do not say how many teach each head."""
    if told is not None and not told.having:
        raise ConfigError(
            "the run's masked counts are of an earlier version and do not say how many hospitals teach each "
            "head: the run cannot be continued, begin it anew in another folder"
        )
    return told


def _tell_of_noise(record: RunRecord) -> None:
    times = noise_over_gradient(record)
    if times is not None:
        logger.log(logging.WARNING if times > DROWNED else logging.INFO, "%s", noise_words(record))


def _class_counts(kept: RunRecord, replies: list[StatisticsReply]) -> dict[Gene, tuple[float, float]]:
    given = kept.settings.given_counts
    if given is not None:
        return given
    if kept.pooled is not None:
        return {gene: cells[:2] for gene, cells in kept.pooled.labels.items()}
    return global_counts([(reply.labels, reply.small_cell_limit) for reply in replies])


def _agreed(kept: RunRecord, replies: list[StatisticsReply]) -> Agreed:
    """Return the scale of what the sites said, or of what their masked numbers add up to."""
    if kept.pooled is not None:
        return agree_on_sum(kept.pooled)
    return agree_on_scale(
        {reply.site: reply.landmarks for reply in replies},
        {reply.site: reply.landmark_epsilon for reply in replies},
    )


def _site_data(reply: StatisticsReply, kept: RunRecord) -> SiteData:
    """Return what is known of a site; of a scale that stands, the noise it was told with."""
    data = site_data(reply)
    if kept.scale is None or reply.site not in kept.sites:
        return data
    return data.model_copy(update={"landmark_epsilon": kept.sites[reply.site].landmark_epsilon})


def _tell_of_scale(coordinator: Coordinator, agreed: Agreed) -> None:
    logger.info("intensity scale %s of %d sites", agreed.scale.id[:12], max(agreed.scale.sites.values()))
    for doubt in agreed.doubts:
        logger.warning("%s: %s", " and ".join(doubt.sites), words_of(doubt))
        if doubt.kind == "left_out":
            coordinator.audit("excluded", site=doubt.sites[0], round=0, reason=words_of(doubt))


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
    # Statistics and figures take as much memory as a small model: they are loaded when they are needed.
    from fedglioma_server.conclusion import conclude as finish

    finish(coordinator, checkpoints, rounds, learner)
