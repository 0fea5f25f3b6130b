"""Tests of two models on the same patients by the classical means, and Holm's correction of many.

One row per patient: for repeated visits, folds or seeds the swap test of ``paired.py`` is the one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import binomtest, norm, rankdata
from scipy.stats import wilcoxon as signed_rank

from fedglioma.case import Frozen
from fedglioma.errors import FedGliomaError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class DeLong(Frozen):
    """Two correlated AUCs: ``difference`` is ``a`` minus ``b``, ``p`` two-sided; ``None`` where undefined.

    ``reason`` says in words why there is no p.
    """

    a: float | None = None
    b: float | None = None
    difference: float | None = None
    standard_error: float | None = None
    p: float | None = Field(default=None, ge=0, le=1)
    reason: str | None = None


def delong_test(labels: IntArray, scores_a: FloatArray, scores_b: FloatArray) -> DeLong:
    """Return the test that two scores of the same patients have the same AUC.

    The normal approximation holds for some dozens of patients in each class; ties count half.

    Parameters
    ----------
    labels : array of int, shape (n,)
        0, 1, or ``UNKNOWN`` for a patient who takes no part.
    scores_a, scores_b : array, shape (n,)
        Higher means class 1; their scales need not agree.

    Raises
    ------
    FedGliomaError
        Lengths differ, or a patient with a known label has no score.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44(3), 837-845;
    Sun and Xu (2014), IEEE Signal Processing Letters 21(11), 1389-1393 (by ranks, n log n).
    """
    positive, negative = labels == 1, labels == 0
    if labels.shape != scores_a.shape or labels.shape != scores_b.shape:
        raise FedGliomaError("delong_test: labels and both scores need one entry per patient")
    hits, misses = int(positive.sum()), int(negative.sum())
    if not hits or not misses:
        return DeLong(reason="one class only" if hits + misses else "no patient with a known label")
    scores = np.stack([scores_a, scores_b]).astype(np.float64)
    if not np.isfinite(scores[:, positive | negative]).all():
        raise FedGliomaError("delong_test: a score is not a number: compare scores of the same patients")
    above, below = _placements(scores[:, positive], scores[:, negative])
    a, b = (float(auc) for auc in above.mean(axis=1))
    values = DeLong(a=a, b=b, difference=a - b)
    if min(hits, misses) < 2:
        return values.model_copy(update={"reason": "one patient only in a class: no variance"})
    variance = np.var(above[0] - above[1], ddof=1) / hits + np.var(below[0] - below[1], ddof=1) / misses
    error = float(np.sqrt(variance))
    if error < 1e-12:
        alike = abs(a - b) < 1e-12
        reason = None if alike else "every patient says the same: no variance"
        return values.model_copy(
            update={"standard_error": 0.0, "p": 1.0 if alike else None, "reason": reason}
        )
    p = min(float(2 * norm.sf(abs(a - b) / error)), 1.0)
    return values.model_copy(update={"standard_error": error, "p": p})


def mcnemar_exact(right_a: BoolArray, right_b: BoolArray) -> float:
    """Return the two-sided p that two models are right equally often, from the patients they differ on.

    ``right_a`` and ``right_b`` (n,) say who was called correctly. The exact binomial test of McNemar's
    table (1947, Psychometrika 12, 153-157); 1 where the models agree on everybody.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilcoxon(a: FloatArray, b: FloatArray) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test for paired values (n,), as of Dice.

    Pairs with a nan take no part, those without a difference neither (Wilcoxon 1945); ``None`` without
    any pair, 1 where no pair differs.
    """
    difference = (a - b)[np.isfinite(a) & np.isfinite(b)]
    if not len(difference):
        return None
    if not difference.any():
        return 1.0
    return float(signed_rank(difference).pvalue)


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p-values adjusted for their number, in the same order; a ``None`` is no test and stays one.

    All below 0.05 may be called significant, with at most one chance in twenty that any is wrongly so,
    whatever depends on what: Holm (1979), Scandinavian Journal of Statistics 6(2), 65-70.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[i] for i in tested], dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1)
    adjusted: list[float | None] = [None] * len(p_values)
    for rank, place in enumerate(order):
        adjusted[tested[int(place)]] = float(raised[rank])
    return tuple(adjusted)


def _placements(positive: FloatArray, negative: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the share of negatives below each positive (2, m), of positives above each negative (2, n)."""
    m, n = positive.shape[1], negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    above = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    below = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    return above, below
