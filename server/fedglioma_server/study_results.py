"""What a study's runs found, put side by side: every arm's predictions of the same patients."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import GENES, UNKNOWN, Gene, Task
from fedglioma.counts import PASSED_ON, is_few
from fedglioma.data.plan import load_plan
from fedglioma.metrics.criterion import Rows
from fedglioma.metrics.predictions import Predictions, read_csv
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from fedglioma_server.study_cells import Cell

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FEW = "fewer than"
"""How the reason begins why a measure is kept back."""

CaseKey = tuple[int, str, int]
"""Fold, patient, and the place of the case among the patient's in that fold."""


@dataclass(frozen=True)
class RowName:
    """A row of a study's tables: an arm under a protocol, or something that needs no network."""

    arm: str
    protocol: str = ""

    def shown(self, protocols: int) -> str:
        """Return the row's name; the protocol only where a study has several."""
        return f"{self.arm}, {self.protocol}" if self.protocol and protocols > 1 else self.arm


@dataclass
class Readings:
    """What one row says: per task, case and seed the probability of class 1, or the Dice.

    ``learns_from`` is the one thing that a row without a network knows of a patient, ``guessed`` are the
    cases of whom it does not know it.
    """

    values: dict[Task, dict[CaseKey, dict[int, float]]] = field(default_factory=dict)
    learns_from: str = ""
    guessed: set[CaseKey] = field(default_factory=set)

    def add(self, task: Task, key: CaseKey, seed: int, value: float) -> None:
        """Enter one value."""
        self.values.setdefault(task, {}).setdefault(key, {})[seed] = value


@dataclass
class Known:
    """What is known of the reported cases, and what each row says of them."""

    site: dict[CaseKey, str] = field(default_factory=dict)
    labels: dict[CaseKey, tuple[int, ...]] = field(default_factory=dict)
    rows: dict[RowName, Readings] = field(default_factory=dict)

    def take(self, cell: Cell, out: Path, site_of: Mapping[str, str]) -> None:
        """Enter what a finished run says of the patients that it reports.

        Of a hospital that trained alone, only what it says of its own patients is entered: that is the model
        that this hospital would have.
        """
        folder = RunFolder(cell.folder(out))
        plan = load_plan(plan_file(folder))
        predictions = read_csv(folder.evaluation / "predictions.csv")
        patients = [item.case.patient for item in (*plan.selection, *plan.report)]
        self.enter(RowName(cell.arm.name, cell.protocol), cell, patients, predictions, site_of)

    def enter(
        self,
        row: RowName,
        cell: Cell,
        patients: Sequence[str],
        predictions: Predictions,
        site_of: Mapping[str, str],
    ) -> None:
        """Enter predictions that stand in the order of ``patients``; only those of the split ``report``."""
        readings = self.rows.setdefault(row, Readings())
        seen: dict[str, int] = {}
        for place, patient in enumerate(patients):
            if predictions.split[place] != "report":
                continue
            key = (cell.fold, patient, seen.get(patient, 0))
            seen[patient] = key[2] + 1
            if cell.site and site_of[patient] != cell.site:
                continue
            self.site[key] = site_of[patient]
            self.labels[key] = tuple(int(label) for label in predictions.labels[place])
            for gene in predictions.genes:
                value = float(predictions.probabilities[place, GENES.index(gene)])
                readings.add(Task(gene), key, cell.seed, value)
            if predictions.tumours is not None:
                readings.add(Task.SEGMENTATION, key, cell.seed, float(predictions.tumours[place, 0]))

    def table(
        self,
        task: Task,
        rows: Iterable[RowName],
        seeds: Sequence[int],
        site: str = "",
        *,
        by_hospital: bool = False,
    ) -> "TaskTable":
        """Return what the rows say of the cases that all of them have, under every seed.

        ``by_hospital`` counts each hospital's cases in a fold as a fold: those that one model reports where
        every hospital has its own.
        """
        names = [name for name in rows if task in self.rows[name].values]
        keys = [
            key
            for key in sorted(self.labels)
            if (not site or self.site[key] == site)
            and all(set(self.rows[name].values[task].get(key, {})) >= set(seeds) for name in names)
        ]
        people = {patient: number for number, patient in enumerate(sorted({key[1] for key in keys}))}
        models = [(key[0], self.site[key] if by_hospital else "") for key in keys]
        numbers = {model: number for number, model in enumerate(sorted(set(models)))}
        index = GENES.index(Gene(task)) if task is not Task.SEGMENTATION else -1
        labels = [self.labels[key][index] if index >= 0 else UNKNOWN for key in keys]
        return TaskTable(
            Rows(
                patients=np.array([people[key[1]] for key in keys], dtype=np.int64),
                folds=np.array([numbers[model] for model in models], dtype=np.int64),
                labels=np.array(labels, dtype=np.int64) if index >= 0 else None,
            ),
            {
                name: np.array(
                    [[self.rows[name].values[task][key][seed] for seed in seeds] for key in keys],
                    dtype=np.float64,
                ).reshape(len(keys), len(seeds))
                for name in names
            },
            tuple(keys),
        )


@dataclass(frozen=True)
class TaskTable:
    """One task: the reported cases, and per row its values, shape (cases, seeds)."""

    rows: Rows
    values: dict[RowName, FloatArray]
    keys: tuple[CaseKey, ...] = ()

    @property
    def measured(self) -> BoolArray:
        """Which cases have a target: a known status or, for Dice, an outline; shape (cases,)."""
        some: BoolArray = np.zeros(len(self.rows.patients), dtype=np.bool_)
        if self.rows.labels is not None:
            some |= self.rows.labels != UNKNOWN
            return some
        for values in self.values.values():
            some |= ~np.isnan(values).all(axis=1)
        return some

    def part(self, mask: BoolArray) -> "TaskTable":
        """Return the cases where ``mask`` (cases,) is true."""
        keys = tuple(key for key, kept in zip(self.keys, mask, strict=True) if kept)
        return TaskTable(
            self.rows.select(mask), {name: values[mask] for name, values in self.values.items()}, keys
        )


def too_few(table: TaskTable) -> str:
    """Return why a measure of these cases is not told; empty where it is.

    They are of few patients in all or, of markers, of one status.
    """
    labels = table.rows.labels
    groups = [table.measured] if labels is None else [labels == 0, labels == 1]
    if any(is_few(len(np.unique(table.rows.patients[group]))) for group in groups):
        return f"{FEW} {PASSED_ON} patients" + (" of one status" if labels is not None else "")
    return ""
