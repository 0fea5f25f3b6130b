"""Hospitals that train alone: what each of them sees of a division, and why one has no model of its own."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from fedglioma.case import TASK_TITLES, Case, Task
from fedglioma.counts import has_target
from fedglioma.data.folds import Division
from fedglioma.data.manifest import patient_key
from fedglioma.data.split import Split

OWN_MODELS: Final = ("local", "finetuned")
"""Protocols under which each hospital has a model of its own, so that a fold has several."""
_USES: Final = {Split.TRAIN: "training", Split.REPORT: "reported"}


def seen_alone(
    division: Division, site: str, cases: Sequence[Case], tasks: Collection[Task]
) -> Division | None:
    """Return the division as one hospital sees it: its own patients, and all that are reported.

    None where the hospital has nobody to train on, or nobody whom its model would be asked about.
    """
    if _lacking(division, site, cases, tasks):
        return None
    own = {patient_key(case.patient) for case in cases if case.site == site}
    mine = {patient: part for patient, part in division.split.items() if patient_key(patient) in own}
    reported = dict.fromkeys(division.patients(Split.REPORT), Split.REPORT)
    return Division(name=division.name, split=reported | mine)


def without_models(
    divisions: Sequence[Division], cases: Sequence[Case], tasks: Mapping[str, Collection[Task]]
) -> dict[str, str]:
    """Return why a hospital has no model of its own in some division, by hospital and arm; for people.

    Parameters
    ----------
    tasks : mapping of an arm's name to tasks
        What its network is asked.
    """
    found = {}
    for site in sorted({case.site for case in cases}):
        for arm, asked in tasks.items():
            lacking = [_lacking(division, site, cases, asked) for division in divisions]
            if any(lacking):
                whys = " or ".join(dict.fromkeys(filter(None, lacking)))
                where = f" in {sum(map(bool, lacking))} of {len(divisions)} folds" * (len(divisions) > 1)
                found[f"{site}, {arm}"] = f"{whys}{where}"
    return found


def _lacking(division: Division, site: str, cases: Sequence[Case], tasks: Collection[Task]) -> str:
    """Return why a hospital trains no model of its own; empty where it does."""
    there = {
        division.of(case.patient)
        for case in cases
        if case.site == site and division.names(case.patient) and has_target(case, tasks)
    }
    for part, word in _USES.items():
        if part not in there:
            return f"none of its {word} patients has {_targets(tasks)}"
    return ""


def _targets(tasks: Collection[Task]) -> str:
    markers = " or ".join(TASK_TITLES[task] for task in tasks if task is not Task.SEGMENTATION)
    outline = "an outline" if Task.SEGMENTATION in tasks else ""
    return " or ".join(filter(None, (outline, f"a known {markers} status" if markers else "")))
