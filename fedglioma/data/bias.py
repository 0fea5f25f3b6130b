"""The slow brightness that a coil lays over an image, estimated inside the brain and divided out.

N4 (Tustison et al. 2010) by SimpleITK, on voxels of 8 mm or a little more, with knots 200 mm apart: with
finer knots the field takes up oedema, which is as smooth and as large as a field; with voxels of 4 mm it
costs six times as much and finds the same to a few percent.
"""

from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses

from fedglioma.data.volume import FloatArray

KNOTS_MM: Final = 200.0
WORKING_MM: Final = 8.0
_STEPS: Final = (50, 50, 30)
_CONVERGENCE: Final = 1e-3
_FULL_WIDTH: Final = 0.15
_BINS: Final = 200
_ORDER: Final = 3


def correct_bias(array: FloatArray, brain: npt.NDArray[np.bool_], spacing_mm: float) -> FloatArray:
    """Return the volume divided by its bias field, which has mean 1 over the brain.

    Parameters
    ----------
    array : array, shape (X, Y, Z)
        One modality on cubes of ``spacing_mm``; NaN where it was not acquired stays NaN. The method takes
        logarithms, so voxels of 0 and below are left out of the estimate.
    brain : array of bool, shape (X, Y, Z)
    """
    used = brain & np.isfinite(array) & (np.nan_to_num(array) > 0)
    factor = ceil(WORKING_MM / spacing_mm)
    image = sitk.GetImageFromArray(np.where(used, array, 0).astype(np.float32))
    image.SetSpacing([spacing_mm] * 3)
    mask = sitk.GetImageFromArray(used.astype(np.uint8))
    mask.CopyInformation(image)
    shrinks = [min(factor, size) for size in image.GetSize()]
    coarse, coarse_mask = sitk.Shrink(image, shrinks), sitk.Shrink(mask, shrinks)
    if not sitk.GetArrayViewFromImage(coarse_mask).any():
        return array
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfThreads(1)
    method.SetMaximumNumberOfIterations(_STEPS)
    method.SetConvergenceThreshold(_CONVERGENCE)
    method.SetBiasFieldFullWidthAtHalfMaximum(_FULL_WIDTH)
    method.SetNumberOfHistogramBins(_BINS)
    method.SetSplineOrder(_ORDER)
    extents = [spacing_mm * size for size in image.GetSize()]
    method.SetNumberOfControlPoints([max(round(extent / KNOTS_MM), 1) + _ORDER for extent in extents])
    method.Execute(coarse, coarse_mask)
    field = np.exp(sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(image)))
    corrected: FloatArray = (array / (field / field[used].mean())).astype(np.float32)
    return corrected
