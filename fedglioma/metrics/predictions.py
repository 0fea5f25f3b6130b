"""What a model said of a set of cases, as arrays and as ``evaluation/predictions.csv``."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import GENES, UNKNOWN, Gene
from fedglioma.errors import DataError, FedGliomaError
from fedglioma.newfile import replacing

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

THRESHOLD = 0.5
"""A case is called mutant or codeleted from this probability on: the argmax of two classes."""

CASE_COLUMNS = ("case", "site", "modalities", "split")
COLUMNS = (*CASE_COLUMNS, *(name for gene in GENES for name in (gene.value, f"p_{gene.value}")))
TUMOUR_COLUMNS = ("dice", "hd95_mm", "tumour_ml", "outlined_ml")
"""Of a network that segments: overlap and distance to what was outlined, and both volumes."""


@dataclass(frozen=True)
class Predictions:
    """Labels and probabilities of n cases, and what the tables group them by.

    ``labels`` (n, 3) holds 0, 1 or ``UNKNOWN``; ``probabilities`` (n, 3) those of class 1 (mutant or
    codeleted), both in task order; those of a gene that is not among ``genes`` are NaN: the network was not
    asked. ``tumours`` (n, 4) has ``TUMOUR_COLUMNS``, NaN where undefined; None where the network does not
    segment. ``sites``, ``modalities`` (as ``subset_name`` gives them) and ``split`` have n entries.
    ``patients`` (n,) says which cases are of one patient, so that the bootstrap draws them together; its
    integers mean nothing else.

    Raises
    ------
    FedGliomaError
        Lengths differ, a label is not 0, 1 or ``UNKNOWN``, or a probability lies outside [0, 1] or is
        not a number, as a network that diverged gives it.
    """

    labels: IntArray
    probabilities: FloatArray
    sites: tuple[str, ...]
    modalities: tuple[str, ...]
    split: tuple[str, ...]
    patients: IntArray
    genes: tuple[Gene, ...] = GENES
    tumours: FloatArray | None = None

    def __post_init__(self) -> None:
        n = len(self.sites)
        shapes = {"labels": self.labels.shape, "probabilities": self.probabilities.shape}
        for name, shape in shapes.items():
            if shape != (n, len(GENES)):
                raise FedGliomaError(f"predictions: {name} has shape {shape}, expected {(n, len(GENES))}")
        lengths = (len(self.modalities), len(self.split), len(self.patients))
        if lengths != (n, n, n):
            raise FedGliomaError(
                f"predictions: {n} sites, but {lengths[0]} modality sets, {lengths[1]} splits and "
                f"{lengths[2]} patients: one of each per case"
            )
        if not np.isin(self.labels, (UNKNOWN, 0, 1)).all():
            raise FedGliomaError(f"predictions: a label is not 0, 1 or {UNKNOWN} (unknown)")
        if self.tumours is not None and self.tumours.shape != (n, len(TUMOUR_COLUMNS)):
            raise FedGliomaError(f"predictions: {self.tumours.shape} figures of tumours for {n} cases")
        asked = np.array([gene in self.genes for gene in GENES])
        bad = ~((self.probabilities >= 0) & (self.probabilities <= 1)) & asked
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise FedGliomaError(
                f"predictions: case {row + 1}: p_{GENES[column].value} is "
                f"{self.probabilities[row, column]}, not a probability: if it is nan, training diverged; "
                "lower the learning rate"
            )

    def __len__(self) -> int:
        return len(self.sites)

    def select(self, mask: BoolArray) -> "Predictions":
        """Return the cases where ``mask`` (n,) is true, in the same order."""
        kept = [int(i) for i in np.flatnonzero(mask)]
        return replace(
            self,
            labels=self.labels[mask],
            probabilities=self.probabilities[mask],
            sites=tuple(self.sites[i] for i in kept),
            modalities=tuple(self.modalities[i] for i in kept),
            split=tuple(self.split[i] for i in kept),
            patients=self.patients[mask],
            tumours=None if self.tumours is None else self.tumours[mask],
        )

    def calls(self) -> IntArray:
        """Return the class that the network names, (n, 3): 0, 1, or ``UNKNOWN`` where it was not asked."""
        asked = np.array([gene in self.genes for gene in GENES])
        return np.where(asked, self.probabilities >= THRESHOLD, UNKNOWN).astype(np.int64)

    def write_csv(self, path: Path) -> None:
        """Write one row per case under a running number; an unknown label is an empty cell.

        Which cases are of one patient is not written: the file names nobody, not even by a pattern.
        Probabilities keep all their digits, so that what is computed from the file agrees exactly.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS if self.tumours is None else (*COLUMNS, *TUMOUR_COLUMNS))
        for i in range(len(self)):
            cells: list[str] = [str(i + 1), self.sites[i], self.modalities[i], self.split[i]]
            for label, probability in zip(self.labels[i], self.probabilities[i], strict=True):
                cells.append("" if label == UNKNOWN else str(int(label)))
                cells.append(_cell(probability))
            if self.tumours is not None:
                cells += [_cell(value) for value in self.tumours[i]]
            writer.writerow(cells)
        with replacing(path) as file:
            file.write(table.getvalue().encode())


def read_csv(path: Path) -> Predictions:
    """Return the predictions of a file that ``Predictions.write_csv`` wrote.

    The file does not say which cases share a patient, so every case counts as a patient of its own:
    curves and point values are exact, intervals of a cohort with repeated visits come out too narrow.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, or a cell is not what its column holds.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: cannot be read ({error}): run the evaluation again") from error
    columns = tuple(rows[0]) if rows else ()
    if columns not in (COLUMNS, (*COLUMNS, *TUMOUR_COLUMNS)):
        raise DataError(f"{path.name}: the columns must be {','.join(COLUMNS)}")
    body = rows[1:]
    for line, row in enumerate(body, start=2):
        if len(row) != len(columns):
            raise DataError(f"{path.name}: line {line}: {len(row)} cells, expected {len(columns)}")
    first, last = len(CASE_COLUMNS), len(COLUMNS)
    labels = [[_label(path, i + 2, c) for c in row[first:last:2]] for i, row in enumerate(body)]
    told = [row[first + 1 : last : 2] for row in body]
    asked = [not body or any(row[column] for row in told) for column in range(len(GENES))]
    probabilities = [
        [_probability(path, i + 2, c) if asked[g] else math.nan for g, c in enumerate(row)]
        for i, row in enumerate(told)
    ]
    tumours = [[_figure(path, i + 2, c) for c in row[last:]] for i, row in enumerate(body)]
    return Predictions(
        labels=np.array(labels, dtype=np.int64).reshape(-1, len(GENES)),
        probabilities=np.array(probabilities, dtype=np.float64).reshape(-1, len(GENES)),
        genes=tuple(gene for gene, column in zip(GENES, asked, strict=True) if column),
        tumours=None
        if columns == COLUMNS
        else np.array(tumours, dtype=np.float64).reshape(-1, len(TUMOUR_COLUMNS)),
        sites=_column(body, "site"),
        modalities=_column(body, "modalities"),
        split=_column(body, "split"),
        patients=np.arange(len(body), dtype=np.int64),
    )


def _column(body: Sequence[Sequence[str]], name: str) -> tuple[str, ...]:
    place = COLUMNS.index(name)
    return tuple(row[place] for row in body)


def _label(path: Path, line: int, cell: str) -> int:
    known = {"": UNKNOWN, "0": 0, "1": 1}
    if cell not in known:
        raise DataError(f"{path.name}: line {line}: label {cell!r} is not 0, 1 or empty (unknown)")
    return known[cell]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _figure(path: Path, line: int, cell: str) -> float:
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise DataError(f"{path.name}: line {line}: {cell!r} is not a figure of a tumour")
    return value


def _probability(path: Path, line: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise DataError(f"{path.name}: line {line}: {cell!r} is not a probability")
    return value
