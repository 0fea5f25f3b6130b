"""A study's rows that need no network: what a table must be read against."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import CHANNELS, GENES, Gene, Modality, Task
from fedglioma.data.folds import Division
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split
from fedglioma.metrics.segmentation import dice, volume_ml
from fedglioma.metrics.simple import age_probabilities, majority_probabilities, volume_probabilities
from fedglioma.metrics.threshold import best_threshold, segment_by_threshold
from fedglioma_server.study_file import Baseline
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


def add_baselines(
    known: Known,
    baselines: Sequence[Baseline],
    divisions: Sequence[Division],
    cases: Sequence[PreparedCase],
    seeds: Sequence[int],
    tasks: Sequence[Task],
) -> None:
    """Enter each baseline's predictions of the reported cases, made from the same folds' training patients.

    They draw nothing at random, so that every seed has the same.
    """
    for baseline in baselines:
        row = RowName(TITLES[baseline])
        for fold, division in enumerate(divisions):
            parts = {
                split: [item for item in cases if _use(division, item) is split]
                for split in (Split.TRAIN, Split.REPORT)
            }
            if baseline == "threshold":
                if Task.SEGMENTATION in tasks:
                    values = _threshold_dice(parts[Split.TRAIN], parts[Split.REPORT])
                    _enter(known, row, Task.SEGMENTATION, fold, parts[Split.REPORT], values, seeds)
                continue
            for gene in (gene for gene in GENES if Task(gene) in tasks):
                values = _of_gene(baseline, gene, parts[Split.TRAIN], parts[Split.REPORT])
                _enter(known, row, Task(gene), fold, parts[Split.REPORT], values, seeds)


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

    NaN for a case without FLAIR or without an outline, and for all where no training case has both.
    """
    pairs = [pair for item in train if (pair := _flair_and_mask(item)) is not None]
    values: FloatArray = np.full(len(report), np.nan)
    if not pairs:
        return values
    threshold = best_threshold([flair for flair, _ in pairs], [mask for _, mask in pairs], CANDIDATES)
    for place, item in enumerate(report):
        pair = _flair_and_mask(item)
        found = None if pair is None else dice(segment_by_threshold(pair[0], threshold), pair[1])
        values[place] = np.nan if found is None else found
    return values
