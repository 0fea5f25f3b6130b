"""On which cases a study's rows are measured and compared, and of which models their figures are means.

Where each hospital has a model of its own, a fold has several. Scores of different models share no scale, so
that no AUC is taken across them: it is the mean of the models' own. A row of one model in each fold that is
compared with such a row is measured in the same groups, hospital by hospital. All other measures judge each
case by itself, and are means over folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedglioma.case import Task
from fedglioma.counts import coded
from fedglioma.metrics.criterion import Criterion, fold_values
from fedglioma.metrics.paired import Comparison
from fedglioma_server.study_alone import OWN_MODELS
from fedglioma_server.study_results import Known, RowName, TaskTable, too_few


@dataclass(frozen=True)
class Tables:
    """One measure's cases: ``whole`` of the rows with one model in each fold, ``alone`` of all rows."""

    whole: TaskTable
    alone: TaskTable
    site: str = ""

    @property
    def rows(self) -> tuple[RowName, ...]:
        """All rows that are asked this task."""
        return tuple(self.alone.values)

    def of(self, *rows: RowName) -> TaskTable:
        """Return where a row is measured, or several are compared."""
        return self.alone if any(_of_hospitals(row) for row in rows) else self.whole


def tables_of(
    known: Known,
    task: Task,
    criterion: Criterion,
    rows: Sequence[RowName],
    seeds: Sequence[int],
    *,
    site: str = "",
    together: bool = False,
) -> Tables:
    """Return a measure's cases: patients whose hospital has no model of its own leave only what concerns it.

    They leave all rows where they are few, or of one status few, whose figures would follow from the
    difference, and where everything is to be measured ``together``.
    """
    several = [row for row in rows if _of_hospitals(row) and task in known.rows[row].values]
    if not several:
        whole = known.table(task, rows, seeds, site)
        return Tables(whole, whole, site)
    alone = known.table(task, rows, seeds, site, by_hospital=criterion is Criterion.AUC)
    if together:
        return Tables(alone, alone, site)
    whole = known.table(task, [row for row in rows if not _of_hospitals(row)], seeds, site)
    both = _patients(alone)
    if too_few(whole.part(np.array([key[1] not in both for key in whole.keys], dtype=np.bool_))):
        whole = known.table(task, rows, seeds, site)
    return Tables(whole, alone, site)


def notes_of(
    criterion: Criterion, tables: Tables, row: RowName, reference: RowName, comparison: Comparison | None
) -> list[str]:
    """Return what else to know of a row's number: of what it is a mean, and where it is compared."""
    several = any(map(_of_hospitals, tables.rows)) and tables.of(row) is tables.alone
    notes = [_mean_of(criterion, tables, row)] if several else []
    if comparison is not None and tables.of(row) is not tables.of(reference) and _apart(criterion, tables):
        row_there, value = (
            (reference, comparison.value_b) if _of_hospitals(row) else (row, comparison.value_a)
        )
        if value.value is not None:
            how = "hospital by hospital" if criterion is Criterion.AUC else "on the same cases"
            notes.append(f"compared {how}, where {row_there.shown(2)} has {value.value:.2f}")
    return [note for note in notes if note]


def _mean_of(criterion: Criterion, tables: Tables, row: RowName) -> str:
    table, all_cases = tables.of(row), int(tables.whole.measured.sum())
    if criterion is not Criterion.AUC:
        cases = int(table.measured.sum())
        return f"{cases:,} of {all_cases:,} cases, of hospitals with a model" if cases < all_cases else ""
    defined = ~np.isnan(fold_values(criterion, table.rows, table.values[row])[:, 0])
    groups = np.unique(table.rows.folds)
    used = int((np.isin(table.rows.folds, groups[defined]) & table.measured).sum())
    measured = int(table.measured.sum())
    cases = max(all_cases, measured)
    if defined.all() and used == cases:
        return "" if tables.site else f"mean of {len(groups)} models, each hospital's in each fold"
    # What a hospital's numbers may be said to be is decided for all hospitals at once, elsewhere.
    told = not tables.site and coded([used, measured - used, cases - measured]) is None
    numbers = f", {used:,} of {cases:,} cases" if told else ""
    why = "" if defined.all() else "; the cases of the others are of one class"
    return f"mean of {int(defined.sum())} of {len(groups)} models, each hospital's in each fold{numbers}{why}"


def _apart(criterion: Criterion, tables: Tables) -> bool:
    """Whether a row has another value where it is compared: in other groups, or on fewer cases."""
    return criterion is Criterion.AUC or tables.whole.measured.sum() != tables.alone.measured.sum()


def _patients(table: TaskTable) -> set[str]:
    return {key[1] for key, known in zip(table.keys, table.measured, strict=True) if known}


def _of_hospitals(row: RowName) -> bool:
    return row.protocol in OWN_MODELS
