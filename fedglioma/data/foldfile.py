"""A division of patients that somebody wrote down: a CSV or TSV table, checked line by line."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Final

from fedglioma.data.folds import Division
from fedglioma.data.manifest import bare_id, patient_key
from fedglioma.data.smallfile import read_small
from fedglioma.data.split import Split
from fedglioma.errors import ConfigError
from fedglioma.words import one_line, quoted

_MAX_BYTES: Final = 16 << 20
_MAX_DIGITS: Final = 9
# Without case, spaces, hyphens and underscores. The first that a table has counts: UID, where there is a
# patient's id too, is the scan's.
_PATIENT_COLUMNS: Final = ("participantid", "patientid", "subjectid", "patient", "subject", "uid")
_SPLIT_COLUMNS: Final = ("split",)
_FOLD_COLUMNS: Final = ("fold",)
_SPLIT_WORDS: Final = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "selection": Split.SELECTION,
    "val": Split.SELECTION,
    "valid": Split.SELECTION,
    "validation": Split.SELECTION,
    "report": Split.REPORT,
    "test": Split.REPORT,
    "testing": Split.REPORT,
}


def read_division(path: Path) -> tuple[Division, ...]:
    """Return the divisions of a table, one per fold that it names, in the table's order.

    One row per patient, or per patient and fold where there is a column ``fold``: ``participant_id``
    (also PatientID, Subject_ID, UID, in any case) and ``split``, which is train or training; selection,
    val, valid or validation; report, test or testing. Other columns are ignored. Without folds the
    division has the file's name; a fold that is a number n is ``fold-n``.

    Raises
    ------
    ConfigError
        The file cannot be read, is no table, or lacks a column; a row has no patient, an unknown split
        or fold, or repeats a patient; nobody trains in a fold. It names lines, not patients.
    """
    header, rows = _read_rows(path)
    patient_at = _needed(header, _PATIENT_COLUMNS, "participant_id", path)
    split_at = _needed(header, _SPLIT_COLUMNS, "split", path)
    fold_at = _column(header, _FOLD_COLUMNS, path)
    divisions: dict[str, dict[str, Split]] = {}
    lines: dict[tuple[str, str], int] = {}
    for line, row in rows:
        place = f"{path.name}: line {line}"
        if len(row) != len(header):
            raise ConfigError(f"{place}: {len(row)} cells, the header line has {len(header)}")
        patient = bare_id(row[patient_at])
        if not patient:
            raise ConfigError(f"{place}: no patient: write the cohort's participant_id")
        fold = path.stem if fold_at is None else _fold(row[fold_at], place)
        part = _split(row[split_at], place)
        first = lines.setdefault((fold, patient_key(patient)), line)
        if first != line:
            raise ConfigError(
                f"{place}: the patient is in line {first} too: one row per patient"
                + ("" if fold_at is None else " and fold")
            )
        divisions.setdefault(fold, {})[patient] = part
    for fold, split in divisions.items():
        if Split.TRAIN not in split.values():
            where = path.name if fold_at is None else f"{path.name}: {fold}"
            raise ConfigError(f"{where}: nobody trains: give some patients the split train")
    return tuple(Division(name=fold, split=split) for fold, split in divisions.items())


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header line and the numbered rows, none of them blank."""
    try:
        text = read_small(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: name a CSV or TSV file of patients and splits") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: not UTF-8 text: save the table as CSV in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read ({error.strerror}): check the file") from None
    if "\0" in text:
        raise ConfigError(f"{path.name}: not a text table: save it as CSV in UTF-8")
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else max(",;", key=first.count)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        numbered = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigError(f"{path.name}: line {reader.line_num}: {error}: save the table as CSV") from None
    if not numbered:
        raise ConfigError(f"{path.name}: empty: write a header line and one row per patient")
    if len(numbered) == 1:
        raise ConfigError(f"{path.name}: no row below the header line: write one per patient")
    return numbered[0][1], numbered[1:]


def _needed(header: Sequence[str], known: Sequence[str], name: str, path: Path) -> int:
    place = _column(header, known, path)
    if place is None:
        raise ConfigError(f"{path.name}: no column {name} in the header line: add it, or rename yours")
    return place


def _column(header: Sequence[str], known: Sequence[str], path: Path) -> int | None:
    names = ["".join(sign for sign in cell.casefold() if sign not in " _-") for cell in header]
    for name in known:
        if names.count(name) > 1:
            raise ConfigError(f"{path.name}: two columns are named {name}: rename or remove one")
        if name in names:
            return names.index(name)
    return None


def _fold(cell: str, place: str) -> str:
    text = cell.strip()
    if not text:
        raise ConfigError(f"{place}: no fold: write one row per patient and fold")
    number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return f"fold-{int(text)}" if number else one_line(text)


def _split(cell: str, place: str) -> Split:
    part = _SPLIT_WORDS.get(cell.strip().casefold())
    if part is None:
        raise ConfigError(
            f"{place}: split {quoted(cell.strip(), 40)} is not one of {', '.join(_SPLIT_WORDS)}"
        )
    return part
