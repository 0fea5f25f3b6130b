"""The segmentation that needs no network: FLAIR above a threshold, inside the brain.

One threshold for everybody, chosen on training cases. Its Dice is what a segmentation network must beat.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedglioma.errors import DataError

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]


def segment_by_threshold(flair: FloatArray, threshold: float) -> BoolArray:
    """Return the voxels of the brain whose FLAIR is above the threshold, bool, shape (D, H, W).

    Parameters
    ----------
    flair : array, shape (D, H, W)
        Normalised inside the brain and exactly 0 outside, as the cache holds it.
    """
    # As float64: a threshold rounded to the image's float32 could be another one than was chosen.
    above: BoolArray = (flair > np.float64(threshold)) & (flair != 0)
    return above


def best_threshold(
    flairs: Sequence[FloatArray], masks: Sequence[NDArray[np.generic]], candidates: Sequence[float]
) -> float:
    """Return the candidate with the highest mean Dice over training cases; of equal ones the lowest.

    Parameters
    ----------
    flairs : sequence of arrays, each of shape (D, H, W)
        As ``segment_by_threshold`` takes them; shapes may differ between cases.
    masks : sequence of arrays, bool or 0 and 1, each of its FLAIR's shape
        Outlined cases; one without a tumour says nothing about Dice and is passed over.
    candidates : sequence of float

    Raises
    ------
    DataError
        There is no candidate, no case with a tumour, or a mask does not belong to its FLAIR.
    """
    thresholds = np.unique(np.asarray(candidates, dtype=np.float64))
    if not len(thresholds) or np.isnan(thresholds).any():
        raise DataError("threshold segmentation: give at least one candidate, and numbers only")
    if len(flairs) != len(masks):
        raise DataError(f"threshold segmentation: {len(masks)} masks for {len(flairs)} FLAIR images")
    scores = [
        _dice_by_threshold(flair, mask, thresholds)
        for flair, mask in zip(flairs, masks, strict=True)
        if np.any(mask)
    ]
    if not scores:
        raise DataError("threshold segmentation: no training case has an outlined tumour")
    return float(thresholds[np.mean(scores, axis=0).argmax()])


def _dice_by_threshold(
    flair: FloatArray, mask: NDArray[np.generic], thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the Dice at each of the rising thresholds (k,): one pass over the voxels, whatever k."""
    if flair.shape != mask.shape:
        raise DataError(f"threshold segmentation: mask of shape {mask.shape} for FLAIR of {flair.shape}")
    truth = mask.astype(bool)
    brain = flair != 0
    passed = np.searchsorted(thresholds, flair[brain], side="left")  # how many thresholds lie below
    predicted = _still_above(passed, len(thresholds))
    overlap = _still_above(passed[truth[brain]], len(thresholds))
    return 2 * overlap / (predicted + int(truth.sum()))


def _still_above(passed: NDArray[np.intp], thresholds: int) -> NDArray[np.int64]:
    """Return how many voxels lie above each threshold, shape (thresholds,)."""
    counts = np.bincount(passed, minlength=thresholds + 1)
    above: NDArray[np.int64] = counts[::-1].cumsum()[::-1][1:]
    return above
