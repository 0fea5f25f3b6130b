"""A site's share of a round: some epochs over its own cases, from the global weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fedglioma.case import Task
from fedglioma.config.run import RunConfig
from fedglioma.data.augment import Augmentation
from fedglioma.data.dataset import CaseDataset, Masks
from fedglioma.data.loader import train_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.losses.proximal import proximal_penalty
from fedglioma.seeds import derive_seed
from fedglioma.training.fit import FitSummary, Share, fit_epoch, parameter_groups, set_learning_rate
from fedglioma.training.learner import Learner, Objective
from fedglioma.training.precision import Precision
from fedglioma.training.speed import repeatable, tuned

FLIP = 0.5
INTENSITY = 0.1
"""Probability of a flip per axis; half-width of scale and shift (MDPNet's published code)."""


@dataclass(frozen=True)
class LocalWork:
    """What is trained on and for how long; with the run's settings it decides every random number.

    ``round`` counts from 1; ``proximal_mu`` is the pull towards the weights that the round began with.
    """

    settings: RunConfig
    cases: Sequence[PreparedCase]
    site: str
    round: int
    proximal_mu: float = 0.0


def train_locally(
    learner: Learner,
    work: LocalWork,
    device: torch.device,
    *,
    share: Share | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective,
) -> FitSummary:
    """Train a learner for the local epochs of one round and return what that did.

    The optimizer starts afresh; the learning rate follows the run's schedule over all rounds.

    Parameters
    ----------
    share : Share, optional
        The part of every batch that this process trains on.
    wrap : callable
        Laid around network and loss, for data parallelism.

    Raises
    ------
    FedGliomaError
        Training diverged.
    ConfigError
        The device or the network cannot do what the settings ask.
    """
    settings = work.settings
    precision = Precision.of(settings.precision, device)
    dataset = training_set(work)
    with repeatable(settings.deterministic):
        objective = wrap(
            tuned(
                Objective(learner.model, learner.loss),
                channels_last=settings.channels_last,
                checkpointing=settings.checkpointing,
                compiled=settings.compile,
            )
        )
        groups = parameter_groups(learner.model, learner.loss, settings.weight_decay, settings.head_lr)
        optimizer = torch.optim.Adam(groups, lr=settings.lr)
        penalty = None
        if work.proximal_mu > 0:
            parameters = [*learner.model.parameters(), *learner.loss.parameters()]
            anchors = [parameter.detach().clone() for parameter in parameters]
            penalty = partial(proximal_penalty, parameters, anchors, work.proximal_mu)
        scaler, summary = precision.scaler(), FitSummary()
        for local_epoch in range(settings.local_epochs):
            epoch = (work.round - 1) * settings.local_epochs + local_epoch
            set_learning_rate(optimizer, settings.learning_rate(epoch))
            fit_epoch(
                objective,
                learner.tasks,
                optimizer,
                train_batches(
                    dataset,
                    batch_size=settings.batch_size,
                    seed=derive_seed(settings.seed, "order", work.site),
                    epoch=epoch,
                ),
                precision=precision,
                scaler=scaler,
                accumulate=settings.accumulate,
                channels_last=settings.channels_last,
                penalty=penalty,
                share=share,
                summary=summary,
            )
    return summary


def training_set(work: LocalWork) -> CaseDataset:
    """Return the cases as they are trained on: cropped, augmented, with masks where they are needed."""
    settings = work.settings
    wanted: Masks = "whole" if Task.SEGMENTATION in settings.tasks else "none"
    return CaseDataset(
        work.cases,
        crop=settings.crop,
        augment=Augmentation(
            flip=FLIP if settings.flips and not settings.one_flip else 0.0,
            one_flip_p=FLIP if settings.flips and settings.one_flip else 0.0,
            scale=INTENSITY if settings.intensity else 0.0,
            shift=INTENSITY if settings.intensity else 0.0,
            shift_voxels=settings.shift_voxels,
        ),
        seed=derive_seed(settings.seed, "crops", work.site),
        masks="random" if settings.targets == "random" else wanted,
    )
