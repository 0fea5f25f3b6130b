"""Confidence intervals by resampling patients, all resamples in one array operation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat

from fedglioma.case import Frozen

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 0.95
MIN_SHARE = 0.5
"""Share of the resamples in which a measure must be defined for its interval to be given.

An undefined resample is one without a case of some class. Where that is most of them, what is left is
a selection of the lucky ones, and its quantiles say nothing about the cohort.
"""
CHUNK_ELEMENTS = 2_000_000


class Measure(Frozen):
    """One number with its 95 % interval; ``None`` where undefined, with the reason in words.

    ``dropped`` counts the resamples in which the measure was undefined. ``reason`` says why the value
    is missing or, where there is a value, why its interval is.
    """

    value: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    dropped: int = 0
    reason: str | None = None

    @property
    def width(self) -> float | None:
        """Width of the interval, ``None`` without one."""
        return None if self.low is None or self.high is None else self.high - self.low


@dataclass(frozen=True)
class Statistic:
    """A measure as a function of how often each case counts.

    ``compute`` takes weights (r, n), one row per resample, and returns values (r,), nan where the
    measure is undefined. A row of ones gives the value itself, so that value and interval cannot
    follow two definitions. ``undefined`` says in words when that value does not exist.
    """

    compute: Callable[[FloatArray], FloatArray]
    undefined: str


def bootstrap(
    statistics: Mapping[str, Statistic],
    patients: IntArray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    strata: IntArray | None = None,
) -> dict[str, Measure]:
    """Return each statistic with its percentile interval over resampled patients.

    Patients, not cases, are drawn with replacement and bring all their cases along; there is no
    stratification by class, whose numbers vary as they would in another cohort of this size.
    All statistics see the same resamples, which makes differences between them paired.

    Parameters
    ----------
    statistics : mapping of name to Statistic
        Functions of the same n cases.
    patients : array of int, shape (n,)
        Equal for cases of one patient.
    resamples : int
        0 gives values without intervals.
    strata : array of int, shape (n,), optional
        Folds, say: patients are drawn within each, as many as it has. Equal for cases of one patient.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile interval).
    """
    n = len(patients)
    ones = np.ones((1, n))
    values = {name: float(s.compute(ones)[0]) if n else np.nan for name, s in statistics.items()}
    draws: dict[str, list[FloatArray]] = {name: [] for name in statistics}
    if n:
        for weights in resample_weights(patients, resamples, seed, strata):
            for name, statistic in statistics.items():
                draws[name].append(statistic.compute(weights))
    people = len(np.unique(patients))
    return {
        name: _measure(values[name], np.concatenate(draws[name]) if draws[name] else np.empty(0), people, s)
        for name, s in statistics.items()
    }


def resample_weights(
    patients: IntArray, resamples: int, seed: int, strata: IntArray | None = None
) -> Iterator[FloatArray]:
    """Yield how often each case counts, (r, n) at a time, until there were ``resamples`` rows.

    A resample of P patients with replacement is one multinomial draw of P counts, in each stratum. Rows
    come in chunks of bounded memory; their content depends on the seed only, not on the chunks.
    """
    _, first, index = np.unique(patients, return_index=True, return_inverse=True)
    of = np.zeros(len(first), dtype=np.int64) if strata is None else strata[first]
    groups = [np.flatnonzero(of == stratum) for stratum in np.unique(of)]
    generator = np.random.default_rng(seed)
    # A generator of its own for each stratum, or the chunks' lengths would decide who draws next.
    generators = generator.spawn(len(groups)) if len(groups) > 1 else [generator]
    rows = max(1, CHUNK_ELEMENTS // max(len(patients), 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        counts = np.empty((size, len(first)), dtype=np.int64)
        for source, group in zip(generators, groups, strict=True):
            people = len(group)
            counts[:, group] = source.multinomial(people, np.full(people, 1 / people), size=size)
        yield counts[:, index].astype(np.float64)


def _measure(value: float, draws: FloatArray, people: int, statistic: Statistic) -> Measure:
    if np.isnan(value):
        return Measure(value=None, reason=statistic.undefined)
    if not len(draws):
        return Measure(value=value, reason="no interval was asked for")
    defined = draws[~np.isnan(draws)]
    dropped = len(draws) - len(defined)
    reason = _no_interval(defined, len(draws), people)
    if reason is not None:
        return Measure(value=value, dropped=dropped, reason=reason)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(defined, (tail, 1 - tail)))
    return Measure(value=value, low=low, high=high, dropped=dropped)


def _no_interval(defined: FloatArray, resamples: int, people: int) -> str | None:
    if people < 2:
        return "one patient only: nothing to resample"
    if len(defined) < MIN_SHARE * resamples:
        return f"defined in {len(defined)} of {resamples} resamples only: too few patients of one class"
    # Without a single exception among the cases every resample looks the same, and an interval of no
    # width would claim a certainty that a few patients cannot give.
    if np.ptp(defined) < 1e-12:
        return f"no exception among {people} patients: every resample gives the same value"
    return None
