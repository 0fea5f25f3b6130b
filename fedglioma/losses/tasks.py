"""What a network is held against, and what every loss of a network offers, whatever its tasks are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedglioma.case import GENES, UNKNOWN, Task


class Targets(NamedTuple):
    """What is known of a batch of B cases.

    ``genotype`` (B, 3) int64 in task order, ``UNKNOWN`` where not measured. ``mask`` (B, D, H, W) int8: 1 in
    the tumour, 0 elsewhere, ``UNKNOWN`` in every voxel of a case that nobody outlined; None where no task
    needs it.
    """

    genotype: Tensor
    mask: Tensor | None = None

    def known(self, task: Task) -> Tensor:
        """Return which cases have a target for a task, bool, shape (B,)."""
        if task is not Task.SEGMENTATION:
            return self.genotype[:, GENES.index(task)] != UNKNOWN
        if self.mask is None:
            return torch.zeros(len(self.genotype), dtype=torch.bool, device=self.genotype.device)
        return self.mask.flatten(1)[:, 0] != UNKNOWN


class TaskLoss(nn.Module, ABC):
    """A loss over ``tasks``: a value per case, of which the batch's is the sum divided by the cases.

    Dividing by the cases, not by the known targets, keeps the gradient of a case independent of the other
    cases in its batch. An unknown target is multiplied by 0, never skipped, so that every part of the
    network stays in the graph.
    """

    tasks: tuple[Task, ...]

    @abstractmethod
    def per_task(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return each case's loss of each task before they are weighed, (B, tasks); 0 where unknown.

        It does not depend on anything that is trained besides the network, so that it can compare rounds
        and sites.
        """

    @abstractmethod
    def per_sample(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return each case's loss over all tasks, shape (B,)."""

    def forward(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return the loss of the batch, a scalar; 0 for a batch without cases."""
        return self.per_sample(outputs, targets).sum() / max(len(targets.genotype), 1)


def at_least_float(logits: Tensor) -> Tensor:
    """Return logits in float32 or finer: half precision loses the loss of a case that is sure."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
