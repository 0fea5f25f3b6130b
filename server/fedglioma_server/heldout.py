"""The coordinator's held-out evaluation: after every round, on the split that chooses the model.

The loss that chooses is the mean over the network's tasks of the mean loss per known target: MDPNet's
class-weighted LMF of each gene, SGPNet's cross-entropy and 1 - Dice. What weighs the tasks against each other
in training stays out of it: a falling uncertainty weight would lower the number without a better model.
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
from numpy.typing import NDArray

from fedglioma.case import GENE_TITLES, GENES, Gene, Task
from fedglioma.config.run import RunConfig
from fedglioma.counts import is_few
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.loader import eval_batches
from fedglioma.metrics.genotype import gene_metrics
from fedglioma.metrics.small_cells import of_marker
from fedglioma.training.calibrate import estimate_norms
from fedglioma.training.inference import Reader
from fedglioma.training.learner import Learner, log_variances
from fedglioma.training.predict import Scores, predict
from fedglioma.weights import FlatArrays, from_record, unpack
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.records import HeldOutRound, RoundRecord, write_rounds
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import Stopped
from fedglioma_server.spending import with_epsilon
from fedglioma_server.strategy import RoundStrategy

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]


def measure(
    scores: Scores, tasks: Sequence[Task], settings: RunConfig, patients: Sequence[str] | None = None
) -> HeldOutRound:
    """Return losses, AUC and accuracy per gene and Dice; None where no or only one class is known.

    None too where a figure would be of fewer patients than may be told of, or of fewer of one status: it is
    logged, drawn and shown to a monitoring system. Where one task's loss is such, no task's is told: it would
    follow from the others and their mean. The loss that chooses is computed from all of them.

    Parameters
    ----------
    patients : sequence of str, optional
        Whose the cases are, in the order of ``scores``; without it every case is a patient.
    """
    names = list(map(str, range(len(scores.labels)))) if patients is None else patients
    people = np.unique(names, return_inverse=True)[1]
    losses = {task: _mean(scores.losses[:, column]) for column, task in enumerate(tasks)}
    auc: dict[Gene, float | None] = {}
    accuracy: dict[Gene, float | None] = {}
    few = any(is_few(_known(scores.losses[:, column], people)) for column in range(len(tasks)))
    for gene in settings.genes:
        index = GENES.index(gene)
        known = scores.labels[:, index] >= 0
        measured = of_marker(
            gene_metrics(
                scores.labels[known, index].numpy(),
                scores.probabilities[known, index].numpy().astype(np.float64),
                people[known.numpy()],
                resamples=0,
            )
        )
        auc[gene], accuracy[gene] = measured.auc.value, measured.accuracy.value
        few = few or bool(measured.withheld)
    # Masks drawn at random are learned against, but nothing is chosen by them.
    judged = tasks if settings.targets != "random" else settings.genes
    known_losses = [value for task in judged if (value := losses[Task(task)]) is not None]
    return HeldOutRound(
        cases=len(scores.labels),
        loss=mean(known_losses) if known_losses else None,
        loss_by_task=dict.fromkeys(tasks) if few else losses,
        auc=auc,
        accuracy=accuracy,
        dice=None if is_few(_known(scores.dice, people)) else _mean(scores.dice),
    )


def _known(values: FloatArray, people: NDArray[np.int64]) -> int:
    """Return how many patients have a value in any case."""
    return len(np.unique(people[~np.isnan(values)]))


def _mean(values: FloatArray) -> float | None:
    known = values[~np.isnan(values)]
    mean_value = float(known.mean()) if len(known) else math.nan
    return mean_value if math.isfinite(mean_value) else None


class EndedEarly(Exception):
    """The held-out loss has not fallen for as many rounds as the run's patience; not an error."""


def out_of_patience(rounds: Sequence[RoundRecord], patience: int) -> bool:
    """Whether the best of the trained rounds lies ``patience`` rounds back; never with 0."""
    best = best_round([line for line in rounds if line.round > 0])
    return bool(patience) and best is not None and rounds[-1].round - best.round >= patience


def settle_norms(learner: Learner, settings: RunConfig, selection: CaseDataset, device: torch.device) -> None:
    """Give a FedBN network, whose norms stayed at the sites, statistics from the selection images.

    Their scales and offsets stay as initialised. Nothing happens with another strategy.
    """
    if settings.strategy == "fedbn":
        crops = CaseDataset(selection.cases, crop=settings.crop)
        batches = eval_batches(crops, batch_size=max(settings.batch_size, 2))
        estimate_norms(learner.model, batches, device=device)


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
        if out_of_patience(self.rounds, self.strategy.settings.early_stopping):
            raise EndedEarly
        if server_round > 0 and number < self.strategy.settings.rounds:
            self.between()
        return None

    def _complete(self, number: int, record: ArrayRecord) -> None:
        started = time.perf_counter()
        arrays = from_record(record)
        measured = self._averaged(number, arrays)
        unpack(measured, self.learner.model, self.learner.loss)
        self.learner.model.to(self.device)
        settle_norms(self.learner, self.strategy.settings, self.dataset, self.device)
        heldout = self._measured()
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
            sites=with_epsilon(
                self.folder.read(), self.rounds, dict(sorted(self.strategy.ledger.sites.items()))
            ),
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

    def _averaged(self, number: int, arrays: FlatArrays) -> FlatArrays:
        """Return the weights that are measured: those of the round, or their running mean over the rounds.

        The mean starts from the first trained round: untrained weights would linger in it.

        Raises
        ------
        ProtocolError
            The mean after the round before is gone or damaged.
        """
        decay = self.strategy.settings.ema
        if not decay or number == 0:
            return arrays
        if number == 1:
            averaged = {group: array.copy() for group, array in arrays.items()}
        else:
            before = self.checkpoints.load_average(number - 1)
            averaged = {
                group: np.float32(decay) * before[group] + np.float32(1 - decay) * array
                for group, array in arrays.items()
            }
        self.checkpoints.save_average(number, averaged)
        return averaged

    def _measured(self) -> HeldOutRound:
        settings = self.strategy.settings
        scores = predict(
            self.learner.model,
            eval_batches(self.dataset, batch_size=self.batch_size),
            device=self.device,
            loss=self.learner.loss,
            reader=Reader.of(settings),
            measured_in=self.dataset,
        )
        patients = [prepared.case.patient for prepared in self.dataset.cases]
        return measure(scores, self.learner.tasks, settings, patients)


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
    loss = line.heldout.loss_text(4) or "undefined"
    scores = [
        f"{GENE_TITLES[gene]} AUC {value:.2f}" if value is not None else f"{GENE_TITLES[gene]} AUC -"
        for gene, value in line.heldout.auc.items()
    ]
    if line.heldout.dice is not None:
        scores.append(f"Dice {line.heldout.dice:.2f}")
    left_out = [
        f"{name} {site.status}" for name, site in line.sites.items() if site.status not in ("ok", "idle")
    ]
    parts = [f"round {line.round}/{rounds}: held-out loss {loss}", ", ".join(scores)]
    spent = [site.epsilon for site in line.sites.values() if site.epsilon is not None]
    if spent:
        parts.append(f"epsilon {max(spent):.3g}")
    if line.selected:
        parts.append("best so far")
    if left_out:
        parts.append(f"left out: {', '.join(left_out)}")
    return "; ".join(parts)
