"""The loss of one gene, LMF: margins for the rare class plus focus on the hard cases, one value per case."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedglioma.case import UNKNOWN
from fedglioma.errors import ConfigError

LdamInput = Literal["prob", "double_softmax", "logit"]

LOCAL_WEIGHT_CAP = 10.0
"""Largest class weight where a site counts for itself: it may have one codeleted patient, or none."""


def ldam_margins(counts: Sequence[float], max_margin: float = 0.5) -> Tensor:
    """Return the margin of each class, ``max_margin`` for the rarest, float64, shape (K,).

    A margin is proportional to the count to the power of -1/4, so a count that is 10 % off moves it
    by 2.5 %: counts with privacy noise do. Counts below 1 stand for 1.

    References
    ----------
    Cao et al. (2019), Learning imbalanced datasets with label-distribution-aware margin loss, NeurIPS.
    """
    root = _checked(counts).pow(-0.25)
    return root * (max_margin / root.max())


def class_weights(counts: Sequence[float], max_weight: float | None = None) -> Tensor:
    """Return the weight of each class, N / (K n), float64, shape (K,); at most ``max_weight``."""
    checked = _checked(counts)
    weights = checked.sum() / (len(checked) * checked)
    return weights if max_weight is None else weights.clamp(max=max_weight)


def ldam(bounded: Tensor, labels: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    """Return the label-distribution-aware margin loss of each case, shape (B,).

    Parameters
    ----------
    bounded : Tensor, shape (B, K)
        Scores on a bounded scale, such as probabilities: at a scale of 30, logits would make this a
        hinge of slope 30.
    labels : Tensor of int64, shape (B,)
    margins : Tensor, shape (K,)
        What the true class has to be ahead by.

    References
    ----------
    Cao et al. (2019), equation 13.
    """
    true_class = F.one_hot(labels, bounded.shape[1]).to(bounded.dtype)
    return F.cross_entropy(scale * (bounded - true_class * margins), labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of each case, (1 - p)^gamma (-log p), shape (B,).

    References
    ----------
    Lin et al. (2017), Focal loss for dense object detection, equation 4.
    """
    surprise = F.cross_entropy(logits, labels, reduction="none")  # -log p
    return (-torch.expm1(-surprise)).pow(gamma) * surprise


class LMF(nn.Module):
    """``alpha`` LDAM plus ``beta`` focal loss, weighted by class (Sadi 2022); unknown labels give 0.

    ``ldam_input`` says what goes in: ``prob`` gives LDAM the probabilities it expects and focal the
    logits; ``double_softmax`` gives both the probabilities, as MDPNet's authors do; ``logit`` gives
    both the logits. The counts are of the training cases of all sites, so that every site optimises
    the same objective; they are kept out of the state that sites exchange.

    Raises
    ------
    ConfigError
        A count is not finite, or a setting is out of range.
    """

    margins: Tensor
    weights: Tensor

    def __init__(
        self,
        counts: Sequence[float],
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 2.0,
        ldam_input: LdamInput = "prob",
        max_weight: float | None = None,
    ) -> None:
        super().__init__()
        if ldam_input not in ("prob", "double_softmax", "logit"):
            raise ConfigError(f"ldam_input: {ldam_input!r}: choose prob, double_softmax or logit")
        if gamma != 0 and not gamma >= 1:
            raise ConfigError(f"gamma: {gamma}: between 0 and 1 a sure case would get no finite gradient")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.ldam_input = ldam_input
        self.register_buffer("margins", ldam_margins(counts).float(), persistent=False)
        self.register_buffer("weights", class_weights(counts, max_weight).float(), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each case, shape (B,), from logits (B, K) and labels (B,)."""
        known = labels != UNKNOWN
        label = labels.clamp(min=0)
        for_ldam = logits if self.ldam_input == "logit" else logits.softmax(1)
        for_focal = logits.softmax(1) if self.ldam_input == "double_softmax" else logits
        margin = ldam(for_ldam, label, self.margins.to(logits.dtype))
        loss = self.alpha * margin + self.beta * focal(for_focal, label, self.gamma)
        # Multiplied, not skipped: a head without labels in a batch stays in the graph.
        return loss * self.weights.to(logits.dtype)[label] * known


def _checked(counts: Sequence[float]) -> Tensor:
    if len(counts) < 2 or not all(math.isfinite(count) for count in counts):
        raise ConfigError(f"counts: {tuple(counts)}: one finite number for each class is needed")
    return torch.tensor([float(count) for count in counts], dtype=torch.float64).clamp(min=1)
