"""The survival analysis of a table: every marker among lower-grade, glioblastoma and all patients."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import UNKNOWN, Frozen
from fedglioma.survival.columns import Columns, TimeUnit
from fedglioma.survival.cox import Covariate, CoxModel, fit_cox
from fedglioma.survival.curves import Arm, LogRank, log_rank, make_arm, risk_ticks
from fedglioma.survival.markers import Marker
from fedglioma.survival.table import LeftOut, SurvivalTable
from fedglioma.survival.values import Group

BoolArray = NDArray[np.bool_]

SCHEMA_VERSION = 1
DAYS_PER_MONTH = 365.25 / 12
MIN_DEATHS = 10
MIN_CLASS = 10
"""Below this many deaths in all or patients in a class, a comparison carries a caution: one patient
more or less would move its p-value across any threshold."""


class Comparison(Frozen):
    """The classes of one marker among one group of patients.

    ``unknown`` patients of the group have no status. ``ticks`` are the times, in the table's unit, at
    which the arms count who is at risk. A test that does not exist is None with its reason; ``caution``
    says that there are too few patients to conclude anything.
    """

    group: Group
    marker: str
    title: str
    n: int
    unknown: int
    events: int
    arms: tuple[Arm, ...]
    ticks: tuple[float, ...]
    log_rank: LogRank | None
    log_rank_reason: str | None
    cox: CoxModel
    caution: str | None


class Adjusted(Frozen):
    """The model of all markers together, with age where known, among one group of patients."""

    group: Group
    covariates: tuple[str, ...]
    model: CoxModel


class SurvivalResults(Frozen):
    """Everything computed from one table; times in ``unit``, ``months_per_unit`` turns them into months.

    Of ``rows`` in the table ``n`` patients were used, ``events`` of whom died. ``notes`` are sentences
    that belong beside the results.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    synthetic: bool
    columns: Columns
    unit: TimeUnit
    months_per_unit: float | None
    rows: int
    n: int
    events: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    adjusted: tuple[Adjusted, ...]
    lifelines: str


@dataclass(frozen=True)
class _Part:
    group: Group
    mask: BoolArray


def analyse(table: SurvivalTable, *, synthetic: bool = False) -> SurvivalResults:
    """Return curves, log-rank tests and Cox models of every marker in every group that has patients.

    Without a cohort or grade there is one group, all patients together; where all of them are of one
    kind, that kind stands alone, since the mixed group would only repeat it.
    """
    months = months_per_unit(table.unit)
    parts = tuple(_parts(table))
    adjusted = tuple(_adjusted(table, part) for part in parts)
    spared = (f"{a.group.value}, model of all markers {o}" for a in adjusted for o in a.model.omitted)
    return SurvivalResults(
        source=table.source,
        synthetic=synthetic,
        columns=table.columns,
        unit=table.unit,
        months_per_unit=months,
        rows=table.rows,
        n=len(table.time),
        events=int(table.died.sum()),
        left_out=table.left_out,
        notes=(*table.notes, *_notes(table), *spared),
        comparisons=tuple(_compare(table, m, part, months) for part in parts for m in table.markers),
        adjusted=adjusted,
        lifelines=version("lifelines"),
    )


def months_per_unit(unit: TimeUnit) -> float | None:
    """Return how many months one unit of time is, None for an unknown one."""
    return {TimeUnit.DAYS: 1 / DAYS_PER_MONTH, TimeUnit.MONTHS: 1.0, TimeUnit.YEARS: 12.0}.get(unit)


def _parts(table: SurvivalTable) -> Iterator[_Part]:
    groups = np.array([g.value if g else "" for g in table.groups])
    kinds = [g for g in (Group.LOWER_GRADE, Group.GLIOBLASTOMA) if (groups == g.value).any()]
    for kind in kinds:
        yield _Part(kind, groups == kind.value)
    if len(kinds) != 1 or (groups == "").any():
        yield _Part(Group.MIXED, np.ones(len(groups), dtype=bool))


def _compare(table: SurvivalTable, marker: Marker, part: _Part, months: float | None) -> Comparison:
    use = part.mask & (marker.codes != UNKNOWN)
    time, died, codes = table.time[use], table.died[use], marker.codes[use]
    # All markers of a group share one axis, so that their figures can be laid over each other.
    ticks = risk_ticks(float(table.time[part.mask].max(initial=0.0)), months)
    present = [code for code in range(len(marker.classes)) if (codes == code).any()]
    arms = tuple(make_arm(marker.classes[c], time[codes == c], died[codes == c], ticks) for c in present)
    test, reason = log_rank(time, died, codes) if len(time) else (None, "no patient has a known status")
    return Comparison(
        group=part.group,
        marker=marker.column,
        title=marker.title,
        n=len(time),
        unknown=int((part.mask & ~use).sum()),
        events=int(died.sum()),
        arms=arms,
        ticks=ticks,
        log_rank=test,
        log_rank_reason=reason,
        cox=fit_cox(time, died, _against_reference(marker, present, use)),
        caution=_caution(arms),
    )


def _against_reference(marker: Marker, present: list[int], use: BoolArray) -> list[Covariate]:
    """Return one 0/1 column per class beyond the first present, which is the reference of all."""
    codes = marker.codes[use]
    return [
        Covariate(
            marker.title, marker.classes[c], marker.classes[present[0]], (codes == c).astype(np.float64)
        )
        for c in present[1:]
    ]


def _adjusted(table: SurvivalTable, part: _Part) -> Adjusted:
    covariates = []
    for marker in table.markers:
        known = part.mask & (marker.codes != UNKNOWN)
        present = [c for c in range(len(marker.classes)) if (marker.codes[known] == c).any()]
        for code in present[1:]:
            column = np.where(known, (marker.codes == code).astype(np.float64), np.nan)[part.mask]
            covariates.append(
                Covariate(marker.title, marker.classes[code], marker.classes[present[0]], column)
            )
    if table.age is not None:
        age = table.age[part.mask] / 10
        covariates.append(Covariate("age", "ten years older", "same age", age, binary=False))
    # Among all patients a marker would otherwise take credit for the grade that it goes with.
    if part.group is Group.MIXED and any(table.groups):
        grade = np.array([np.nan if g is None else float(g is Group.GLIOBLASTOMA) for g in table.groups])
        covariates.append(Covariate("cohort", "glioblastoma", "lower-grade", grade))
    return Adjusted(
        group=part.group,
        covariates=tuple(dict.fromkeys(c.name for c in covariates)),
        model=fit_cox(table.time[part.mask], table.died[part.mask], covariates, spare=True),
    )


def _caution(arms: tuple[Arm, ...]) -> str | None:
    deaths, smallest = sum(arm.events for arm in arms), min((arm.n for arm in arms), default=0)
    if deaths >= MIN_DEATHS and smallest >= MIN_CLASS:
        return None
    people = f"{smallest} patient{'s' * (smallest != 1)} in the smallest class"
    return f"too few to conclude anything: {deaths} death{'s' * (deaths != 1)}, {people}"


def _notes(table: SurvivalTable) -> Iterator[str]:
    if not any(table.groups):
        yield "no cohort or grade divides lower-grade from glioblastoma: all patients stand together"
    elif None in table.groups:
        count = table.groups.count(None)
        yield f"{count} of the patients are neither lower-grade nor glioblastoma and in the mixed group only"
    for marker in table.markers:
        if marker.not_understood:
            yield (
                f"{marker.column}: {marker.not_understood} values such as {marker.example!r} are not "
                "understood and count as unknown"
            )
    idh = next((m for m in table.markers if m.title == "IDH"), None)
    if idh is not None:
        gbm = np.array([g is Group.GLIOBLASTOMA for g in table.groups], dtype=bool)
        mutant = int((gbm & (idh.codes == 1)).sum())
        if mutant:
            yield (
                f"{mutant} of the glioblastomas are IDH-mutant: its naming is from before WHO CNS5, "
                "which calls them astrocytomas, IDH-mutant, grade 4"
            )
