"""A survival analysis as it may be passed on: no number of few patients or deaths, no figure of them.

``results.json`` and ``curves.csv`` have everything and stay with whoever holds the table; the report and
the figures show ``passed_on`` of them. What is few says ``counts.py``.

================================  =================================================================
kept back                         where
================================  =================================================================
the end of a curve and of its     fewer patients than the limit are still followed: a step there is
band, a median in it              one of a handful
a class's curve and median        it has fewer patients than the limit
test and hazard ratio             one class has fewer patients than the limit, or fewer died in all
numbers of a marker's classes     one of them is few: exact numbers of all; the sum stands elsewhere
a number at risk, a number in     it is few
a sentence
================================  =================================================================

A step that is shown still is a death and its time, a tick a patient's last visit: a curve hides none of the
patients whom it is made of.
"""

from collections.abc import Iterator, Sequence

from fedglioma.counts import PASSED_ON, coded, is_few, roughly, shown, without_few
from fedglioma.survival.analysis import Adjusted, Comparison, SurvivalResults
from fedglioma.survival.cox import CoxModel
from fedglioma.survival.curves import Arm, Curve
from fedglioma.survival.values import Group

_EMPTY = Curve(time=(), survival=(), low=(), high=(), at_risk=(), died=(), censored=())


def patients_text(arm: Arm, limit: int = PASSED_ON) -> str:
    """Return a class's number of patients as it may be printed."""
    return roughly(arm.n, limit) if "n" in arm.withheld else f"{arm.n:,}"


def deaths_text(arm: Arm, limit: int = PASSED_ON) -> str:
    """Return a class's number of deaths as it may be printed."""
    return roughly(arm.events, limit) if "events" in arm.withheld else f"{arm.events:,}"


def passed_on(results: SurvivalResults, limit: int = PASSED_ON) -> SurvivalResults:
    """Return what may be printed of an analysis where others read it; again, nothing more changes."""
    comparisons = tuple(_comparison(one, limit) for one in results.comparisons)
    thin = {(one.group, one.title) for one in comparisons if any(not arm.curve.time for arm in one.arms)}
    return results.model_copy(
        update={
            "comparisons": comparisons,
            "adjusted": tuple(_adjusted(one, thin, limit) for one in results.adjusted),
            "notes": tuple(without_few(note, limit) for note in results.notes),
        }
    )


def at_risk_text(arm: Arm, limit: int = PASSED_ON) -> Iterator[str]:
    """Yield a class's numbers at risk as they may be printed."""
    yield from (shown(number, limit) for number in arm.at_risk)


def _comparison(one: Comparison, limit: int) -> Comparison:
    if any(arm.withheld for arm in one.arms):
        return one
    arms = tuple(_arm(arm, limit) for arm in one.arms)
    arms = _counted(arms, "n", [arm.n for arm in one.arms], limit)
    arms = _counted(arms, "events", [arm.events for arm in one.arms], limit)
    changes: dict[str, object] = {
        "arms": arms,
        "caution": None if one.caution is None else without_few(one.caution, limit),
    }
    why = _why_none(one, limit)
    if why is not None:
        changes["log_rank"] = None
        changes["log_rank_reason"] = one.log_rank_reason or why
        changes["cox"] = CoxModel(n=0, events=0, reason=why)
    elif one.cox.reason is not None:
        changes["cox"] = one.cox.model_copy(update={"reason": without_few(one.cox.reason, limit)})
    return one.model_copy(update=changes)


def _why_none(one: Comparison, limit: int) -> str | None:
    if any(is_few(arm.n, limit) for arm in one.arms):
        return f"fewer than {limit} patients of one status"
    return f"fewer than {limit} deaths" if is_few(one.events, limit) else None


def _arm(arm: Arm, limit: int) -> Arm:
    """Return a class with its curve as far as enough are followed; none where it is few from the start."""
    at_risk = tuple(1 if is_few(number, limit) else number for number in arm.at_risk)
    enough = sum(number >= limit for number in arm.curve.at_risk)  # the numbers only fall
    if arm.n < limit or not enough:
        gone = {"curve": _EMPTY, "median": None, "median_low": None, "median_high": None}
        return arm.model_copy(update={"at_risk": at_risk} | gone)
    last = arm.curve.time[enough - 1]
    curve = Curve(**{name: values[:enough] for name, values in arm.curve})
    ends = {
        name: end if end is not None and end <= last else None
        for name, end in (
            ("median", arm.median),
            ("median_low", arm.median_low),
            ("median_high", arm.median_high),
        )
    }
    return arm.model_copy(update={"at_risk": at_risk, "curve": curve} | ends)


def _counted(arms: tuple[Arm, ...], name: str, cells: Sequence[int], limit: int) -> tuple[Arm, ...]:
    codes = coded(cells, limit)
    if codes is None:
        return arms
    return tuple(
        arm.model_copy(update={name: code, "withheld": (*arm.withheld, name)})
        for arm, code in zip(arms, codes, strict=True)
    )


def _adjusted(one: Adjusted, thin: set[tuple[Group, str]], limit: int) -> Adjusted:
    model = one.model
    if is_few(model.n, limit) or is_few(model.events, limit):
        why = f"fewer than {limit} patients or deaths"
        kept = CoxModel(n=model.n, events=model.events, reason=why)
        return one.model_copy(update={"model": kept})
    rows = tuple(row for row in model.rows if (one.group, row.covariate) not in thin)
    reason = None if model.reason is None else without_few(model.reason, limit)
    if model.rows and not rows:
        reason = f"fewer than {limit} patients of one status"
    caution = None if model.caution is None else without_few(model.caution, limit)
    concordance = model.concordance if len(rows) == len(model.rows) else None
    changes = {"rows": rows, "reason": reason, "caution": caution, "concordance": concordance}
    return one.model_copy(update={"model": model.model_copy(update=changes)})
