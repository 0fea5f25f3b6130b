"""How well the status of one marker was predicted: AUC, accuracy, sensitivity, specificity, log loss.

The positive class is mutant or codeleted, and a case is called positive from a probability of 0.5 on
(the argmax of two classes). A measure that does not exist is ``None`` with a reason, never 0.5.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedglioma.case import UNKNOWN, Frozen
from fedglioma.metrics.bootstrap import RESAMPLES, Measure, Statistic, bootstrap
from fedglioma.metrics.predictions import THRESHOLD

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LOG_LOSS_FLOOR = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log loss: the resolution of a 32-bit softmax."""
MIN_PATIENTS = 30
MIN_RARER = 10
MAX_AUC_WIDTH = 0.3
"""When a marker's figures are called unreliable: fewer known patients, fewer of the rarer class, or a
wider AUC interval than these. With 10 patients against 20, a true AUC of 0.80 has a standard error of
0.09 (Hanley and McNeil 1982): its interval reaches from useful to chance."""


class GeneMetrics(Frozen):
    """The figures of one marker on one set of cases.

    ``n`` cases of ``n_patients`` patients have a known label, ``positives`` of them positive;
    ``unknown`` cases were left out. ``majority`` is the accuracy of always naming this set's more
    frequent class, ``gain`` the accuracy above it. ``caution`` says, where that is so, that the
    figures rest on too few patients.

    Of a copy that is passed on (``small_cells.py``) ``withheld`` says what its counts no longer tell: how
    many have each status, or anything but on which side of the small-cell limit ``n`` lies.
    """

    n: int
    n_patients: int
    positives: int
    unknown: int
    auc: Measure
    accuracy: Measure
    majority: Measure
    gain: Measure
    sensitivity: Measure
    specificity: Measure
    log_loss: Measure
    caution: str | None
    class_patients: tuple[int, int] | None = Field(
        default=None, description="patients with a negative and with a positive case; None: not on record"
    )
    withheld: Literal["", "statuses", "row"] = ""


def gene_metrics(
    labels: IntArray,
    probabilities: FloatArray,
    patients: IntArray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GeneMetrics:
    """Return every measure of one marker with its patient-bootstrap interval.

    Parameters
    ----------
    labels : array of int, shape (n,)
        0, 1, or ``UNKNOWN`` for a case that takes no part.
    probabilities : array, shape (n,)
        Of class 1.
    patients : array of int, shape (n,), optional
        Equal for cases of one patient; without it every case is a patient.
    resamples : int
        0 gives values without intervals, as after every round.
    """
    everyone = np.arange(len(labels)) if patients is None else patients
    known = labels != UNKNOWN
    positive = labels[known] == 1
    scores = np.asarray(probabilities[known], dtype=np.float64)
    people = everyone[known]
    measures = bootstrap(_statistics(positive, scores), people, resamples=resamples, seed=seed)
    return GeneMetrics(
        n=len(positive),
        n_patients=len(np.unique(people)),
        positives=int(positive.sum()),
        unknown=int((~known).sum()),
        caution=_caution(positive, people, measures["auc"]),
        class_patients=(len(np.unique(people[~positive])), len(np.unique(people[positive]))),
        **measures,
    )


def roc_points(labels: IntArray, probabilities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the ROC curve: false and true positive rates, from (0, 0) to (1, 1), a point per score.

    Unknown labels take no part. Both arrays are empty where one class is missing.
    """
    known = labels != UNKNOWN
    positive, scores = labels[known] == 1, probabilities[known]
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return np.empty(0), np.empty(0)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    true_rate = np.cumsum(positive[order])[last_of_tie] / hits
    false_rate = np.cumsum(~positive[order])[last_of_tie] / misses
    return np.append(0.0, false_rate), np.append(0.0, true_rate)


def _statistics(positive: BoolArray, scores: FloatArray) -> dict[str, Statistic]:
    n = len(positive)
    called = scores >= THRESHOLD
    correct = (called == positive).astype(np.float64)
    majority = positive == (2 * positive.sum() > n)
    clipped = np.clip(scores, LOG_LOSS_FLOOR, 1 - LOG_LOSS_FLOOR)
    losses = -np.log(np.where(positive, clipped, 1 - clipped))
    everyone = np.ones(n, dtype=bool)
    nobody = "no case with a known label"
    no_positive = nobody if not n else f"none of the {n} known cases is positive"
    no_negative = nobody if not n else f"all {n} known cases are positive"
    one_class = nobody if not n else f"one class only: {no_negative if positive.all() else no_positive}"
    return {
        "auc": auc_statistic(positive, scores, one_class),
        "accuracy": mean_statistic(correct, everyone, nobody),
        "majority": mean_statistic(majority.astype(np.float64), everyone, nobody),
        "gain": mean_statistic(correct - majority, everyone, nobody),
        "sensitivity": mean_statistic(called.astype(np.float64), positive, no_positive),
        "specificity": mean_statistic((~called).astype(np.float64), ~positive, no_negative),
        "log_loss": mean_statistic(losses, everyone, nobody),
    }


def mean_statistic(values: FloatArray, among: BoolArray, undefined: str) -> Statistic:
    """Return the mean of ``values`` (n,) over the cases where ``among`` (n,) is true."""
    counted = among.astype(np.float64)

    def compute(weights: FloatArray) -> FloatArray:
        total = weights @ counted
        return _ratio(weights @ (values * counted), total)

    return Statistic(compute, undefined)


def auc_statistic(positive: BoolArray, scores: FloatArray, undefined: str) -> Statistic:
    """Return the chance that a positive case scores above a negative one, a tie counting half.

    The Mann-Whitney form: after sorting once, a resample's AUC is a weighted sum over distinct scores
    of (positives here) x (negatives below + half of the negatives here).
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    hit = positive[order].astype(np.float64)

    def compute(weights: FloatArray) -> FloatArray:
        drawn = weights[:, order]
        hits = np.add.reduceat(drawn * hit, starts, axis=1)  # (r, distinct scores)
        misses = np.add.reduceat(drawn * (1 - hit), starts, axis=1)
        below = np.cumsum(misses, axis=1) - misses
        won = (hits * (below + 0.5 * misses)).sum(axis=1)
        return _ratio(won, hits.sum(axis=1) * misses.sum(axis=1))

    return Statistic(compute, undefined)


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    ratio: FloatArray = np.full(len(bottom), np.nan)
    np.divide(top, bottom, out=ratio, where=bottom > 0)
    return ratio


def _caution(positive: BoolArray, people: IntArray, auc: Measure) -> str | None:
    known = len(np.unique(people))
    if not known:
        return "no patient has a known status"
    rarer = min(len(np.unique(people[positive])), len(np.unique(people[~positive])))
    if known < MIN_PATIENTS or rarer < MIN_RARER:
        return f"{known} patient{'s' * (known != 1)} with a known status, {rarer} in the rarer class"
    if auc.width is not None and auc.width > MAX_AUC_WIDTH:
        return f"the AUC's interval is {auc.width:.2f} wide"
    return None
