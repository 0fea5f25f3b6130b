"""Cox proportional-hazards models, and whether their assumption holds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.exceptions import ConvergenceError, ConvergenceWarning
from lifelines.statistics import proportional_hazard_test
from numpy.typing import NDArray
from pydantic import FiniteFloat

from fedglioma.case import Frozen

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_ESTIMATES = ("exp(coef)", "exp(coef) lower 95%", "exp(coef) upper 95%", "p")
EVENTS_PER_COVARIATE = 10
"""Fewer deaths per covariate than this and a ratio is easily far off (Peduzzi et al. 1995)."""


@dataclass(frozen=True)
class Covariate:
    """One column of a model: ``values`` (n,) with nan where unknown, and what a ratio above 1 means.

    ``label`` is set against ``reference``: mutant against wild-type; ten years against none. ``binary``
    columns hold 0 and 1.
    """

    name: str
    label: str
    reference: str
    values: FloatArray
    binary: bool = True


class HazardRatio(Frozen):
    """Hazard of ``label`` over that of ``reference``, everything else in the model being equal.

    ``ph_p`` is the p-value that the ratio stays the same over time (scaled Schoenfeld residuals against
    the rank of time); a small one means that a single ratio sums up a changing one.
    """

    covariate: str
    label: str
    reference: str
    ratio: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    p: FiniteFloat
    ph_p: FiniteFloat | None


class CoxModel(Frozen):
    """One fitted model, or the reason in words why it could not be fitted (``rows`` is then empty).

    ``n`` patients have every covariate, ``events`` of them died. ``concordance`` is Harrell's, on the
    same patients. ``omitted`` says which covariates were left out and why; ``caution`` that the deaths
    are few for those that remain.
    """

    n: int
    events: int
    rows: tuple[HazardRatio, ...] = ()
    concordance: FiniteFloat | None = None
    omitted: tuple[str, ...] = ()
    reason: str | None = None
    caution: str | None = None


@dataclass(frozen=True)
class _Problem:
    """Why no model can be fitted; ``covariate`` names the one that is at fault, if one is."""

    reason: str
    covariate: str | None = None


def fit_cox(
    time: FloatArray, died: BoolArray, covariates: Sequence[Covariate], *, spare: bool = False
) -> CoxModel:
    """Return the model of ``covariates`` on the patients (n,) in whom all of them are known.

    Ties by Efron's method, Wald intervals at 95 %, no penalty: an estimate that does not exist is
    reported as such and not made to exist. With ``spare``, a covariate that has none is left out with
    everything of its name, as long as another remains.

    References
    ----------
    Cox (1972), Journal of the Royal Statistical Society B 34(2), 187-220; Efron (1977), Journal of the
    American Statistical Association 72(359), 557-565; Grambsch and Therneau (1994), Biometrika 81(3),
    515-526 (proportional hazards); Peduzzi, Concato, Feinstein and Holford (1995), Journal of Clinical
    Epidemiology 48(12), 1503-1510 (events per covariate).
    """
    omitted: list[str] = []
    used = list(covariates)
    while True:
        matrix = np.column_stack([c.values for c in used]) if used else np.empty((len(time), 0))
        known = ~np.isnan(matrix).any(axis=1)
        problem = _problem(matrix[known], died[known], used)
        if not spare or problem is None or {c.name for c in used} <= {problem.covariate}:
            break
        if problem.covariate is None:
            break
        omitted.append(f"without {problem.covariate}, since {problem.reason}")
        used = [c for c in used if c.name != problem.covariate]
    model = CoxModel(n=int(known.sum()), events=int(died[known].sum()), omitted=tuple(omitted))
    if problem is not None:
        return model.model_copy(update={"reason": problem.reason})
    frame = pd.DataFrame(matrix[known], columns=[str(i) for i in range(len(used))])
    frame["time"], frame["died"] = time[known], died[known]
    fitter, reason = _fit(frame)
    if fitter is None:
        return model.model_copy(update={"reason": reason})
    few = model.events < EVENTS_PER_COVARIATE * len(used)
    caution = f"{_count(model.events, 'death')} for {_count(len(used), 'covariate')}" if few else None
    concordance = _concordance(fitter)
    if concordance is None:
        return model.model_copy(update={"reason": "no two patients differ in survival"})
    rows = _rows(fitter, frame, used)
    return model.model_copy(update={"rows": rows, "concordance": concordance, "caution": caution})


def _problem(matrix: FloatArray, died: BoolArray, covariates: Sequence[Covariate]) -> _Problem | None:
    if not covariates:
        return _Problem("nothing to compare")
    if not len(matrix):
        return _Problem("no patient has every covariate")
    for column, covariate in zip(matrix.T, covariates, strict=True):
        if np.ptp(column) == 0:
            return _Problem(f"{covariate.name} is the same in all {len(matrix)} patients", covariate.name)
    if not died.any():
        return _Problem("nobody died")
    for column, covariate in zip(matrix.T, covariates, strict=True):
        if covariate.binary and np.ptp(column[died]) == 0:
            spared = covariate.reference if column[died][0] == 1 else covariate.label
            reason = f"nobody with {covariate.name} {spared} died: the ratio has no finite estimate"
            return _Problem(reason, covariate.name)
    return None


def _fit(frame: pd.DataFrame) -> tuple[CoxPHFitter | None, str | None]:
    fitter = CoxPHFitter(alpha=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fitter.fit(frame, duration_col="time", event_col="died")
        except (ConvergenceError, np.linalg.LinAlgError):
            return None, "the covariates determine each other or the outcome: no finite estimate"
    # lifelines warns where the likelihood has no maximum and still returns where it stopped.
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        return None, "the deaths separate the classes: no finite estimate"
    if not np.isfinite(fitter.summary[list(_ESTIMATES)].to_numpy()).all():
        return None, "too few deaths: no finite estimate"
    return fitter, None


def _concordance(fitter: CoxPHFitter) -> float | None:
    """Return Harrell's concordance; None where no two patients can be said to differ in survival."""
    try:
        return float(fitter.concordance_index_)
    except ZeroDivisionError:
        return None


def _rows(
    fitter: CoxPHFitter, frame: pd.DataFrame, covariates: Sequence[Covariate]
) -> tuple[HazardRatio, ...]:
    holds = proportional_hazard_test(fitter, frame, time_transform="rank").summary["p"]
    summary = fitter.summary
    rows = []
    for i, covariate in enumerate(covariates):
        ratio, low, high, p = (float(summary.loc[str(i), column]) for column in _ESTIMATES)
        ph_p = float(holds.loc[str(i)])
        rows.append(
            HazardRatio(
                covariate=covariate.name,
                label=covariate.label,
                reference=covariate.reference,
                ratio=ratio,
                low=low,
                high=high,
                p=p,
                ph_p=ph_p if np.isfinite(ph_p) else None,
            )
        )
    return tuple(rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
