"""Whom an attack is tried on: patients that a model was trained on, and patients that it never saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglioma.case import Finding, Task
from fedglioma.console import progress
from fedglioma.counts import has_target
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import Cohort, merge_cohorts, read_cohort
from fedglioma.data.person import signs, signs_of
from fedglioma.data.plan import load_plan
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file

LEAST_PATIENTS: Final = 8
"""On either side: with fewer no interval would tell a perfect attack from guessing."""


@dataclass(frozen=True)
class AttackCases:
    """Prepared members and non-members, not yet on a model's intensity scale.

    ``left_out`` counts cases without anything that the model could have learned from them.
    """

    members: tuple[PreparedCase, ...]
    nonmembers: tuple[PreparedCase, ...]
    synthetic: bool
    left_out: int = 0
    exclusions: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()


def cases_of_cohorts(
    members: Sequence[Path], others: Sequence[Path], settings: PrepareSettings, cache: Path, workers: int
) -> AttackCases:
    """Return the patients of cohorts that trained, and of cohorts that did not, prepared.

    Raises
    ------
    ConfigError
        One of the two is not named, or a patient is in both.
    DataError
        No case of one of the two can be used.
    """
    if not members or not others:
        missing = (
            "--members DIR, whom the model was trained on" if not members else "--cohort DIR, non-members"
        )
        raise ConfigError(f"--attack: give {missing}; or --run DIR of a simulation, whose plan knows both")
    inside = merge_cohorts([read_cohort(folder) for folder in members])
    outside = merge_cohorts([read_cohort(folder) for folder in others])
    _demand_apart(inside, outside)
    prepared = []
    for title, cohort in (("prepare members", inside), ("prepare non-members", outside)):
        with progress(title, unit="cases") as shown:
            prepared.append(
                prepare_cases(cohort.cases, settings, Cache(cache), workers=workers, progress=shown)
            )
    return AttackCases(
        members=prepared[0].cases,
        nonmembers=prepared[1].cases,
        synthetic=inside.synthetic or outside.synthetic,
        exclusions=(
            *inside.exclusions,
            *outside.exclusions,
            *prepared[0].exclusions,
            *prepared[1].exclusions,
        ),
        warnings=(*inside.warnings, *outside.warnings, *prepared[0].warnings, *prepared[1].warnings),
    )


def cases_of_run(run: Path) -> AttackCases:
    """Return the patients on whom a simulated run trained, and those that it only reported on.

    Patients who chose the round are neither: the model was not trained on them, and not chosen without.

    Raises
    ------
    ConfigError
        There is no run, or no plan in its ``work`` folder.
    """
    folder = RunFolder(run)
    if not folder.exists():
        raise ConfigError(f"--run {run}: no such run folder")
    if not plan_file(folder).is_file():
        raise ConfigError(
            f"--run {run}: has no plan of who trained, only a simulation has one; give --members DIR and "
            "--cohort DIR"
        )
    plan = load_plan(plan_file(folder))
    return AttackCases(
        members=tuple(item for site in plan.sites for item in site.cases),
        nonmembers=plan.report,
        synthetic=folder.read().synthetic,
    )


def attackable(cases: AttackCases, tasks: Sequence[Task]) -> AttackCases:
    """Return the cases that have a target of the model, checked to be enough and to be two groups.

    Raises
    ------
    ConfigError
        An image is on both sides.
    DataError
        There are too few patients on a side.
    """
    sides = [
        tuple(item for item in side if has_target(item.case, tasks))
        for side in (cases.members, cases.nonmembers)
    ]
    for name, side in zip(("members", "non-members"), sides, strict=True):
        people = len(set(patient_keys(side)))
        if people < LEAST_PATIENTS:
            raise DataError(
                f"--attack: {people} {name} with a known target of this model; {LEAST_PATIENTS} are needed, "
                "and a hundred tell more"
            )
    shared = _images(sides[0]) & _images(sides[1])
    if shared:
        raise ConfigError(
            f"--attack: {len(shared)} images are among members and non-members, under whatever ids; "
            "take them out of one of the two"
        )
    kept = len(sides[0]) + len(sides[1])
    return AttackCases(
        members=sides[0],
        nonmembers=sides[1],
        synthetic=cases.synthetic,
        left_out=len(cases.members) + len(cases.nonmembers) - kept,
        exclusions=cases.exclusions,
        warnings=cases.warnings,
    )


def patient_keys(cases: Sequence[PreparedCase]) -> list[str]:
    """Return whose case each is; two hospitals may have given one id to two people."""
    return [f"{item.case.site}/{item.case.patient}" for item in cases]


def _demand_apart(inside: Cohort, outside: Cohort) -> None:
    known = signs_of(inside.cases)
    both = sum(not known.isdisjoint(signs(case.patient, case.linkage_id)) for case in outside.cases)
    if both:
        raise ConfigError(
            f"--members and --cohort: {both} patients are in both, by id or linkage_id, and a patient was "
            "trained on or was not; take them out of one of the two, or rename them, or correct linkage_id, "
            "if they are other people"
        )


def _images(cases: Sequence[PreparedCase]) -> set[str]:
    return {digest for item in cases for digest in item.voxels.values()}
