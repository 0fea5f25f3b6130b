"""Intensities of one modality, inside the brain."""

import numpy as np
import numpy.typing as npt

from fedglioma.data.volume import FloatArray, VolumeError


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
