"""Intensities of one modality, inside the brain: each case's own scale, and everybody's."""

from typing import Final

import numpy as np
import numpy.typing as npt

from fedglioma.data.volume import FloatArray, VolumeError
from fedglioma.scale import PERCENTILES, Landmarks

MIDDLE: Final = 50.0
HALF_RANGE: Final = 25.0
_LEAST_RISE: Final = 1e-6
_LEAST_GAP: Final = 0.02
"""Of the span between the outer landmarks, below which two of them do not say how steep it goes on."""


def zscore_in_brain(array: FloatArray, brain: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the volume with mean 0 and standard deviation 1 over the brain, and exactly 0 elsewhere.

    Parameters
    ----------
    array : array, shape (X, Y, Z)
        NaN where the modality was not acquired: left out of the statistics and 0 in the result.
    brain : array of bool, shape (X, Y, Z)

    Raises
    ------
    VolumeError
        The modality has no voxel in the brain (``no_overlap``) or one value all over it (``constant``).
    """
    inside = brain & np.isfinite(array)
    values = array[inside]
    if not values.size:
        raise VolumeError(
            "no_overlap", "no voxel of it lies in the brain; compare the headers of the modalities"
        )
    mean = values.mean(dtype=np.float64)
    deviation = values.std(dtype=np.float64)
    if not deviation > 1e-6 * abs(mean):
        raise VolumeError("constant", f"every voxel in the brain is {mean:g}; export the series again")
    scaled = np.zeros_like(array)
    scaled[inside] = (values - np.float32(mean)) / np.float32(deviation)
    return scaled


def zscore_in_volume(array: FloatArray, brain: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the volume's z-score over all its voxels, moved by one number so that what is no brain is 0.

    Mean and standard deviation are of the volume with 0 in every voxel outside the brain. Everything after
    this counts on 0 there, and instance normalisation does not see by how much a whole channel was moved.

    Parameters
    ----------
    array : array, shape (X, Y, Z)
        Not standardised but for a factor; NaN where the modality was not acquired, which counts as 0.
    brain : array of bool, shape (X, Y, Z)

    Raises
    ------
    VolumeError
        ``constant``: all voxels have one value.
    """
    inside = brain & np.isfinite(array)
    shown = np.where(inside, array, 0)
    deviation = shown.std(dtype=np.float64)
    if not deviation > 0:
        raise VolumeError("constant", "every voxel has one value; export the series again")
    scaled: FloatArray = (shown / deviation).astype(np.float32)
    return scaled


def brain_percentiles(scaled: FloatArray) -> Landmarks:
    """Return the percentiles that ``scale.py`` asks for, of what ``zscore_in_brain`` gave, not 0 outside.

    Raises
    ------
    VolumeError
        ``constant``: most of the brain has one value.
    """
    low, a, b, c, high = np.percentile(scaled[scaled != 0], PERCENTILES).tolist()
    if not high > low:
        raise VolumeError("constant", "most of the brain has one value; export the series again")
    return (low, a, b, c, high)


def onto_scale(scaled: FloatArray, own: Landmarks, common: Landmarks) -> FloatArray:
    """Return intensities with a case's landmarks moved to the consortium's, then (y - 50) / 25.

    Between landmarks linear, beyond the outer ones on as between the nearest two: what is brighter than the
    80th percentile, as enhancing tumour, is not clipped. 0, which is outside the brain, stays 0.
    """
    knots = np.maximum.accumulate(own) + np.arange(len(own)) * _LEAST_RISE * (own[-1] - own[0])
    rises = np.diff(common) / np.maximum(np.diff(knots), _LEAST_GAP * (own[-1] - own[0]))
    moved = np.interp(scaled, knots, common)
    moved = np.where(scaled < knots[0], common[0] + (scaled - knots[0]) * rises[0], moved)
    moved = np.where(scaled > knots[-1], common[-1] + (scaled - knots[-1]) * rises[-1], moved)
    result: FloatArray = np.where(scaled == 0, 0, (moved - MIDDLE) / HALF_RANGE).astype(np.float32)
    return result
