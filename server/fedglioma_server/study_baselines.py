"""A study's rows that need no network: what a table must be read against."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import CHANNELS, TASK_TITLES, UNKNOWN, Gene, Modality, Task
from fedglioma.data.folds import Division
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split
from fedglioma.errors import FedGliomaError
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
_COVARIATES: Mapping[Baseline, str] = {"age": "age", "volume": "tumour volume"}
_FAILURES = (FedGliomaError, OSError, ValueError)
"""What making a row may raise, a damaged image among it: it costs this row and not the table."""

Question = tuple[Baseline, Task]
"""A row that needs no network, and what it is asked."""


def absent_baselines(
    baselines: Sequence[Baseline],
    divisions: Sequence[Division],
    cases: Sequence[PreparedCase],
    tasks: Iterable[Task],
) -> dict[Question, str]:
    """Return why a baseline cannot be computed: in some division it has nothing to learn from.

    That is so of age and volume where it would say what ``majority`` says, and of the threshold where a
    division reports outlines and it has a number for none of them: it would take all of them from the other
    rows. Nobody's number is in the words.
    """
    wanted = set(tasks)
    absent: dict[Question, str] = {}
    for baseline in baselines:
        for task in (task for task in answers(baseline) if task in wanted):
            try:
                why = _lacking(baseline, task, divisions, cases)
            except _FAILURES as error:
                why = _failure(error)
            if why:
                absent[baseline, task] = f"{why}, or leave {baseline} out of baselines"
    return absent


def absent_text(absent: Mapping[Question, str]) -> dict[str, str]:
    """Return what cannot be computed by the name of its row, for people."""
    return {f"{TITLES[baseline]}, {TASK_TITLES[task]}": why for (baseline, task), why in absent.items()}


def _failure(error: Exception) -> str:
    """Return why a row could not be made; without the name of a file, in which a patient's may stand."""
    if isinstance(error, FedGliomaError):
        return str(error)
    kind = type(error).__name__
    return f"a prepared image or outline cannot be read ({kind}); remove the cache to prepare it again"


def _lacking(
    baseline: Baseline, task: Task, divisions: Sequence[Division], cases: Sequence[PreparedCase]
) -> str:
    """Return what a baseline lacks and how to come by it; empty where it lacks nothing."""
    train, report = (
        [_part(division, cases, split) for division in divisions] for split in (Split.TRAIN, Split.REPORT)
    )
    needs, remedy = _NEEDS[baseline]
    label = "" if task is Task.SEGMENTATION else f"a known {TASK_TITLES[task]} status"
    what = " and ".join(filter(None, (needs, label)))
    some = "" if len(divisions) == 1 else "in a fold "
    if label and not all(any(_teaches("majority", task, item) for item in part) for part in train):
        return f"{some}no training patient has {label}; {_NEEDS['majority'][1]}"
    if not all(any(_teaches(baseline, task, item) for item in part) for part in train):
        return f"{some}no training patient has {what}; {remedy}"
    if baseline == "threshold":
        asked = [[item for item in part if item.mask is not None] for part in report]
        if any(part and not any(_answers_threshold(item) for item in part) for part in asked):
            return f"{some}no outlined patient that is reported has FLAIR; give the sequence"
    if baseline in _BY_COVARIATE:
        if not any(_teaches(baseline, task, item) for part in report for item in part):
            return f"no reported patient has {what}; {remedy}"
        return next(filter(None, (_alike(baseline, Gene(task), part, some) for part in train)), "")
    return ""


def _alike(baseline: Baseline, gene: Gene, train: Sequence[PreparedCase], some: str) -> str:
    """Return why a regression would be the majority's share; empty where there is something to learn."""
    known = [item for item in train if item.case.genotype.label(gene) != UNKNOWN]
    status = f"{TASK_TITLES[Task(gene)]} status"
    if len({item.case.genotype.label(gene) for item in known}) < 2:
        return f"{some}all training patients have the same {status}; divide otherwise"
    _, covariate = _BY_COVARIATE[baseline]
    if len({value for item in known if (value := covariate(item)) is not None}) < 2:
        name = _COVARIATES[baseline]
        return (
            f"{some}all training patients with a known {status} have the same {name}; {_NEEDS[baseline][1]}"
        )
    return ""


def _teaches(baseline: Baseline, task: Task, item: PreparedCase) -> bool:
    """Return whether a baseline can learn from a training patient."""
    if baseline == "threshold":
        pair = _flair_and_mask(item)
        return pair is not None and bool(pair[1].any())
    if item.case.genotype.label(Gene(task)) == UNKNOWN:
        return False
    return baseline == "majority" or _has_covariate(baseline, item)


def _has_covariate(baseline: Baseline, item: PreparedCase) -> bool:
    return (item.case.age if baseline == "age" else item.mask) is not None


def _answers_threshold(item: PreparedCase) -> bool:
    return item.mask is not None and Modality.FLAIR in item.case.present


def add_baselines(
    known: Known,
    baselines: Sequence[Baseline],
    divisions: Sequence[Division],
    cases: Sequence[PreparedCase],
    seeds: Sequence[int],
    tasks: Iterable[Task],
) -> dict[str, str]:
    """Enter each baseline's predictions of the reported cases, made from the same folds' training patients.

    They draw nothing at random, so that every seed has the same. A case that a baseline has no number for
    is not entered. Returns what could not be computed, and why.
    """
    wanted = set(tasks)
    absent = absent_baselines(baselines, divisions, cases, wanted)
    for baseline in baselines:
        for task in (task for task in answers(baseline) if task in wanted and (baseline, task) not in absent):
            reported = [_part(division, cases, Split.REPORT) for division in divisions]
            try:
                values = [
                    _values(baseline, task, _part(division, cases, Split.TRAIN), report)
                    for division, report in zip(divisions, reported, strict=True)
                ]
            except _FAILURES as error:
                absent[baseline, task] = _failure(error)
                continue
            for fold, (report, found) in enumerate(zip(reported, values, strict=True)):
                _enter(known, baseline, task, fold, report, found, seeds)
    return absent_text(absent)


def _values(
    baseline: Baseline, task: Task, train: Sequence[PreparedCase], report: Sequence[PreparedCase]
) -> FloatArray:
    if baseline == "threshold":
        return _threshold_dice(train, report)
    return _of_gene(baseline, Gene(task), train, report)


def _part(division: Division, cases: Sequence[PreparedCase], split: Split) -> list[PreparedCase]:
    return [item for item in cases if _use(division, item) is split]


def _use(division: Division, item: PreparedCase) -> Split | None:
    return division.of(item.case.patient) if division.names(item.case.patient) else None


def _enter(
    known: Known,
    baseline: Baseline,
    task: Task,
    fold: int,
    cases: Sequence[PreparedCase],
    values: FloatArray,
    seeds: Sequence[int],
) -> None:
    readings = known.rows.setdefault(
        RowName(TITLES[baseline]), Readings(learns_from=_COVARIATES.get(baseline, ""))
    )
    seen: dict[str, int] = {}
    for item, value in zip(cases, values, strict=True):
        patient = item.case.patient
        key = (fold, patient, seen.get(patient, 0))
        seen[patient] = key[2] + 1
        if np.isnan(value):
            continue
        known.site.setdefault(key, item.case.site)
        known.labels.setdefault(key, item.case.genotype.labels())
        if baseline in _BY_COVARIATE and not _has_covariate(baseline, item):
            readings.guessed.add(key)
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
