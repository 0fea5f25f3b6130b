"""The table of a study: each row's measures with intervals, paired with the row that it is compared with."""

from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import Field

from fedglioma.case import Frozen, Task
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.criterion import Criterion
from fedglioma.metrics.paired import Comparison, compare, holm, interval
from fedglioma_server.study_file import Published, Study
from fedglioma_server.study_models import notes_of, tables_of
from fedglioma_server.study_results import FEW, Known, RowName, too_few

RESULTS = "results.json"
"""Where a study's result lies in its folder."""
ALL = "all"
"""The row of all hospitals' patients."""
PERMUTATIONS_PER_RESAMPLE = 10
"""A p-value wants finer steps than an interval: 9,999 swaps for 1,000 resamples."""


class Entry(Frozen):
    """One measure of one row; ``p_adjusted`` is Holm's, over the rows of this measure."""

    value: Measure
    comparison: Comparison | None = Field(
        default=None, description="None for the row compared with, and where too few cases are in both"
    )
    p_adjusted: float | None = None
    cases: int | str = Field(
        description="reported cases with a known target, the same for all rows of one model in each fold, "
        "and for all of each hospital's own; in words where the number, or another one from it, would be of "
        "few patients"
    )
    by_fold: list[list[float | None]] = Field(
        default=[],
        description="the measure of each fold, in the study's order, and each seed; None where a fold does "
        "not define it, or has too few patients to be told",
    )
    by_seed: list[float | None] = Field(default=[], description="the mean over folds of each seed")
    notes: list[str] = Field(default=[], description="what else to know of the number")


class Line(Frozen):
    """One row of the table."""

    arm: str
    protocol: str
    parameters: int | None = None
    epsilon: float | None = Field(
        default=None, description="the largest of the row's runs; None: not differentially private"
    )
    entries: dict[str, Entry] = Field(description="by TASK.MEASURE")


class Gain(Frozen):
    """What each way of training gives the patients of one hospital, against training alone."""

    site: str
    arm: str
    measure: str
    lines: dict[str, Entry] = Field(description="by protocol; compared with local")


class LeftOut(Frozen):
    """What a row is worth at the hospital that was left out of its training, by one measure."""

    site: str
    arm: str
    protocol: str
    measure: str
    value: Measure
    cases: int | str


class StudyResult(Frozen):
    """Everything that a study found; no patient is in it, and as it is written no number of few."""

    schema_version: int = 1
    title: str
    description: str = ""
    size: str
    created: str
    synthetic: bool
    cohorts: list[str]
    patients: int | str = Field(description="reported patients; in words where they are few")
    sites: list[str]
    divisions: str
    folds: int
    fold_names: list[str] = Field(default=[])
    seeds: int
    caution: str | None = None
    settings: dict[str, str] = Field(default={}, description="run settings of every row")
    runs: int
    without_models: dict[str, str] = Field(
        default={}, description="hospital, and arm -> why it trained no model of its own"
    )
    failed: dict[str, str] = Field(default={}, description="run -> why it failed")
    absent: dict[str, str] = Field(default={}, description="row, and task -> why it could not be computed")
    reference: tuple[str, str] = Field(description="arm and protocol that the others are compared with")
    measures: list[str]
    lines: list[Line]
    gains: list[Gain] = Field(default=[])
    left_out: list[LeftOut] = Field(default=[], description="with divisions of kind sites")
    published: list[Published] = Field(default=[])
    versions: dict[str, str] = Field(default={})


def measures_of(study: Study, tasks: Iterable[Task]) -> list[str]:
    """Return the study's measures: its own choice, or AUC and accuracy of each marker and Dice."""
    if study.measures:
        return list(study.measures)
    chosen: list[str] = []
    for task in tasks:
        names = ("dice",) if task is Task.SEGMENTATION else ("auc", "accuracy")
        chosen += [f"{task.value}.{name}" for name in names]
    return chosen


def table_of(
    known: Known,
    measures: Sequence[str],
    order: Sequence[RowName],
    reference: RowName,
    seeds: Sequence[int],
    *,
    resamples: int,
    site: str = "",
    together: bool = False,
) -> dict[RowName, dict[str, Entry]]:
    """Return each row's entries in every measure that it has.

    Rows are measured and compared on the same cases: those that every one of them has, under all seeds.
    Where each hospital has a model of its own, and not all of them have one, that holds for these rows among
    each other, for the others, and for each comparison (``study_models.py``).

    Parameters
    ----------
    order : sequence of RowName
        The table's rows.
    reference : RowName
        What the others are compared with, by the difference on the same resamples and the swap test.
    site : str
        Only this hospital's patients; by default all.
    together : bool
        Measure all rows on the cases, and in the groups, of those in which each hospital has its own model.

    A measure of fewer patients than may be told of (``counts.py``), in all or, of markers, of one status, is
    not computed.
    """
    entries: dict[RowName, dict[str, Entry]] = {row: {} for row in order}
    for measure in measures:
        task, criterion = Task(measure.split(".")[0]), Criterion(measure.split(".")[1])
        rows = [row for row in order if row in known.rows]
        tables = tables_of(known, task, criterion, rows, seeds, site=site, together=together)
        compared: dict[RowName, Comparison] = {}
        for row in tables.rows:
            table, both = tables.of(row), tables.of(row, reference)
            cases = int(np.count_nonzero(table.measured))
            if few := too_few(table):
                entries[row][measure] = Entry(value=Measure(value=None, reason=few), cases=cases)
                continue
            value = interval(criterion, table.rows, table.values[row], resamples=resamples)
            comparison = None
            if row != reference and reference in both.values and not too_few(both):
                comparison = compare(
                    criterion,
                    both.rows,
                    both.values[row],
                    both.values[reference],
                    names=(row.shown(2), reference.shown(2)),
                    resamples=resamples,
                    permutations=PERMUTATIONS_PER_RESAMPLE * resamples - 1,
                )
                compared[row] = comparison
            told = value.value is not None
            notes = notes_of(criterion, tables, row, reference, comparison) if told else []
            entries[row][measure] = Entry(value=value, comparison=comparison, cases=cases, notes=notes)
        adjusted = holm([comparison.p for comparison in compared.values()])
        for row, p in zip(compared, adjusted, strict=True):
            entries[row][measure] = entries[row][measure].model_copy(update={"p_adjusted": p})
    return entries


def gains_of(
    known: Known,
    measures: Sequence[str],
    arms: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
    *,
    resamples: int,
) -> list[Gain]:
    """Return, per hospital and over all, what each protocol gives its patients against training alone.

    The p-values of the hospitals are adjusted for all hospitals and protocols of a measure, those over all
    patients for the protocols. A hospital that has no model of its own is not there, nor is a measure
    without a row ``local``.
    """
    if "local" not in protocols or len(protocols) < 2:
        return []
    gains: list[Gain] = []
    sites = sorted(set(known.site.values()))
    for arm in arms:
        order = [RowName(arm, protocol) for protocol in protocols]
        for site in ("", *sites):
            table = table_of(
                known,
                measures,
                order,
                RowName(arm, "local"),
                seeds,
                resamples=resamples,
                site=site,
                together=True,
            )
            for measure in measures:
                lines = {
                    row.protocol: entries[measure] for row, entries in table.items() if measure in entries
                }
                if "local" in lines and (not site or any(entry.cases for entry in lines.values())):
                    gains.append(Gain(site=site or ALL, arm=arm, measure=measure, lines=lines))
    return _over_hospitals(_without_sums(gains))


def _without_sums(gains: Sequence[Gain]) -> list[Gain]:
    """Return the gains without those from which, with that of all, the one kept back would follow."""
    few = {(gain.arm, gain.measure) for gain in gains if _is_part(gain) and _kept_back(gain)}
    gone = Measure(value=None, reason="it would tell how few another hospital has")
    hidden = {"value": gone, "comparison": None, "p_adjusted": None}
    return [
        gain.model_copy(update={"lines": {n: e.model_copy(update=hidden) for n, e in gain.lines.items()}})
        if _is_part(gain) and (gain.arm, gain.measure) in few and not _kept_back(gain)
        else gain
        for gain in gains
    ]


def _is_part(gain: Gain) -> bool:
    """Whether it is one hospital's share of what stands in the row of all: a sum of answers, or a mean."""
    return gain.site != ALL


def _kept_back(gain: Gain) -> bool:
    return any((entry.value.reason or "").startswith(FEW) for entry in gain.lines.values())


def _over_hospitals(gains: Sequence[Gain]) -> list[Gain]:
    """Return the gains with p-values adjusted for all hospitals and protocols of an arm's measure."""
    families: dict[tuple[str, str], list[tuple[int, str, float | None]]] = {}
    for place, gain in enumerate(gains):
        for protocol, entry in gain.lines.items():
            if gain.site != ALL and entry.comparison is not None:
                tests = families.setdefault((gain.arm, gain.measure), [])
                tests.append((place, protocol, entry.comparison.p))
    adjusted = list(gains)
    for tests in families.values():
        for (place, protocol, _), p in zip(tests, holm([p for _, _, p in tests]), strict=True):
            lines = adjusted[place].lines
            lines = lines | {protocol: lines[protocol].model_copy(update={"p_adjusted": p})}
            adjusted[place] = adjusted[place].model_copy(update={"lines": lines})
    return adjusted
