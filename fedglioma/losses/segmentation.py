"""The losses of networks that outline the tumour: soft Dice, and its balance with IDH in SGPNet.

Everything is per case: Dice over a whole batch, or a balance of batch means, would let one case decide how
strongly another one pulls.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedglioma.case import GENES, UNKNOWN, Gene, Task
from fedglioma.errors import ConfigError, DataError
from fedglioma.losses.tasks import Targets, TaskLoss, at_least_float

LearnedTargets = Literal["both", "idh", "random", "seg"]

TASKS_OF: dict[LearnedTargets, tuple[Task, ...]] = {
    "both": (Task.IDH, Task.SEGMENTATION),
    "idh": (Task.IDH,),
    "random": (Task.IDH, Task.SEGMENTATION),
    "seg": (Task.SEGMENTATION,),
}

EPS = 1e-5
"""Keeps Dice defined where neither the outline nor the network has a tumour: the loss is then 0."""
BALANCE_EPS = 1e-8
"""Keeps the balance defined where both losses are 0."""


def soft_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - soft Dice of the tumour of each case, over its voxels, shape (B,); 0 where unknown.

    1 - (2 sum(p g) + eps) / (sum(p) + sum(g) + eps), p the probability of tumour and g the outline.

    Parameters
    ----------
    logits : Tensor, shape (B, 2, D, H, W)
        Of background and tumour.
    mask : Tensor, shape (B, D, H, W)
        1 in the tumour, 0 elsewhere, ``UNKNOWN`` in every voxel of a case that nobody outlined.

    Raises
    ------
    DataError
        The two do not belong together.

    References
    ----------
    Milletari, Navab and Ahmadi (2016), V-Net, 3DV; without its squares.
    """
    log_odds, outline, known = _voxels(logits, mask)
    tumour = log_odds.sigmoid()  # softmax of two logits
    overlap = (tumour * outline).sum(1)
    dice = (2 * overlap + EPS) / (tumour.sum(1) + outline.sum(1) + EPS)
    # Multiplied, not skipped: the block stays in the graph of a batch without outlines.
    return (1 - dice) * known


def voxel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy over the voxels of each case, shape (B,); 0 where unknown.

    Parameters and errors as in ``soft_dice_loss``.
    """
    log_odds, outline, known = _voxels(logits, mask)
    # Of one logit: the same as that of two, at half the memory.
    return F.binary_cross_entropy_with_logits(log_odds, outline, reduction="none").mean(1) * known


def dynamic_balance(first: Tensor, second: Tensor, *, detach: bool = False) -> Tensor:
    """Return first + k second with k = second / (first + second), each case by itself, shape (B,).

    Equation 9 of SGPNet to the letter: k is differentiated, too. The worse the second loss is beside the
    first, the more it counts. With r = second / (first + second), the gradient is (1 - r^2) of the first and
    (1 - (1 - r)^2) of the second. Where one of the two is 0, as for an unknown target, the other is left.

    Parameters
    ----------
    first, second : Tensor, shape (B,)
        Losses, not negative.
    detach : bool
        Take k as a number: the gradient is then 1 of the first and r of the second.
    """
    k = second / (first + second + BALANCE_EPS)
    return first + (k.detach() if detach else k) * second


class SegmentationLoss(TaskLoss):
    """Soft Dice plus voxel cross-entropy, for networks that only outline the tumour."""

    tasks = (Task.SEGMENTATION,)

    def per_task(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return each case's loss, (B, 1); 0 for a case without an outline."""
        logits, mask = outputs[Task.SEGMENTATION], _mask_of(outputs, targets)
        return (soft_dice_loss(logits, mask) + voxel_cross_entropy(logits, mask))[:, None]

    def per_sample(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return the same, shape (B,)."""
        return self.per_task(outputs, targets)[:, 0]


class SGPLoss(TaskLoss):
    """IDH cross-entropy and soft Dice in SGPNet's dynamic balance, or one of them alone.

    Parameters
    ----------
    targets : str
        The experiment: ``both``; ``idh`` or ``seg`` alone; ``random``, which is ``both`` on outlines of noise
        that the caller draws.
    detach_k : bool
        See ``dynamic_balance``.

    Raises
    ------
    ConfigError
        There is no such experiment.
    """

    def __init__(self, targets: LearnedTargets = "both", *, detach_k: bool = False) -> None:
        super().__init__()
        self.detach_k = detach_k
        if targets not in TASKS_OF:
            raise ConfigError(f"loss: targets {targets!r} is unknown: choose {', '.join(TASKS_OF)}")
        self.tasks = TASKS_OF[targets]

    def per_task(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return each case's cross-entropy of IDH and soft Dice loss, those asked for; 0 where unknown."""
        losses = [
            soft_dice_loss(outputs[task], _mask_of(outputs, targets))
            if task is Task.SEGMENTATION
            else _idh_cross_entropy(outputs[task], targets)
            for task in self.tasks
        ]
        return torch.stack(losses, dim=1)

    def per_sample(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return each case's loss, (B,): balanced where both targets are known, else the known one's."""
        losses = self.per_task(outputs, targets)
        if len(self.tasks) == 1:
            return losses[:, 0]
        return dynamic_balance(losses[:, 0], losses[:, 1], detach=self.detach_k)


def _idh_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    label = targets.genotype[:, GENES.index(Gene.IDH)].clamp(min=0)
    return F.cross_entropy(at_least_float(logits), label, reduction="none") * targets.known(Task.IDH)


def _mask_of(outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """Return the batch's outlines, all unknown if it came with none."""
    if targets.mask is not None:
        return targets.mask
    logits = outputs[Task.SEGMENTATION]
    unknown = torch.tensor(UNKNOWN, dtype=torch.int8, device=logits.device)
    return unknown.expand(len(logits), *logits.shape[2:])


def _voxels(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log odds of tumour and outline, (B, voxels), and which cases are outlined, (B,), as 0 and 1."""
    if logits.ndim != 5 or logits.shape[1] != 2 or mask.shape != (len(logits), *logits.shape[2:]):
        raise DataError(
            f"outlines of shape {tuple(mask.shape)} for logits of shape {tuple(logits.shape)}: "
            "(B, D, H, W) and (B, 2, D, H, W) are needed"
        )
    logits = at_least_float(logits)
    flat = mask.flatten(1)
    log_odds = (logits[:, 1] - logits[:, 0]).flatten(1)
    return log_odds, (flat == 1).to(logits.dtype), (flat[:, 0] != UNKNOWN).to(logits.dtype)
