"""A study's values fold by fold and seed by seed, and what is to be said beside their mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import GENES, TASK_TITLES, UNKNOWN, Gene, Task
from fedglioma.counts import DASH, coded, roughly, shown
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.criterion import Criterion, defined_mean, fold_values
from fedglioma.metrics.paired import interval
from fedglioma_server import report_text as words
from fedglioma_server.study_alone import OWN_MODELS
from fedglioma_server.study_models import tables_of
from fedglioma_server.study_results import CaseKey, Known, RowName, TaskTable, too_few
from fedglioma_server.study_table import Entry, LeftOut

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

KEPT_BACK = "not told, or that of a hospital of few patients would follow"
_UNDEFINED = {
    Criterion.DICE: "no outline",
    Criterion.ACCURACY: "no known status",
    Criterion.PPV: "nobody called so",
    Criterion.NPV: "nobody called so",
}
"""Why a fold has no value; for the other measures it has one class only."""


def leave_out_numberless(
    known: Known, tasks: Sequence[Task], order: Sequence[RowName], seeds: Sequence[int]
) -> dict[str, str]:
    """Take out of a task the rows that have no number for a case that others have; return which, and why."""
    absent: dict[str, str] = {}
    for task in tasks:
        rows = [row for row in order if row in known.rows and task in known.rows[row].values]
        for row in rows:
            numbers = known.rows[row].values[task]
            if any(
                not np.isfinite([values[seed] for seed in seeds if seed in values]).all()
                for key, values in numbers.items()
                if _has_target(known, task, rows, key)
            ):
                absent[f"{row.shown(2)}, {TASK_TITLES[task]}"] = (
                    "it has no number for a case that others have; if training diverged, lower the learning "
                    "rate and make its runs again"
                )
    for task in tasks:
        for row in order:
            if row in known.rows and f"{row.shown(2)}, {TASK_TITLES[task]}" in absent:
                del known.rows[row].values[task]
    return absent


def with_folds(
    entries: Mapping[RowName, Mapping[str, Entry]],
    known: Known,
    seeds: Sequence[int],
    folds: int,
) -> dict[RowName, dict[str, Entry]]:
    """Return a table's entries with their values by fold and seed, and the notes beside them."""
    found: dict[RowName, dict[str, Entry]] = {row: {} for row in entries}
    for measure in dict.fromkeys(name for row in entries.values() for name in row):
        task, criterion = _parts(measure)
        rows = [row for row in entries if measure in entries[row]]
        for row in rows:
            entry = entries[row][measure]
            if entry.value.value is not None:
                table = tables_of(known, task, criterion, rows, seeds).of(row)
                values = _values(criterion, table, row)
                by_fold = _by_fold(table, values, folds)
                hidden = _hidden(criterion, table, folds)
                notes = [
                    _mean_of(criterion, table, row, by_fold),
                    _guessed(known, table, row),
                    _lacking(known, task, rows, row),
                ]
                entry = entry.model_copy(
                    update={
                        "by_fold": _told(np.where(hidden[:, None], np.nan, by_fold)),
                        "by_seed": _told(defined_mean(values)),
                        "notes": [*entry.notes, *filter(None, notes)],
                    }
                )
            found[row][measure] = entry
    return found


def left_out_of(
    entries: Mapping[RowName, Mapping[str, Entry]],
    known: Known,
    seeds: Sequence[int],
    sites: Sequence[str],
    *,
    resamples: int,
) -> list[LeftOut]:
    """Return each row's measures at each hospital, where ``sites`` are the folds' in their order."""
    found = []
    for measure in dict.fromkeys(name for row in entries.values() for name in row):
        task, criterion = _parts(measure)
        rows = [row for row in entries if measure in entries[row]]
        table = known.table(task, rows, seeds)
        hidden = _hidden(criterion, table, len(sites))
        parts = [table.part(_of_fold(table, fold)) for fold in range(len(sites))]
        counts = [int(part.measured.sum()) for part in parts]
        codes = coded(counts)
        for fold, site in enumerate(sites):
            cases = counts[fold] if codes is None else roughly(codes[fold])
            for row in rows:
                if hidden[fold]:
                    value = Measure(value=None, reason=too_few(parts[fold]) or KEPT_BACK)
                else:
                    value = _general(
                        interval(criterion, parts[fold].rows, parts[fold].values[row], resamples=resamples)
                    )
                found.append(
                    LeftOut(
                        site=site,
                        arm=row.arm,
                        protocol=row.protocol,
                        measure=measure,
                        value=value,
                        cases=cases,
                    )
                )
    return found


def _parts(measure: str) -> tuple[Task, Criterion]:
    task, _, criterion = measure.partition(".")
    return Task(task), Criterion(criterion)


def _of_fold(table: TaskTable, fold: int) -> BoolArray:
    return np.array([key[0] == fold for key in table.keys], dtype=bool)


def _values(criterion: Criterion, table: TaskTable, row: RowName) -> FloatArray:
    """Return a row's measure by what its mean is of, shape (groups, seeds), nan where it is undefined."""
    return fold_values(criterion, table.rows, table.values[row])


def _folds_of(table: TaskTable) -> IntArray:
    """Return the fold of each group of cases that a mean is of, shape (groups,)."""
    _, first = np.unique(table.rows.folds, return_index=True)
    return np.array([table.keys[place][0] for place in first], dtype=np.int64)


def _by_fold(table: TaskTable, values: FloatArray, folds: int) -> FloatArray:
    """Return the means by fold of ``values`` (groups, seeds), shape (folds, seeds)."""
    of = _folds_of(table)
    return np.array([defined_mean(values[of == fold]) for fold in range(folds)])


def _hidden(criterion: Criterion, table: TaskTable, folds: int) -> BoolArray:
    """Return the folds of too few patients, with others so that none follows from the mean.

    It would where a row has, under a seed, no other hidden fold in its mean: one that does not define the
    measure is none.
    """
    parts = [table.part(_of_fold(table, fold)) for fold in range(folds)]
    few = np.array([bool(too_few(part)) for part in parts])
    hidden = few.copy()
    means = [_by_fold(table, _values(criterion, table, row), folds) for row in table.values]
    for mean in means:
        for defined in np.isfinite(mean).T:
            told = np.flatnonzero(defined & ~hidden)
            if len(told) and (defined & few).any() and (defined & hidden).sum() == 1:
                hidden[min(told, key=lambda fold: int(parts[fold].measured.sum()))] = True
    return hidden


def _told(values: FloatArray) -> list[Any]:
    """Return numbers as lists, None where there is none."""
    return [_told(value) if value.ndim else _number(float(value)) for value in values]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _mean_of(criterion: Criterion, table: TaskTable, row: RowName, by_fold: FloatArray) -> str:
    """Return which folds are in a mean; empty where all are, or where it is of several models in each."""
    used: BoolArray = np.asarray(np.isfinite(by_fold).any(axis=1))
    if used.all() or (criterion is Criterion.AUC and row.protocol in OWN_MODELS):
        return ""
    cases = int(table.measured.sum())
    counted = sum(bool(used[key[0]]) for key, known in zip(table.keys, table.measured, strict=True) if known)
    numbers = f", {counted:,} of {cases:,} cases" if coded([counted, cases - counted]) is None else ""
    why = _UNDEFINED.get(criterion, "one class only")
    return f"mean of {int(used.sum())} of {len(used)} folds{numbers}; the others do not define it: {why}"


def _guessed(known: Known, table: TaskTable, row: RowName) -> str:
    """Return of how many cases a row knows what it learns from; empty where of all."""
    readings = known.rows[row]
    own = [key not in readings.guessed for key, has in zip(table.keys, table.measured, strict=True) if has]
    if all(own):
        return ""
    codes = coded([sum(own), len(own) - sum(own)])
    number = f"{sum(own):,}" if codes is None else roughly(codes[0])
    if number == DASH:
        number = "some"
    return f"{readings.learns_from} known in {number} of {len(own):,} cases; the others count as the median"


def _lacking(known: Known, task: Task, rows: Sequence[RowName], row: RowName) -> str:
    """Return how many cases leave all rows because this one has no number for them; empty where none."""
    own = known.rows[row].values[task]
    others = {key for other in rows for key in known.rows[other].values[task]}
    lacked = [key for key in others if key not in own and _has_target(known, task, rows, key)]
    # Of hospitals that train alone some may have no model; what that means for the others is told there.
    if not lacked or row.protocol in OWN_MODELS:
        return ""
    return f"no number for {shown(len(lacked))} cases, which are left out of every row"


def _has_target(known: Known, task: Task, rows: Sequence[RowName], key: CaseKey) -> bool:
    """Return whether a case has a known status or, for Dice, an outline: then some row has a number."""
    if task is not Task.SEGMENTATION:
        return known.labels[key][GENES.index(Gene(task))] != UNKNOWN
    return any(
        np.isfinite(value) for row in rows for value in known.rows[row].values[task].get(key, {}).values()
    )


def _general(measure: Measure) -> Measure:
    """Return one fold's measure with a reason that names no number of patients."""
    if measure.reason is None:
        return measure
    reason = words.general(measure.reason.removeprefix("in every fold: "))
    return measure.model_copy(update={"reason": reason})
