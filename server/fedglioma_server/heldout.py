"""The coordinator's held-out evaluation: after every round, on the split that chooses the model.

The loss that chooses is the mean over genes of the class-weighted LMF loss per known label. The
uncertainty weights s_t stay out of it: they are trained, so a falling s_t would lower the number without
a better model.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord

from fedglioma.case import GENE_TITLES, GENES, Gene, subset_name
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.loader import eval_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.metrics.genotype import gene_metrics
from fedglioma.metrics.predictions import Predictions
from fedglioma.training.calibrate import estimate_norms
from fedglioma.training.learner import Learner, log_variances
from fedglioma.training.predict import Scores, predict
from fedglioma.weights import from_record, unpack
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.records import HeldOutRound, RoundRecord, write_rounds
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import Stopped
from fedglioma_server.strategy import RoundStrategy

logger = logging.getLogger(__name__)


def measure(scores: Scores, learner: Learner) -> HeldOutRound:
    """Return loss, AUC and accuracy per gene; None where no or only one class is known."""
    logits = {gene.value: scores.logits[:, index] for index, gene in enumerate(GENES)}
    with torch.no_grad():
        per_gene = learner.loss.cpu().per_gene(logits, scores.labels)
    losses: dict[Gene, float | None] = {}
    auc: dict[Gene, float | None] = {}
    accuracy: dict[Gene, float | None] = {}
    for index, gene in enumerate(GENES):
        known = scores.labels[:, index] >= 0
        loss = float(per_gene[known, index].mean()) if bool(known.any()) else math.nan
        losses[gene] = loss if math.isfinite(loss) else None
        measured = gene_metrics(
            scores.labels[known, index].numpy(),
            scores.probabilities[known, index].numpy().astype(np.float64),
            resamples=0,
        )
        auc[gene], accuracy[gene] = measured.auc.value, measured.accuracy.value
    known_losses = [value for value in losses.values() if value is not None]
    return HeldOutRound(
        cases=len(scores.labels),
        loss=mean(known_losses) if known_losses else None,
        loss_by_gene=losses,
        auc=auc,
        accuracy=accuracy,
    )


def settle_norms(learner: Learner, settings: RunConfig, selection: CaseDataset, device: torch.device) -> None:
    """Give a FedBN network, whose norms stayed at the sites, statistics from the selection images.

    Their scales and offsets stay as initialised. Nothing happens with another strategy.
    """
    if settings.strategy == "fedbn":
        batches = eval_batches(selection, batch_size=max(settings.batch_size, 2))
        estimate_norms(learner.model, batches, device=device)


def predictions_of(
    learner: Learner,
    cases: Sequence[PreparedCase],
    splits: Sequence[str],
    *,
    crop: int,
    batch_size: int,
    device: torch.device,
) -> Predictions:
    """Return a model's predictions for prepared cases, with what the tables group them by."""
    dataset = CaseDataset(cases, crop=crop, augment=None, seed=0)
    scores = predict(learner.model, eval_batches(dataset, batch_size=batch_size), device=device)
    patients = {name: number for number, name in enumerate(dict.fromkeys(c.case.patient for c in cases))}
    return Predictions(
        labels=scores.labels.numpy().astype(np.int64).reshape(-1, len(GENES)),
        probabilities=scores.probabilities.numpy().astype(np.float64).reshape(-1, len(GENES)),
        sites=tuple(item.case.site for item in cases),
        modalities=tuple(subset_name(item.case.present) for item in cases),
        split=tuple(splits),
        patients=np.array([patients[item.case.patient] for item in cases], dtype=np.int64),
    )


@dataclass
class HeldOut:
    """Flower's ``evaluate_fn``: measure the global model, write checkpoint and record, keep the best.

    Called once per round with the round's number and the global weights; round 0 is the untrained model.
    A round that is already on record (resume) is not evaluated again.
    """

    folder: RunFolder
    checkpoints: Checkpoints
    learner: Learner
    dataset: CaseDataset
    batch_size: int
    device: torch.device
    strategy: RoundStrategy
    rounds: list[RoundRecord]
    finished: Callable[[RoundRecord], None]
    stop_asked: Callable[[], bool] = lambda: False
    between: Callable[[], None] = lambda: None

    def __call__(self, server_round: int, record: ArrayRecord) -> MetricRecord | None:
        """Measure the weights after a round and put everything about the round on disk."""
        number = server_round + self.strategy.done
        if self.rounds and number <= self.rounds[-1].round:
            return None
        self._complete(number, record)
        if self.stop_asked():
            raise Stopped
        if server_round > 0 and number < self.strategy.settings.rounds:
            self.between()
        return None

    def _complete(self, number: int, record: ArrayRecord) -> None:
        started = time.perf_counter()
        arrays = from_record(record)
        unpack(arrays, self.learner.model, self.learner.loss)
        self.learner.model.to(self.device)
        settle_norms(self.learner, self.strategy.settings, self.dataset, self.device)
        batches = eval_batches(self.dataset, batch_size=self.batch_size)
        scores = predict(self.learner.model, batches, device=self.device)
        heldout = measure(scores, self.learner)
        evaluated = time.perf_counter()
        state = self.strategy.state()
        state_digest = None if state is None else self.checkpoints.save_state(number, state)
        weights_digest = self.checkpoints.save(number, arrays)
        seconds = {
            **self.strategy.ledger.seconds,
            "evaluate": evaluated - started,
            "checkpoint": time.perf_counter() - evaluated,
        }
        best = best_round([line for line in self.rounds if line.round > 0])
        line = RoundRecord(
            round=number,
            seconds={phase: round(value, 4) for phase, value in seconds.items()},
            sites=dict(sorted(self.strategy.ledger.sites.items())),
            heldout=heldout,
            log_variances=log_variances(self.learner),
            selected=number > 0 and _better(heldout.loss, best.heldout.loss if best else None),
            weights_digest=weights_digest,
            state_digest=state_digest,
        )
        self.rounds.append(line)
        write_rounds(self.folder.rounds_file, self.rounds)
        chosen = best_round(self.rounds)
        if not self.strategy.settings.keep_updates:
            self.checkpoints.prune({number, chosen.round if chosen else number})
        logger.info("%s", describe(line, self.strategy.settings.rounds))
        self.finished(line)


def _better(loss: float | None, best: float | None) -> bool:
    return loss is not None and (best is None or loss < best)


def best_round(rounds: list[RoundRecord]) -> RoundRecord | None:
    """Return the trained round with the lowest held-out loss; the last one where no loss is defined."""
    trained = [line for line in rounds if line.round > 0] or rounds
    defined = [line for line in trained if line.heldout.loss is not None]
    if defined:
        return min(defined, key=lambda line: (line.heldout.loss or 0.0, line.round))
    return trained[-1] if trained else None


def describe(line: RoundRecord, rounds: int) -> str:
    """Return one line for the log: ``round 7/50: held-out loss 3.210, IDH AUC 0.81 …``."""
    loss = "undefined" if line.heldout.loss is None else f"{line.heldout.loss:.4f}"
    scores = [
        f"{GENE_TITLES[gene]} AUC {value:.2f}" if value is not None else f"{GENE_TITLES[gene]} AUC -"
        for gene, value in line.heldout.auc.items()
    ]
    left_out = [
        f"{name} {site.status}" for name, site in line.sites.items() if site.status not in ("ok", "idle")
    ]
    parts = [f"round {line.round}/{rounds}: held-out loss {loss}", ", ".join(scores)]
    if line.selected:
        parts.append("best so far")
    if left_out:
        parts.append(f"left out: {', '.join(left_out)}")
    return "; ".join(parts)
