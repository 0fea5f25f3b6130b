"""Volumes of one patient on one grid: axes of the body, cubic voxels, one interpolation.

The grid's axes are right, front and top (RAS) whatever the scanner's were. It covers the field of view
of the reference, the sharpest modality, with the voxels' outer faces flush, so a volume that is already
isotropic and upright is cut out and never interpolated. A modality that was moved (registered) is the
same volume under another affine, and takes the same way.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from fedglioma.case import Modality
from fedglioma.data.volume import Affine, FloatArray, Volume, voxel_sizes

REFERENCE_ORDER: Final = (Modality.T1CE, Modality.T1, Modality.T2, Modality.FLAIR)
_SAME_MM: Final = 1e-3
RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0])

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and one past the last voxel along each axis."""


@dataclass(frozen=True)
class Grid:
    """Cubic voxels along the RAS axes: ``origin`` is the centre of the first voxel, in mm."""

    shape: tuple[int, int, int]
    origin: tuple[float, float, float]
    spacing_mm: float

    @property
    def affine(self) -> Affine:
        """Map from voxel index to RAS mm, shape (4, 4)."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = self.origin
        return affine

    def crop(self, box: Box) -> "Grid":
        """Return the part of the grid inside a box."""
        (x, _), (y, _), (z, _) = box
        a, b, c = (start + low * self.spacing_mm for start, low in zip(self.origin, (x, y, z), strict=True))
        i, j, k = (high - low for low, high in box)
        return Grid((i, j, k), (a, b, c), self.spacing_mm)


def to_ras(volume: Volume) -> Volume:
    """Return the same volume with its axes permuted and flipped to be nearest to right, front, top."""
    orientation = io_orientation(volume.affine)
    array = apply_orientation(volume.array, orientation)
    return Volume(array, volume.affine @ inv_ornt_aff(orientation, volume.array.shape))


def reference_of(volumes: Mapping[Modality, Volume]) -> Modality:
    """Return the modality of the finest largest spacing; T1ce, T1, T2, FLAIR decide between equals."""
    present = [modality for modality in REFERENCE_ORDER if modality in volumes]
    return min(present, key=lambda modality: round(max(volumes[modality].spacing), 2))


def covering_grid(volume: Volume, spacing_mm: float) -> Grid:
    """Return the smallest grid of cubic voxels that covers a volume, centred on it."""
    shape = np.array(volume.array.shape)
    faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], [1.0], indexing="ij")).reshape(4, -1)
    corners = (volume.affine @ faces)[:3]
    low, high = corners.min(axis=1), corners.max(axis=1)
    counts = np.maximum(np.ceil((high - low) / spacing_mm - _SAME_MM), 1)
    x, y, z = ((low + high - (counts - 1) * spacing_mm) / 2).tolist()
    i, j, k = counts.astype(int).tolist()
    return Grid((i, j, k), (x, y, z), spacing_mm)


def same_grid(volumes: Iterable[Volume]) -> bool:
    """Return whether all volumes have their voxels at the same places."""
    first, *others = volumes
    return all(
        first.array.shape == other.array.shape
        and np.allclose(first.affine, other.affine, rtol=0, atol=_SAME_MM)
        for other in others
    )


def resample(volume: Volume, grid: Grid, *, smooth: bool = False) -> FloatArray:
    """Return a RAS volume's values at the grid's voxels, NaN outside its own field of view.

    Once: linear, or with ``smooth`` by cubic B-splines, which keep fine detail of images and would ring at
    the edge of a mask. Where the grid is at least twice as coarse along an axis, whole voxels are averaged
    first, so that fine detail does not turn into noise. A volume that lies on the grid is copied as it is.
    """
    offset = _offset(volume, grid)
    if offset is not None:
        (i, j, k), (x, y, z) = offset, grid.shape
        return np.array(volume.array[i : i + x, j : j + y, k : k + z], order="C")
    image = to_sitk(volume)
    factors = [max(1, int(grid.spacing_mm / size + _SAME_MM)) for size in volume.spacing]
    if max(factors) > 1:
        shrink = sitk.BinShrinkImageFilter()
        shrink.SetShrinkFactors(
            [min(factor, n) for factor, n in zip(factors, volume.array.shape, strict=True)]
        )
        shrink.SetNumberOfThreads(1)
        image = shrink.Execute(image)
    mover = sitk.ResampleImageFilter()
    # Cases run in parallel, so a filter that takes every core would only take them from a neighbour.
    mover.SetNumberOfThreads(1)
    # A spline of order 3 wants four voxels along every axis.
    mover.SetInterpolator(sitk.sitkBSpline if smooth and min(image.GetSize()) > 3 else sitk.sitkLinear)
    mover.SetDefaultPixelValue(float("nan"))
    mover.SetSize(list(grid.shape))
    mover.SetOutputSpacing([grid.spacing_mm] * 3)
    mover.SetOutputOrigin((RAS_TO_LPS @ np.array(grid.origin)).tolist())
    mover.SetOutputDirection(RAS_TO_LPS.ravel().tolist())
    moved = mover.Execute(image)  # named, because a view does not keep its image alive
    array: FloatArray = np.ascontiguousarray(sitk.GetArrayViewFromImage(moved).T)
    return array


def to_sitk(volume: Volume) -> sitk.Image:
    """Return a volume as SimpleITK has it: axes reversed in memory, positions in LPS mm."""
    sizes = voxel_sizes(volume.affine)
    image = sitk.GetImageFromArray(volume.array.T)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin((RAS_TO_LPS @ volume.affine[:3, 3]).tolist())
    image.SetDirection((RAS_TO_LPS @ (volume.affine[:3, :3] / sizes)).ravel().tolist())
    return image


def _offset(volume: Volume, grid: Grid) -> tuple[int, int, int] | None:
    """Return the grid's first voxel in the volume's indices, if the volume holds the grid voxel by voxel."""
    upright = np.eye(3) * grid.spacing_mm
    shape = np.array(volume.array.shape)
    if np.abs((volume.affine[:3, :3] - upright) * shape).max() > _SAME_MM * 100:
        return None
    steps = (np.array(grid.origin) - volume.affine[:3, 3]) / grid.spacing_mm
    start = np.rint(steps)
    outside = (start < 0).any() or (start + grid.shape > shape).any()
    if outside or np.abs(steps - start).max() * grid.spacing_mm > _SAME_MM * 10:
        return None
    i, j, k = start.astype(int).tolist()
    return (i, j, k)
