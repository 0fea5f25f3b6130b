"""A clinical table or a cohort's patients as validated columns: time, event, markers, cohort, age.

Rows that cannot be used are left out, counted by reason, and the first of them named by their line in
the file; nothing is repaired in silence.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import GENES, UNKNOWN, Case, Frozen
from fedglioma.errors import ConfigError, DataError
from fedglioma.survival import values
from fedglioma.survival.columns import Cells, Columns, TimeUnit, choose_columns, unit_of
from fedglioma.survival.markers import Marker, read_marker
from fedglioma.survival.values import Group

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

PARTICIPANTS = "participants.tsv"
NAMED_LINES = 10
MAX_DAYS = 36525.0
"""A hundred years: a follow-up beyond it is in another unit than the column says."""


class LeftOut(Frozen):
    """Rows that took no part, by reason; ``lines`` are the first of them, the header being line 1."""

    reason: str
    rows: int
    lines: tuple[int, ...] = ()


@dataclass(frozen=True)
class SurvivalTable:
    """The n usable patients of a table, and what was left out of its ``rows``.

    ``time`` (n,) is in ``unit``; ``died`` (n,) is False for a censored patient; ``groups`` (n,) holds
    lower-grade, glioblastoma or None; ``age`` (n,) is in years, nan where unknown, None without a column.
    """

    source: str
    rows: int
    columns: Columns
    unit: TimeUnit
    time: FloatArray
    died: BoolArray
    markers: tuple[Marker, ...]
    groups: tuple[Group | None, ...]
    age: FloatArray | None
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()


def read_table(
    path: Path,
    *,
    time: str | None = None,
    event: str | None = None,
    groups: Sequence[str] = (),
    cohort: str | None = None,
    unit: TimeUnit | None = None,
) -> SurvivalTable:
    """Return the usable patients of a CSV or TSV file, or of a cohort folder's ``participants.tsv``.

    Parameters
    ----------
    time, event, cohort : str, optional
        Names of columns; guessed where the table has one reading only.
    groups : sequence of str
        Columns whose classes are compared; without any, IDH, ATRX and 1p/19q as found.
    unit : TimeUnit, optional
        Of the time column, where its name does not state it or states it wrongly.

    Raises
    ------
    ConfigError
        The path or a named column does not exist, or the columns cannot be guessed.
    DataError
        The file is no table, or no row of it is usable.
    """
    file = path / PARTICIPANTS if path.is_dir() else path
    source = f"{path.name}/{PARTICIPANTS}" if path.is_dir() else path.name
    if not file.is_file():
        raise ConfigError(f"{path}: no such table; name a CSV or TSV file, or a folder with {PARTICIPANTS}")
    cells, lines, ragged = _read_cells(file, source)
    columns = choose_columns(cells, source, time=time, event=event, groups=groups, cohort=cohort)
    return _validated(cells, lines, columns, unit or unit_of(columns.time), source, ragged)


def table_from_cases(cases: Iterable[Case], source: str) -> SurvivalTable:
    """Return the usable patients of a cohort that is in memory, one row per patient.

    Raises
    ------
    DataError
        No case has a follow-up.
    """
    names = ("participant_id", "os_days", "os_event", *(gene.value for gene in GENES), "grade", "age")
    rows = [_row_of(case) for case in cases]
    cells = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns = Columns(
        time="os_days",
        event="os_event",
        groups=tuple(gene.value for gene in GENES),
        cohort="grade",
        age="age",
        patient="participant_id",
    )
    return _validated(cells, list(range(1, len(rows) + 1)), columns, TimeUnit.DAYS, source, [])


def _row_of(case: Case) -> tuple[str, ...]:
    outcome = ("", "") if case.outcome is None else (repr(case.outcome.os_days), str(case.outcome.os_event))
    labels = tuple("" if label == UNKNOWN else str(label) for label in case.genotype.labels())
    rest = tuple("" if value is None else str(value) for value in (case.grade, case.age))
    return (case.patient, *outcome, *labels, *rest)


def _read_cells(path: Path, source: str) -> tuple[dict[str, list[str]], list[int], list[int]]:
    """Return columns of text, the line of each row, and the lines of rows with too many cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        delimiter = "\t" if "\t" in first else max(",;", key=first.count)
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text: save the table as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{source}: cannot be read as a table ({error}): save it as CSV in UTF-8") from error
    if "\0" in text:
        raise DataError(f"{source}: not a text table: save it as CSV in UTF-8")
    if len(header) < 2 or not rows:
        raise DataError(f"{source}: no table: expected a line of column names and at least one row below it")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{source}: two columns are named {twice[0]!r}: rename or remove one")
    whole = [(line, row) for line, row in rows if len(row) <= len(header)]
    cells = {
        name: [row[i].strip() if i < len(row) else "" for _, row in whole]
        for i, name in enumerate(header)
        if name
    }
    return (
        cells,
        [line for line, _ in whole],
        [line for line, row in rows if len(row) > len(header)],
    )


def _validated(
    cells: Cells, lines: Sequence[int], columns: Columns, unit: TimeUnit, source: str, ragged: Sequence[int]
) -> SurvivalTable:
    reasons = [_why_not(cells, columns, row) for row in range(len(lines))]
    _mark_repeated(cells, columns, reasons)
    left = [("more cells than columns", line) for line in ragged]
    left += [(reason, line) for reason, line in zip(reasons, lines, strict=True) if reason is not None]
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    left_out = _count(left)
    if not kept:
        counted = "; ".join(f"{entry.reason}: {entry.rows}" for entry in left_out)
        raise DataError(
            f"{source}: no usable row for time {columns.time} and event {columns.event} "
            f"({counted or 'the table is empty'}): check the columns{_coding_hint(cells, columns)}"
        )
    time = np.array([float(cells[columns.time][row]) for row in kept])
    died = np.array([values.died(cells[columns.event][row]) == 1 for row in kept], dtype=bool)
    return SurvivalTable(
        source=source,
        rows=len(lines) + len(ragged),
        columns=columns,
        unit=unit,
        time=time,
        died=died,
        markers=tuple(
            read_marker(name, [cells[name][row] for row in kept], source) for name in columns.groups
        ),
        groups=_groups(cells, columns.cohort, kept),
        age=_ages(cells, columns.age, kept),
        left_out=left_out,
        notes=_notes(columns, unit, time),
    )


def _why_not(cells: Cells, columns: Columns, row: int) -> str | None:
    cell = cells[columns.time][row]
    time = values.number(cell)
    if time is None:
        return f"{columns.time} {'missing' if values.is_missing(cell) else 'not a number'}"
    if time < 0:
        return f"{columns.time} negative"
    event = values.died(cells[columns.event][row])
    if event is None:
        return f"{columns.event} not understood (1 died, 0 censored)"
    return f"{columns.event} missing" if event == UNKNOWN else None


def _mark_repeated(cells: Cells, columns: Columns, reasons: list[str | None]) -> None:
    """Leave out every further usable row of a patient: two would count one death twice."""
    if columns.patient is None:
        return
    seen: set[str] = set()
    for row, cell in enumerate(cells[columns.patient]):
        patient = cell.strip().removeprefix("sub-").casefold()
        if reasons[row] is not None or not patient:
            continue
        if patient in seen:
            reasons[row] = f"patient is in an earlier row too ({columns.patient}); the first is kept"
        seen.add(patient)


def _count(left: Sequence[tuple[str, int]]) -> tuple[LeftOut, ...]:
    by_reason: dict[str, list[int]] = {}
    for reason, line in left:
        by_reason.setdefault(reason, []).append(line)
    return tuple(
        LeftOut(reason=reason, rows=len(found), lines=tuple(sorted(found)[:NAMED_LINES]))
        for reason, found in by_reason.items()
    )


def _coding_hint(cells: Cells, columns: Columns) -> str:
    known = {values.number(cell) for cell in cells[columns.event] if not values.is_missing(cell)}
    if known and known <= {1.0, 2.0}:
        return f"; {columns.event} holds 1 and 2: write 0 for censored and 1 for died"
    return ""


def _groups(cells: Cells, cohort: str | None, kept: Sequence[int]) -> tuple[Group | None, ...]:
    if cohort is None:
        return (None,) * len(kept)
    return tuple(values.group(cells[cohort][row]) for row in kept)


def _ages(cells: Cells, column: str | None, kept: Sequence[int]) -> FloatArray | None:
    """Return ages in years; None where the column is empty or holds another unit, such as days."""
    if column is None:
        return None
    read = [values.number(cells[column][row]) for row in kept]
    ages = np.array([np.nan if age is None or age < 0 else age for age in read])
    return None if np.isnan(ages).all() or float(np.nanmedian(ages)) > 120 else ages


def _notes(columns: Columns, unit: TimeUnit, time: FloatArray) -> tuple[str, ...]:
    notes = []
    longest = float(time.max()) * {TimeUnit.MONTHS: 30.4375, TimeUnit.YEARS: 365.25}.get(unit, 1.0)
    if unit is TimeUnit.UNKNOWN:
        notes.append(f"the unit of {columns.time} is not known: name it with --unit days, months or years")
    elif longest > MAX_DAYS:
        notes.append(
            f"{columns.time} reaches {time.max():g} {unit.value}, over a hundred years: "
            "if the unit is another, name it with --unit"
        )
    if "censor" in columns.event.casefold():
        notes.append(f"{columns.event} was read as 1 died, 0 censored: check that it is not the reverse")
    return tuple(notes)
