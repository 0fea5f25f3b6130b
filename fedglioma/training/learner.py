"""Network and loss of a run, built from its settings: the same on the server and at every site."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedglioma.case import GENES, Gene, Task
from fedglioma.config.run import SEGMENTERS, RunConfig
from fedglioma.losses.genotype import LOCAL_WEIGHT_CAP
from fedglioma.losses.multitask import GenotypeLoss, loss_preset
from fedglioma.losses.segmentation import SegmentationLoss, SGPLoss
from fedglioma.losses.tasks import Targets, TaskLoss
from fedglioma.models.build import Switches, build_model
from fedglioma.seeds import seed_torch
from fedglioma.weights import Layout, keep_norms_local

ClassCounts = Mapping[Gene, tuple[float, float]]

EQUAL_COUNTS: dict[Gene, tuple[float, float]] = dict.fromkeys(GENES, (1.0, 1.0))


class Objective(nn.Module):
    """A network and its loss as one module: a batch in, each case's loss out.

    One forward pass reaches every parameter, those of the loss too, as data parallelism and compilation
    need it.
    """

    def __init__(self, model: nn.Module, loss: TaskLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(
        self, image: Tensor, present: Tensor, genotype: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return each case's loss, (B,), and detached that of each task, not yet weighed, (B, tasks)."""
        outputs = self.model(image, present)
        targets = Targets(genotype, mask)
        value = self.loss.per_sample(outputs, targets)
        with torch.no_grad():
            detached = {name: output.detach() for name, output in outputs.items()}
            return value, self.loss.per_task(detached, targets)


@dataclass(frozen=True)
class Learner:
    """What is trained: a network and its loss, whose parameters travel together."""

    model: nn.Module
    loss: TaskLoss

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the network is asked."""
        return self.loss.tasks

    def to(self, device: torch.device) -> "Learner":
        """Return this learner after moving it to a device."""
        self.model.to(device)
        self.loss.to(device)
        return self


def build_learner(settings: RunConfig, class_counts: ClassCounts) -> Learner:
    """Return an untrained network and its loss.

    Parameters
    ----------
    class_counts : mapping
        Per gene the training cases of class 0 and class 1, over all sites.
    """
    model = build_model(settings.model, switches_of(settings))
    if settings.strategy == "fedbn":
        keep_norms_local(model)
    return Learner(model, _loss(settings, class_counts))


def switches_of(settings: RunConfig) -> Switches:
    """Return what of a run's settings decides how its network is built."""
    return Switches(
        preset=settings.preset,
        width=settings.width,
        pos_grid=settings.pos_grid,
        path2=settings.path2_modalities,
        attention=settings.attention,
        guide=settings.guide_genes,
        targets=settings.targets,
        norm=settings.norm,
        guide_mode=settings.guide_mode,
        guide_detach=settings.guide_detach,
        head_act=settings.head_act,
        head_1x1=settings.head_1x1,
    )


def _loss(settings: RunConfig, class_counts: ClassCounts) -> TaskLoss:
    if settings.model == "sgpnet":
        return SGPLoss(settings.targets, detach_k=settings.detach_k)
    if settings.model in SEGMENTERS:
        return SegmentationLoss()
    switches = loss_preset(settings.preset)
    return GenotypeLoss(
        class_counts,
        weighting=settings.task_weighting,
        form=settings.weighting_form,
        ldam_input=switches.ldam_input if settings.ldam_input == "auto" else settings.ldam_input,
        max_weight=LOCAL_WEIGHT_CAP if settings.counts == "local" else None,
    )


def log_variances(learner: Learner) -> dict[Gene, float]:
    """Return the uncertainty weights s_t by gene; empty where the weights are fixed."""
    named = dict(learner.loss.named_parameters())
    keys = {gene: f"weights.{gene.value}.log_variance" for gene in GENES}
    return {gene: float(named[key].detach()) for gene, key in keys.items() if key in named}


def initial_learner(settings: RunConfig, class_counts: ClassCounts) -> Learner:
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
