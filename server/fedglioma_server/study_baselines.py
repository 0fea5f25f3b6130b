"""A study's rows that need no network: what a table must be read against."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import CHANNELS, TASK_TITLES, UNKNOWN, Gene, Modality, Task
from fedglioma.data.folds import Division
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split
from fedglioma.metrics.segmentation import dice, volume_ml
from fedglioma.metrics.simple import age_probabilities, majority_probabilities, volume_probabilities
from fedglioma.metrics.threshold import best_threshold, segment_by_threshold
from fedglioma_server.study_file import Baseline, answers
from fedglioma_server.study_results import Known, Readings, RowName

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TITLES: dict[Baseline, str] = {
    "majority": "more frequent class",
    "age": "age alone",
    "volume": "tumour volume alone",
    "threshold": "FLAIR above a threshold",
}
CANDIDATES = tuple(np.linspace(-0.5, 3.0, 36))
"""Thresholds of FLAIR, in standard deviations about the brain's mean."""
_NEEDS: Mapping[Baseline, tuple[str, str]] = {
    "majority": ("", "give labelled patients"),
    "age": ("an age", "fill the column age of participants.tsv"),
    "volume": ("a tumour outline", "give outlines"),
    "threshold": ("FLAIR with an outlined tumour", "give outlines"),
}
"""What a baseline learns from besides the label, and how to come by it."""


Question = tuple[Baseline, Task]
"""A row that needs no network, and what it is asked."""


def absent_baselines(
    baselines: Sequence[Baseline],
    divisions: Sequence[Division],
    cases: Sequence[PreparedCase],
    tasks: Iterable[Task],
) -> dict[Question, str]:
    """Return why a baseline cannot be computed: in some division no training patient has what it learns from.

    Nobody's number is in the words.
    """
    asked = [(baseline, task) for baseline in baselines for task in answers(baseline) if task in set(tasks)]
    parts = [_part(division, cases, Split.TRAIN) for division in divisions]
    return {
        (baseline, task): _lacking(baseline, task, len(divisions))
        for baseline, task in asked
        if not all(any(_teaches(baseline, task, item) for item in train) for train in parts)
    }


def absent_text(absent: Mapping[Question, str]) -> dict[str, str]:
    """Return what cannot be computed by the name of its row, for people."""
    return {f"{TITLES[baseline]}, {TASK_TITLES[task]}": why for (baseline, task), why in absent.items()}


def _lacking(baseline: Baseline, task: Task, divisions: int) -> str:
    who = "no training patient" if divisions == 1 else "in a fold no training patient"
    needs, remedy = _NEEDS[baseline]
    label = "" if task is Task.SEGMENTATION else f"a known {TASK_TITLES[task]} status"
    what = " and ".join(filter(None, (needs, label)))
    return f"{who} has {what}; {remedy}, or leave {baseline} out of baselines"


def _teaches(baseline: Baseline, task: Task, item: PreparedCase) -> bool:
    """Return whether a baseline can learn from a training patient."""
    if baseline == "threshold":
        pair = _flair_and_mask(item)
        return pair is not None and bool(pair[1].any())
    if item.case.genotype.label(Gene(task)) == UNKNOWN:
        return False
    return baseline == "majority" or (item.case.age if baseline == "age" else item.mask) is not None


def add_baselines(
    known: Known,
    baselines: Sequence[Baseline],
    divisions: Sequence[Division],
    cases: Sequence[PreparedCase],
    seeds: Sequence[int],
    tasks: Iterable[Task],
) -> dict[str, str]:
    """Enter each baseline's predictions of the reported cases, made from the same folds' training patients.

    They draw nothing at random, so that every seed has the same. Returns what could not be computed, and why.
    """
    wanted = set(tasks)
    absent = absent_baselines(baselines, divisions, cases, wanted)
    for baseline in baselines:
        there = [task for task in answers(baseline) if task in wanted and (baseline, task) not in absent]
        for fold, division in enumerate(divisions):
            train, report = (_part(division, cases, split) for split in (Split.TRAIN, Split.REPORT))
            for task in there:
                if baseline == "threshold":
                    values = _threshold_dice(train, report)
                else:
                    values = _of_gene(baseline, Gene(task), train, report)
                _enter(known, RowName(TITLES[baseline]), task, fold, report, values, seeds)
    return absent_text(absent)


def _part(division: Division, cases: Sequence[PreparedCase], split: Split) -> list[PreparedCase]:
    return [item for item in cases if _use(division, item) is split]


def _use(division: Division, item: PreparedCase) -> Split | None:
    return division.of(item.case.patient) if division.names(item.case.patient) else None


def _enter(
    known: Known,
    row: RowName,
    task: Task,
    fold: int,
    cases: Sequence[PreparedCase],
    values: FloatArray,
    seeds: Sequence[int],
) -> None:
    readings = known.rows.setdefault(row, Readings())
    seen: dict[str, int] = {}
    for item, value in zip(cases, values, strict=True):
        patient = item.case.patient
        key = (fold, patient, seen.get(patient, 0))
        seen[patient] = key[2] + 1
        known.site.setdefault(key, item.case.site)
        known.labels.setdefault(key, item.case.genotype.labels())
        for seed in seeds:
            readings.add(task, key, seed, float(value))


def _of_gene(
    baseline: Baseline, gene: Gene, train: Sequence[PreparedCase], report: Sequence[PreparedCase]
) -> FloatArray:
    labels: IntArray = np.array([item.case.genotype.label(gene) for item in train], dtype=np.int64)
    if baseline == "majority":
        return majority_probabilities(labels, len(report))
    fit, covariate = _BY_COVARIATE[baseline]
    return fit(_each(covariate, train), labels, _each(covariate, report))


def _each(covariate: Callable[[PreparedCase], float | None], cases: Sequence[PreparedCase]) -> FloatArray:
    values = [covariate(item) for item in cases]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _age(item: PreparedCase) -> float | None:
    return item.case.age


def _volume(item: PreparedCase) -> float | None:
    mask = mask_of(item)
    return None if mask is None else volume_ml(mask, item.spacing_mm)


_BY_COVARIATE: Mapping[
    str,
    tuple[Callable[[FloatArray, IntArray, FloatArray], FloatArray], Callable[[PreparedCase], float | None]],
] = {"age": (age_probabilities, _age), "volume": (volume_probabilities, _volume)}


def mask_of(item: PreparedCase) -> NDArray[np.bool_] | None:
    """Return the whole tumour as it was outlined on the prepared grid, (D, H, W); None where it was not."""
    if item.mask is None:
        return None
    return np.asarray(np.load(item.mask, mmap_mode="r", allow_pickle=False)) > 0


def _flair_and_mask(item: PreparedCase) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    mask = mask_of(item)
    if mask is None or Modality.FLAIR not in item.case.present:
        return None
    volume = np.load(item.array, mmap_mode="r", allow_pickle=False)
    return np.asarray(volume[CHANNELS.index(Modality.FLAIR)], dtype=np.float32), mask


def _threshold_dice(train: Sequence[PreparedCase], report: Sequence[PreparedCase]) -> FloatArray:
    """Return the Dice of each reported case at the threshold that is best on the training cases.

    NaN for a case without FLAIR or without an outline.
    """
    pairs = [pair for item in train if (pair := _flair_and_mask(item)) is not None]
    values: FloatArray = np.full(len(report), np.nan)
    threshold = best_threshold([flair for flair, _ in pairs], [mask for _, mask in pairs], CANDIDATES)
    for place, item in enumerate(report):
        pair = _flair_and_mask(item)
        found = None if pair is None else dice(segment_by_threshold(pair[0], threshold), pair[1])
        values[place] = np.nan if found is None else found
    return values
