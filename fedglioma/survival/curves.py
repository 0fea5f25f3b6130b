"""Kaplan-Meier curves, log-rank tests and numbers at risk of the classes of one marker."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from lifelines import KaplanMeierFitter
from lifelines.statistics import multivariate_logrank_test
from lifelines.utils import median_survival_times
from numpy.typing import NDArray
from pydantic import FiniteFloat

from fedglioma.case import Frozen

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CONFIDENCE = 0.95
MONTH_STEPS = (1.0, 2.0, 3.0, 6.0, 12.0, 24.0, 36.0, 60.0, 120.0)
MAX_TICKS = 8


class Curve(Frozen):
    """A Kaplan-Meier estimate: one entry per distinct time at which somebody died or was censored.

    ``survival[i]`` holds from ``time[i]`` up to the next time, ``low`` and ``high`` being its 95 %
    interval (log-log transform); before the first time survival is 1. ``at_risk[i]`` patients were
    followed up to ``time[i]``; of them ``died[i]`` died and ``censored[i]`` were censored then.

    The steps of a small group show single patients' follow-up to the day: curves are kept and shown by
    the coordinator only and are no part of any message.
    """

    time: tuple[FiniteFloat, ...]
    survival: tuple[FiniteFloat, ...]
    low: tuple[FiniteFloat | None, ...]
    high: tuple[FiniteFloat | None, ...]
    at_risk: tuple[int, ...]
    died: tuple[int, ...]
    censored: tuple[int, ...]


class Arm(Frozen):
    """Patients of one class: their number, deaths, median survival with 95 % interval, curve.

    A median is None where survival never falls to one half. ``at_risk`` counts the patients still
    followed at each of the comparison's ticks. Of a copy that is passed on (``small_cells.py``)
    ``withheld`` names the counts that tell only on which side of the small-cell limit they lie.
    """

    label: str
    n: int
    events: int
    median: FiniteFloat | None
    median_low: FiniteFloat | None
    median_high: FiniteFloat | None
    at_risk: tuple[int, ...]
    curve: Curve
    withheld: tuple[Literal["n", "events"], ...] = ()


class LogRank(Frozen):
    """The log-rank test that all classes have the same hazard."""

    chi2: FiniteFloat
    degrees: int
    p: FiniteFloat


def make_arm(label: str, time: FloatArray, died: BoolArray, ticks: Sequence[float]) -> Arm:
    """Return one class's estimate; ``time`` and ``died`` are (n,), n at least 1.

    References
    ----------
    Kaplan and Meier (1958), Journal of the American Statistical Association 53(282), 457-481; interval
    of the median by inverting the curve's band, Brookmeyer and Crowley (1982), Biometrics 38(1), 29-41.
    """
    fitter = KaplanMeierFitter(alpha=1 - CONFIDENCE).fit(time, died)
    interval = median_survival_times(fitter.confidence_interval_)
    return Arm(
        label=label,
        n=len(time),
        events=int(died.sum()),
        median=_finite(fitter.median_survival_time_),
        median_low=_finite(interval.iloc[0, 0]),
        median_high=_finite(interval.iloc[0, 1]),
        at_risk=tuple(int((time >= tick).sum()) for tick in ticks),
        curve=_curve(fitter),
    )


def log_rank(time: FloatArray, died: BoolArray, codes: IntArray) -> tuple[LogRank | None, str | None]:
    """Return the test over the classes in ``codes`` (n,), or None and the reason in words.

    A class of which nobody was followed up to the first death says nothing and costs no degree of
    freedom.

    References
    ----------
    Mantel (1966), Cancer Chemotherapy Reports 50(3), 163-170; Peto and Peto (1972), Journal of the Royal
    Statistical Society A 135(2), 185-207.
    """
    if len(np.unique(codes)) < 2:
        return None, "one class only"
    if not died.any():
        return None, "nobody died"
    deaths = np.unique(time[died])
    use = time >= deaths[0]
    # lifelines answers chi2 = 0, p = 1 where there was nothing to compare; that is no result.
    if not any(_compares(time, died, codes, death) for death in deaths):
        return None, "no death while more than one class was followed"
    result = multivariate_logrank_test(time[use], codes[use], died[use])
    degrees = len(np.unique(codes[use])) - 1
    return LogRank(chi2=float(result.test_statistic), degrees=degrees, p=float(result.p_value)), None


def _compares(time: FloatArray, died: BoolArray, codes: IntArray, death: float) -> bool:
    """Whether a death time tells classes apart: two of them at risk, and somebody survives it."""
    at_risk = time >= death
    return len(np.unique(codes[at_risk])) > 1 and int((died & (time == death)).sum()) < int(at_risk.sum())


def risk_ticks(longest: float, months_per_unit: float | None) -> tuple[float, ...]:
    """Return times from 0 on at which to count who is at risk, up to ``longest``, in its unit.

    Whole months, half-years or years where the unit is known; 1, 2 or 5 times a power of ten elsewhere.
    """
    scale = months_per_unit or 1.0
    reach = longest * scale
    if reach <= 0:
        return (0.0,)
    steps = MONTH_STEPS if months_per_unit else _round_steps(reach)
    step = next((s for s in steps if reach / s < MAX_TICKS), reach / (MAX_TICKS - 1))
    return tuple(i * step / scale for i in range(int(reach // step) + 1))


def _round_steps(reach: float) -> tuple[float, ...]:
    power = 10.0 ** np.floor(np.log10(reach) - 1)
    return tuple(float(factor * power) for factor in (1, 2, 5, 10, 20, 50))


def _curve(fitter: KaplanMeierFitter) -> Curve:
    table = fitter.event_table
    # lifelines starts every curve with a row at time 0; it says something only if somebody left then.
    table = table[table["removed"] > 0]
    band = fitter.confidence_interval_.loc[table.index]
    survival = fitter.survival_function_.loc[table.index]
    return Curve(
        time=tuple(float(t) for t in table.index),
        survival=tuple(float(s) for s in survival.iloc[:, 0]),
        low=tuple(_finite(s) for s in band.iloc[:, 0]),
        high=tuple(_finite(s) for s in band.iloc[:, 1]),
        at_risk=tuple(int(n) for n in table["at_risk"]),
        died=tuple(int(n) for n in table["observed"]),
        censored=tuple(int(n) for n in table["censored"]),
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
