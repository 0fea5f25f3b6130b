"""Network and loss of a run, built from its settings: the same on the server and at every site."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from fedglioma.case import GENES, Gene
from fedglioma.config.run import RunConfig
from fedglioma.losses.genotype import LOCAL_WEIGHT_CAP
from fedglioma.losses.multitask import GenotypeLoss, loss_preset
from fedglioma.models.build import build_model
from fedglioma.seeds import seed_torch
from fedglioma.weights import Layout, keep_norms_local

EQUAL_COUNTS: dict[Gene, tuple[float, float]] = dict.fromkeys(GENES, (1.0, 1.0))


@dataclass(frozen=True)
class Learner:
    """What is trained: a network and its loss, whose parameters travel together."""

    model: nn.Module
    loss: GenotypeLoss

    def to(self, device: torch.device) -> "Learner":
        """Return this learner after moving it to a device."""
        self.model.to(device)
        self.loss.to(device)
        return self


def build_learner(settings: RunConfig, class_counts: Mapping[Gene, tuple[float, float]]) -> Learner:
    """Return an untrained network and its loss.

    Parameters
    ----------
    class_counts : mapping
        Per gene the training cases of class 0 and class 1, over all sites.
    """
    model = build_model(
        settings.model, preset=settings.preset, width=settings.width, pos_grid=settings.pos_grid
    )
    if settings.strategy == "fedbn":
        keep_norms_local(model)
    switches = loss_preset(settings.preset)
    loss = GenotypeLoss(
        class_counts,
        weighting=settings.task_weighting,
        form=switches.form,
        ldam_input=switches.ldam_input,
        max_weight=LOCAL_WEIGHT_CAP if settings.counts == "local" else None,
    )
    return Learner(model, loss)


def log_variances(learner: Learner) -> dict[Gene, float]:
    """Return the uncertainty weights s_t by gene; empty where the weights are fixed."""
    named = dict(learner.loss.named_parameters())
    keys = {gene: f"weights.{gene.value}.log_variance" for gene in GENES}
    return {gene: float(named[key].detach()) for gene, key in keys.items() if key in named}


def initial_learner(settings: RunConfig, class_counts: Mapping[Gene, tuple[float, float]]) -> Learner:
    """Return the network that a run starts from: its weights follow from the run's seed alone."""
    seed_torch(settings.seed, "initial weights")
    return build_learner(settings, class_counts)


@lru_cache(maxsize=8)
def layout_of(settings: RunConfig) -> Layout:
    """Return the layout of a run's weights without allocating them."""
    with torch.device("meta"):
        learner = build_learner(settings, EQUAL_COUNTS)
    return Layout.of(learner.model, learner.loss)


def parameter_count(settings: RunConfig) -> int:
    """Return the number of the network's parameters, the loss weights not counted."""
    with torch.device("meta"):
        learner = build_learner(settings, EQUAL_COUNTS)
    return sum(parameter.numel() for parameter in learner.model.parameters())
