"""A site's counts with noise that hides each patient, in the form in which counts are published anyway.

Each patient counts once, by one scan. Every cell that there could be is noised, so that no cell tells by
its absence; what is then cut to what counts can be, rounded and suppressed says nothing more of anybody.

======================  =====  ========================================================
cells                   there  of which one patient is in
======================  =====  ========================================================
patients                    1  1
patients to train on        1  1 at most
labels of three genes   3 x 3  3: wild-type or intact, mutant or codeleted, or unknown
sets of sequences          16  1
outlined tumours            1  1 at most
======================  =====  ========================================================

One patient more or less changes at most 7 cells by 1 each: a Euclidean length of sqrt(7), which a patient
with a known label and an outline reaches.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedglioma.case import GENES, SUBSETS, TASKS, UNKNOWN, Case, Frozen, Gene, Task, subset_name
from fedglioma.counts import Cells, SiteCounts, has_target, round_up, suppress, task_weights
from fedglioma.errors import PrivacyError
from fedglioma.noise import keyed_normals, sigma_for

LABELS: Final = (0, 1, UNKNOWN)
CELLS: Final = 2 + len(GENES) * len(LABELS) + len(SUBSETS) + 1
TOUCHED: Final = 2 + len(GENES) + 1 + 1
"""Cells that a patient is in, at most."""
SENSITIVITY: Final = sqrt(TOUCHED)
"""How far one patient more or less moves all cells together, as a Euclidean length."""

_TOTAL, _TRAINED, _FIRST_LABEL = 0, 1, 2
_FIRST_SUBSET: Final = _FIRST_LABEL + len(GENES) * len(LABELS)
_MASKS: Final = CELLS - 1

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class NoisedCounts(Frozen):
    """What a site publishes, and what that costs."""

    counts: SiteCounts
    sigma: float = Field(gt=0, description="standard deviation of the noise on each cell, in patients")
    sensitivity: float = Field(gt=0, description="how far one patient more or less moves all cells together")
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)

    @property
    def noise_multiplier(self) -> float:
        """The noise in units of the sensitivity, as accountants want it; nobody is left to chance."""
        return self.sigma / self.sensitivity


def noised_counts(
    cases: Sequence[Case],
    limit: int,
    tasks: Collection[Task] = TASKS,
    *,
    epsilon: float,
    delta: float,
    key: bytes,
) -> NoisedCounts:
    """Return a site's counts with Gaussian noise: (epsilon, delta) private for one patient more or less.

    A site that says anything says that it has a patient to train on: noise must not take it out of the run.

    Parameters
    ----------
    limit : int
        The site's small-cell limit; what is published is rounded to its multiples, as without noise.
    key : bytes
        Of the noise, for this answer alone (``noise.keyed_normals``).

    Raises
    ------
    PrivacyError
        epsilon, delta, the limit or the key is not what it must be.
    """
    if not (epsilon > 0 and 0 < delta < 1 and limit >= 1):
        raise PrivacyError(
            f"noised counts: epsilon {epsilon:g} must be above 0, delta {delta:g} between 0 and 1, and the "
            f"small-cell limit {limit} at least 1"
        )
    sigma = sigma_for(epsilon, SENSITIVITY, delta)
    return NoisedCounts(
        counts=published(with_noise(cells_of(cases, tasks), sigma, key), limit),
        sigma=sigma,
        sensitivity=SENSITIVITY,
        epsilon=epsilon,
        delta=delta,
    )


def one_scan_each(cases: Iterable[Case]) -> list[Case]:
    """Return one case of each patient, sorted by patient: the first by its own files and labels.

    Which one depends on nothing but the patient's own cases, or another patient could move more cells than
    are accounted for.
    """
    chosen: dict[str, tuple[str, Case]] = {}
    for case in cases:
        order = case.model_dump_json()
        if case.patient not in chosen or order < chosen[case.patient][0]:
            chosen[case.patient] = (order, case)
    return [chosen[patient][1] for patient in sorted(chosen)]


def cells_of(cases: Iterable[Case], tasks: Collection[Task] = TASKS) -> IntArray:
    """Return the true cells, shape (``CELLS``,): patients, those to train on, labels, sequences, outlines."""
    cells = np.zeros(CELLS, dtype=np.int64)
    for case in one_scan_each(cases):
        cells[_TOTAL] += 1
        cells[_TRAINED] += has_target(case, tasks)
        for place, gene in enumerate(GENES):
            cells[_FIRST_LABEL + len(LABELS) * place + LABELS.index(case.genotype.label(gene))] += 1
        cells[_FIRST_SUBSET + SUBSETS.index(subset_name(case.present))] += 1
        cells[_MASKS] += case.mask is not None
    return cells


def with_noise(cells: IntArray, sigma: float, key: bytes) -> FloatArray:
    """Return the cells (``CELLS``,) with noise, made to add up again: the labels of a gene, the sequences.

    The nearest numbers that add up: the mean stays true, and what is known of counts takes some of the noise
    away (of the number of patients, half of its variance).

    Raises
    ------
    PrivacyError
        The key is shorter than 32 bytes.
    """
    noisy = cells + sigma * keyed_normals(key, CELLS)
    sums = _sums()
    nearest: FloatArray = noisy - sums.T @ np.linalg.solve(sums @ sums.T, sums @ noisy)
    return nearest


def published(noisy: FloatArray, limit: int) -> SiteCounts:
    """Return noisy cells as a site publishes counts; nothing but them is looked at.

    Sets of sequences of which nobody is left are not listed.
    """
    whole = np.rint(noisy).astype(np.int64)
    cases = round_up(max(int(whole[_TOTAL]), 1), limit)
    cells = [suppress(min(max(int(cell), 0), cases), limit) for cell in whole]
    labels: dict[Gene, Cells] = {}
    for place, gene in enumerate(GENES):
        wild, mutant, unknown = cells[_FIRST_LABEL + len(LABELS) * place :][: len(LABELS)]
        labels[gene] = (wild, mutant, unknown)
    trunk = round_up(min(max(int(whole[_TRAINED]), 1), cases), limit)
    subsets = dict(zip(SUBSETS, cells[_FIRST_SUBSET:_MASKS], strict=True))
    return SiteCounts(
        cases=cases,
        labels=labels,
        modalities={name: cell for name, cell in sorted(subsets.items()) if cell != 0},
        masks=cells[_MASKS],
        weights={"trunk": float(trunk)} | task_weights(labels, cells[_MASKS], limit),
        limit=limit,
    )


@lru_cache(maxsize=1)
def _sums() -> FloatArray:
    """Return what must be zero of any cells, (4, ``CELLS``): each table's sum less the patients."""
    tables = [
        *(range(start, start + len(LABELS)) for start in range(_FIRST_LABEL, _FIRST_SUBSET, len(LABELS))),
        range(_FIRST_SUBSET, _MASKS),
    ]
    sums = np.zeros((len(tables), CELLS))
    sums[:, _TOTAL] = -1
    for row, cell in chain.from_iterable(((row, cell) for cell in table) for row, table in enumerate(tables)):
        sums[row, cell] = 1
    return sums
