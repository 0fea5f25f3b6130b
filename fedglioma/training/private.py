"""A site's share of a round under differential privacy at patient level: DP-SGD instead of epochs.

What differs from ``local.py``: a round is a number of steps, not of epochs; in each step every patient takes
part by the toss of a coin, with one scan; each patient's gradient is clipped; noise is added to their sum.
All that a patient's data reach goes through that sum: no batch statistics, no loss weights that are learned,
no stopping by a loss.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedglioma.case import Task
from fedglioma.config.privacy import PrivacyTerms
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import Sample
from fedglioma.data.loader import drawn_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError
from fedglioma.privacy.clipped import ClippedGradients
from fedglioma.privacy.optimizer import PrivateOptimizer
from fedglioma.privacy.sampling import poisson_batches
from fedglioma.privacy.secret import SecretRandom
from fedglioma.training.fit import FitSummary, known_targets, parameter_groups, set_learning_rate
from fedglioma.training.learner import Learner, Objective
from fedglioma.training.local import LocalWork, training_set
from fedglioma.training.speed import repeatable, tuned


def train_privately(
    learner: Learner,
    work: LocalWork,
    terms: PrivacyTerms,
    device: torch.device,
    *,
    patients: float,
    secret: SecretRandom | None = None,
) -> FitSummary:
    """Train a learner for ``terms.steps_per_round`` steps of DP-SGD with Adam and return what that did.

    The unit is a patient. A patient who takes part in a step does so with one scan, drawn at random, cropped
    and augmented anew in every step. A step's patients are read and differentiated ``settings.batch_size`` at
    a time; their clipped gradients are added up, noised, and divided by ``terms.sampling_rate * patients``. A
    step without patients is noise alone. The pull of FedProx and the weight decay depend on no data and are
    added after the noise. The learning rate follows the run's schedule: ``local_epochs`` epochs to a round.

    Everything random is secret and of the system: who takes part, which scan, the noise, and crops,
    augmentation and dropout too. With the run's seed, which the server knows, a patient's place in the list
    would decide the crops of all behind it, so that one patient moved others' gradients.

    Parameters
    ----------
    patients : float
        The site's published number of patients, which need not be the true one.
    secret : SecretRandom, optional
        For tests; by default a new one from the operating system.

    Returns
    -------
    FitSummary
        Its sums of losses and numbers of cases are not noised. They are for the site's own screen; the site
        may send the number of steps and the seconds, nothing else of it.

    Raises
    ------
    ConfigError
        The settings ask for what private training cannot do; nothing was trained.
    PrivacyError
        The network cannot be trained privately, or the terms do not fit.
    """
    settings = work.settings
    _require_possible(settings, learner)
    secret = secret or SecretRandom()
    with repeatable(settings.deterministic):
        objective = tuned(Objective(learner.model, learner.loss), channels_last=settings.channels_last)
        objective.train()
        groups = parameter_groups(learner.model, learner.loss, settings.weight_decay, settings.head_lr)
        optimizer = PrivateOptimizer(
            torch.optim.Adam(groups, lr=settings.lr),
            noise_multiplier=terms.noise_multiplier,
            clip_norm=terms.clip_norm,
            expected_cases=terms.sampling_rate * patients,
            secret=secret.branch("noise"),
        )
        if work.proximal_mu > 0:
            trained = [p for p in learner.model.parameters() if p.requires_grad]
            anchors = [parameter.detach().clone() for parameter in trained]
            optimizer.attach_step_hook(partial(_pull, trained, anchors, work.proximal_mu))
        with ClippedGradients(learner.model, clip_norm=terms.clip_norm, clipping=terms.clipping) as clipped:
            run = _Round(objective, learner.tasks, clipped, optimizer, device, settings.channels_last)
            dataset = training_set(work)
            dataset.seed = secret.branch("crops").below(1 << 62)
            torch.manual_seed(secret.branch("torch").below(1 << 62))
            parts = list(_parts(work, terms, secret))
            epoch = (work.round - 1) * terms.steps_per_round
            drawn = ((epoch + part.step, part.cases) for part in parts)
            waiting_since = time.perf_counter()
            for part, batch in zip(parts, drawn_batches(dataset, drawn), strict=True):
                started = time.perf_counter()
                run.summary.load_s += started - waiting_since
                if batch is not None:
                    run.add(batch)
                if part.last:
                    set_learning_rate(optimizer, _rate(work, terms, part.step))
                    run.step()
                waiting_since = time.perf_counter()
                run.summary.train_s += waiting_since - started
    return run.summary


class _Part(NamedTuple):
    """What is differentiated at once: some of a step's cases, and whether they are its last."""

    step: int
    cases: list[int]
    last: bool


def _parts(work: LocalWork, terms: PrivacyTerms, secret: SecretRandom) -> Iterator[_Part]:
    """Yield the round's physical batches, at least one for each step, which may be empty."""
    scans = scans_by_patient(work.cases)
    size = work.settings.batch_size
    chooser = secret.branch("scan")
    drawn = poisson_batches(len(scans), terms.sampling_rate, terms.steps_per_round, secret.branch("sampling"))
    for step, units in enumerate(drawn):
        cases = [scans[unit][chooser.below(len(scans[unit]))] for unit in units]
        starts = range(0, max(len(cases), 1), size)
        for start in starts:
            yield _Part(step, cases[start : start + size], start == starts[-1])


def scans_by_patient(cases: Sequence[PreparedCase]) -> list[list[int]]:
    """Return for each patient the places of the scans, patients in the order of their first."""
    found: dict[str, list[int]] = {}
    for place, prepared in enumerate(cases):
        found.setdefault(prepared.case.patient, []).append(place)
    return list(found.values())


def _rate(work: LocalWork, terms: PrivacyTerms, step: int) -> float:
    epochs = work.settings.local_epochs
    return work.settings.learning_rate((work.round - 1) * epochs + step * epochs // terms.steps_per_round)


def _pull(trained: Sequence[Tensor], anchors: Sequence[Tensor], mu: float, _optimizer: object) -> None:
    """Add the gradient of mu / 2 times the squared way from where the round began (Li et al. 2020)."""
    for parameter, anchor in zip(trained, anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=mu)


@dataclass
class _Round:
    """What a step needs, and what the steps did."""

    objective: nn.Module
    tasks: tuple[Task, ...]
    clipped: ClippedGradients
    optimizer: PrivateOptimizer
    device: torch.device
    channels_last: bool
    summary: FitSummary = field(default_factory=FitSummary)

    def add(self, batch: Sample) -> None:
        """Add the clipped gradients of some cases to those of the step."""
        image, present, genotype = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (batch.image, batch.present, batch.genotype)
        )
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        mask = None if batch.mask is None else batch.mask.to(self.device, non_blocking=True)
        losses, per_task = self.objective(image, present, genotype, mask)
        self.clipped.backward(losses)
        summary = self.summary
        summary.cases += len(genotype)
        # A loss that is not finite stops nothing: its case counts as zero in the gradient, and here.
        summary.loss_sum += float(losses.detach().nan_to_num(0.0, 0.0, 0.0).sum())
        known = known_targets(self.tasks, genotype, mask).sum(0).tolist()
        sums = per_task.nan_to_num(0.0, 0.0, 0.0).sum(0).tolist()
        for column, task in enumerate(self.tasks):
            summary.task_sums[task] = summary.task_sums.get(task, 0.0) + sums[column]
            summary.task_cases[task] = summary.task_cases.get(task, 0) + round(known[column])

    def step(self) -> None:
        """Move the weights once, by what was added and noise, or noise alone."""
        self.clipped.fill()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.summary.steps += 1


def _require_possible(settings: RunConfig, learner: Learner) -> None:
    if any(parameter.requires_grad for parameter in learner.loss.parameters()):
        raise ConfigError(
            "weighting: uncertainty: learned weights of the tasks would tell of patients without noise; "
            "choose fixed in a private run"
        )
    if settings.precision not in ("float32", "auto"):
        raise ConfigError(
            f"precision: {settings.precision}: patients' gradients are taken in float32 in a private run; "
            "choose auto or float32"
        )
    refused = {
        "checkpointing": (settings.checkpointing, "activations cannot be recomputed"),
        "compile": (settings.compile, "the network cannot be compiled"),
    }
    for name, (asked, reason) in refused.items():
        if asked:
            raise ConfigError(f"{name}: {reason} in a private run; switch it off")
    if settings.accumulate > 1:
        raise ConfigError(
            f"accumulate: {settings.accumulate}: a private run's steps are sampled, not added up; choose 1 "
            "and a higher sampling rate"
        )
