"""A study expanded into cells: one run each, of an arm, a protocol, a fold, a seed and, alone, a hospital."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedglioma.case import Case, Gene, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.foldfile import read_division
from fedglioma.data.folds import (
    Division,
    check_division,
    leave_one_site_out,
    stratified_folds,
    stratum_of,
)
from fedglioma.data.split import Split, assign_split
from fedglioma.errors import ConfigError
from fedglioma_server.spending import with_noise
from fedglioma_server.study_file import MOST_CELLS, Arm, Divisions, Protocol, Study

POOLED = "pooled"
"""The one site of a centralised run: all hospitals' training patients in one place."""
FINETUNE_SHARE = 10
"""A hospital that goes on alone trains a tenth of the federation's rounds, unless the study says so."""
ALONE: dict[str, Any] = {"strategy": "fedavg", "quorum": 1}


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    ``fold`` is the division's place among the study's. ``site`` is the hospital that trains alone, empty
    where all do.
    """

    arm: Arm
    protocol: Protocol
    seed: int
    fold: int
    division: Division
    settings: RunConfig
    site: str = ""

    def folder(self, out: Path) -> Path:
        """Return the cell's run folder."""
        place = out / "runs" / self.arm.slug / self.protocol / f"seed-{self.seed}" / f"fold-{self.fold + 1}"
        return place / self.site if self.site else place

    def starts_from(self, out: Path) -> Path | None:
        """Return the released model that the run goes on from; None where it starts untrained."""
        if self.protocol != "finetuned":
            return None
        shared = Cell(self.arm, "federated", self.seed, self.fold, self.division, self.settings)
        return shared.folder(out) / "model"

    @property
    def words(self) -> str:
        """The cell for a log."""
        alone = f", {self.site} alone" if self.site else ""
        return f"{self.arm.name}, {self.protocol}{alone}, seed {self.seed}, fold {self.fold + 1}"


def expand(study: Study, cases: Sequence[Case], given: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return the study's cells in the order in which they are to run.

    Parameters
    ----------
    cases : sequence of Case
        All usable cases under their sites' names.
    given : mapping
        Run settings that stand above the study's own.

    Raises
    ------
    ConfigError
        A setting is not allowed, the patients cannot be divided as asked, or there would be too many cells.
    """
    if "seed" in given:
        raise ConfigError(f"{study.file}: seeds stand in the study; leave --seed out")
    for arm in study.arms:
        for name in arm.settings:
            if name.replace("-", "_") in given:
                raise ConfigError(
                    f"{study.file}: the arms differ in {name}; typed or set for all of them, it would make "
                    "them one: leave it out"
                )
    settings = {
        (arm.name, seed): with_noise(study.settings(arm, seed, given))
        for arm in study.arms
        for seed in study.seeds
    }
    _require_tasks(study, {task for run in settings.values() for task in run.tasks})
    divisions = divide(study.divisions, cases, settings[study.arms[0].name, study.seeds[0]])
    site_of = {case.patient: case.site for case in cases}
    cells = [
        cell
        for seed in study.seeds
        for fold, division in enumerate(divisions)
        for arm in study.arms
        for protocol in sorted(study.protocols, key=lambda name: name == "finetuned")
        for cell in _cells(study, arm, protocol, seed, fold, division, settings[arm.name, seed], site_of)
    ]
    if len(cells) > MOST_CELLS:
        raise ConfigError(f"{study.title}: {len(cells)} runs; at most {MOST_CELLS}")
    return tuple(cells)


def _require_tasks(study: Study, tasks: Collection[Task]) -> None:
    for name in study.measures:
        if Task(name.partition(".")[0]) not in tasks:
            raise ConfigError(f"{study.file}: measures: {name}: no arm is asked that")


def _cells(
    study: Study,
    arm: Arm,
    protocol: Protocol,
    seed: int,
    fold: int,
    division: Division,
    settings: RunConfig,
    site_of: Mapping[str, str],
) -> list[Cell]:
    if protocol == "federated":
        return [Cell(arm, protocol, seed, fold, division, settings)]
    if protocol == "centralised":
        return [Cell(arm, protocol, seed, fold, division, _changed(settings, _alone_settings(settings)))]
    changes = _alone_settings(settings)
    if protocol == "finetuned":
        changes |= {"rounds": max(1, settings.rounds // FINETUNE_SHARE), **study.finetune}
    own = _changed(settings, changes)
    return [
        Cell(arm, protocol, seed, fold, alone, own, site)
        for site in sorted(set(site_of.values()))
        if (alone := _alone(division, site, site_of)) is not None
    ]


def _alone_settings(settings: RunConfig) -> dict[str, Any]:
    """Return what changes for one hospital: it has nobody to hide among, so that nothing is masked."""
    unmasked = {"secure_aggregation": False, "secure_statistics": False}
    return ALONE | unmasked | ({"payload": "int8"} if settings.secure_aggregation else {})


def _changed(settings: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    return RunConfig.from_mapping(settings.model_dump() | dict(changes), "study")


def _alone(division: Division, site: str, site_of: Mapping[str, str]) -> Division | None:
    """Return the division as one hospital sees it: its own patients, and all that are reported."""
    split = {
        patient: part
        for patient, part in division.split.items()
        if part is Split.REPORT or site_of.get(patient) == site
    }
    if Split.TRAIN not in split.values():
        return None
    return Division(name=division.name, split=split)


def divide(divisions: Divisions, cases: Sequence[Case], settings: RunConfig) -> tuple[Division, ...]:
    """Return the study's divisions; the patients' places follow from the first seed and hold for all seeds.

    Raises
    ------
    ConfigError
        The file cannot be read, or the patients cannot be divided as asked.
    """
    strata = {case.patient: _stratum(case, divisions.stratify) for case in cases}
    if divisions.kind == "kfold":
        return stratified_folds(strata, divisions.folds, seed=settings.seed, selection=settings.selection)
    if divisions.kind == "sites":
        sites = {case.patient: (case.site, strata[case.patient]) for case in cases}
        return leave_one_site_out(sites, seed=settings.seed, selection=settings.selection)
    if divisions.kind == "file" and divisions.file is not None:
        read = read_division(divisions.file)
        for division in read:
            check_division(division, strata, partial=True)
        return read
    split = {
        patient: assign_split(
            patient, seed=settings.seed, selection=settings.selection, report=settings.report
        )
        for patient in strata
    }
    return (Division(name="split", split=split),)


def _stratum(case: Case, genes: Sequence[Gene]) -> str:
    return stratum_of(case.genotype, genes, has_mask=case.mask is not None)
