"""What models are compared by: one measure of the same patients, over folds and seeds.

The figure is the papers': the mean over folds, then over seeds. A fold without a case of some class has no
AUC: it is left out of the mean, and ``fold_values`` shows it.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import UNKNOWN
from fedglioma.errors import FedGliomaError
from fedglioma.metrics.bootstrap import Statistic
from fedglioma.metrics.genotype import auc_statistic, mean_statistic
from fedglioma.metrics.predictions import THRESHOLD

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Criterion(StrEnum):
    """What models are compared by; all but Dice want the probability of class 1, called from 0.5 on.

    PPV is the share of class 1 among the cases called so, NPV that of class 0 among the others: undefined
    where nobody is called so.
    """

    AUC = "auc"
    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"
    SENSITIVITY = "sensitivity"
    SPECIFICITY = "specificity"
    PPV = "ppv"
    NPV = "npv"
    DICE = "dice"


@dataclass(frozen=True)
class Rows:
    """The n reported cases of a study, the same for all its arms.

    ``patients`` (n,) is equal for cases of one patient, ``folds`` (n,) for cases reported by one model;
    their integers mean nothing else. ``labels`` (n,) holds 0, 1 or ``UNKNOWN`` of one marker; for Dice
    it is not needed.

    Raises
    ------
    FedGliomaError
        Lengths differ.
    """

    patients: IntArray
    folds: IntArray
    labels: IntArray | None = None

    def __post_init__(self) -> None:
        shapes = {self.patients.shape, self.folds.shape}
        shapes |= set() if self.labels is None else {self.labels.shape}
        if len(shapes) > 1 or self.patients.ndim != 1:
            raise FedGliomaError("comparison: patients, folds and labels must have one entry per case")

    def select(self, mask: BoolArray) -> "Rows":
        """Return the cases where ``mask`` (n,) is true."""
        labels = None if self.labels is None else self.labels[mask]
        return Rows(self.patients[mask], self.folds[mask], labels)

    @property
    def strata(self) -> IntArray | None:
        """The folds, to resample within; ``None`` if a patient is in several, as in repeated hold-outs."""
        pairs = np.unique(np.stack([self.patients, self.folds]), axis=1).shape[1]
        return self.folds if pairs == len(np.unique(self.patients)) else None


def measurable(criterion: Criterion, rows: Rows, *arms: FloatArray) -> tuple[Rows, tuple[FloatArray, ...]]:
    """Return the m cases that have a label or a mask, and each arm's predictions of them, (m, s).

    Parameters
    ----------
    arms : arrays, shape (n, s) or (n,)
        Per case and seed: the probability of class 1; for Dice the Dice itself, nan without a mask.

    Raises
    ------
    FedGliomaError
        Shapes do not fit, a prediction is not a number, or there are no labels.
    """
    n = len(rows.patients)
    tables = [np.asarray(arm if arm.ndim > 1 else arm[:, None], dtype=np.float64) for arm in arms]
    shape = tables[0].shape
    if any(t.shape != shape for t in tables) or len(shape) != 2 or shape[0] != n or not shape[1]:
        raise FedGliomaError(
            f"comparison: {n} cases, predictions of shape {' and '.join(str(t.shape) for t in tables)}: "
            "one row per case and, in every arm, one column per seed"
        )
    if criterion is Criterion.DICE:
        mask = ~np.all([np.isnan(table).all(axis=1) for table in tables], axis=0)
    elif rows.labels is None:
        raise FedGliomaError(f"comparison: {criterion.value} needs the cases' labels")
    else:
        mask = rows.labels != UNKNOWN
    if not all(np.isfinite(table[mask]).all() for table in tables):
        raise FedGliomaError(
            f"comparison: {criterion.value}: a seed or an arm has no number for a case that others have: "
            "compare arms on the same cases; if training diverged, lower the learning rate"
        )
    return rows.select(mask), tuple(table[mask] for table in tables)


def over_folds(criterion: Criterion, rows: Rows, values: FloatArray) -> Statistic:
    """Return the mean over folds and seeds of ``measurable`` predictions (n, s).

    A fold's value is the mean over the seeds that define it. For all but PPV and NPV that depends on the
    fold's cases and not on the seed, so that the order of the two means does not matter.
    """
    folds = rows.folds
    places = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    parts = [
        (place, [_single(criterion, rows.select(folds == folds[place[0]]), seed) for seed in values[place].T])
        for place in places
    ]
    undefined = _single(criterion, rows, values[:, 0]).undefined

    def compute(weights: FloatArray) -> FloatArray:
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for place, seeds in parts:
            drawn = weights[:, place]
            value = defined_mean(np.array([seed.compute(drawn) for seed in seeds]))
            defined = ~np.isnan(value)
            total += np.where(defined, value, 0)
            count += defined
        mean: FloatArray = np.full(len(weights), np.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return mean

    return Statistic(compute, f"in every fold: {undefined}")


def defined_mean(values: FloatArray) -> FloatArray:
    """Return the mean of the numbers in each column of ``values`` (s, r), shape (r,); nan without any."""
    defined = ~np.isnan(values)
    mean: FloatArray = np.full(values.shape[1], np.nan)
    np.divide(
        np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0), out=mean, where=defined.any(axis=0)
    )
    return mean


def fold_values(criterion: Criterion, rows: Rows, predictions: FloatArray) -> FloatArray:
    """Return the measure of each fold and seed, shape (f, s), nan where a fold does not define it.

    Folds stand in the order of their integers; arguments and errors as in ``measurable``.
    """
    kept, (values,) = measurable(criterion, rows, predictions)
    folds = np.unique(rows.folds)
    table = np.full((len(folds), values.shape[1]), np.nan)
    for i, fold in enumerate(folds):
        here = kept.folds == fold
        part, ones = kept.select(here), np.ones((1, int(here.sum())))
        for s in range(values.shape[1] if here.any() else 0):
            table[i, s] = _single(criterion, part, values[here, s]).compute(ones)[0]
    return table


def _single(criterion: Criterion, rows: Rows, values: FloatArray) -> Statistic:
    """Return the measure of one seed's predictions (n,), all cases together."""
    everyone = np.ones(len(values), dtype=bool)
    if criterion is Criterion.DICE or rows.labels is None:
        return mean_statistic(values, everyone, "no case with a mask")
    positive = rows.labels == 1
    called = values >= THRESHOLD
    correct = (called == positive).astype(np.float64)
    undefined = "no case with a known label" if not len(values) else "one class only"
    if criterion is Criterion.AUC:
        return auc_statistic(positive, values, undefined)
    if criterion is Criterion.ACCURACY:
        return mean_statistic(correct, everyone, undefined)
    if criterion is Criterion.PPV:
        return mean_statistic(correct, called, "nobody is called mutant or codeleted")
    if criterion is Criterion.NPV:
        return mean_statistic(correct, ~called, "everybody is called mutant or codeleted")
    hits, misses = (mean_statistic(correct, among, undefined) for among in (positive, ~positive))
    if criterion is Criterion.BALANCED_ACCURACY:
        return Statistic(lambda w: (hits.compute(w) + misses.compute(w)) / 2, undefined)
    return hits if criterion is Criterion.SENSITIVITY else misses
