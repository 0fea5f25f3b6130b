"""From the network's voxels back to the patient's: the grid of the reference image as the hospital gave it.

The tumour's probability is interpolated linearly at the patient's voxels and cut at one half there, so that
the outline is not made of the network's coarser cubes. The reference image was not moved in preparation, so
its millimetres are the patient's. A NIfTI file's grid is kept voxel by voxel, in the order and with the
header's geometry in which it is stored; DICOM has no order of axes, and is written right, front, top.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import inv_ornt_aff, io_orientation

from fedglioma.case import Case, Modality
from fedglioma.data.cache import Record
from fedglioma.data.harmonize import RAS_TO_LPS, to_sitk
from fedglioma.data.masks import drawing_over_reference
from fedglioma.data.volume import Affine, FloatArray, Mask, Volume, VolumeError, is_compressed, voxel_sizes
from fedglioma.newfile import PRIVATE, replacing

MM3_PER_ML: Final = 1000
THRESHOLD: Final = 0.5
_SAME_MM: Final = 1e-2
_NIFTI_1_BYTES: Final = 348
_NIFTI_2_BYTES: Final = 540
_GEOMETRY: Final = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True)
class PatientGrid:
    """Where the voxels of the reference image lie: ``affine`` (4, 4) maps their index to RAS mm.

    ``header`` is that of the NIfTI file that they are stored in; None for DICOM.
    """

    modality: Modality
    shape: tuple[int, int, int]
    affine: Affine
    header: Nifti1Header | None = None

    @classmethod
    def of(cls, case: Case, record: Record) -> "PatientGrid":
        """Return the grid of a prepared case's reference image.

        Raises
        ------
        VolumeError
            The file changed since it was prepared.
        OSError
            It cannot be read.
        """
        modality = record.reference
        placed = record.grids[modality]
        if modality not in case.volumes:
            return cls(modality, placed.shape, np.array(placed.affine))
        header = _header(case.volumes[modality])
        x, y, z = (int(n) for n in header.get_data_shape()[:3])
        affine: Affine = np.asarray(header.get_best_affine(), np.float64)
        orientation = io_orientation(affine)
        upright = affine @ inv_ornt_aff(orientation, (x, y, z))
        sizes = np.array((x, y, z))[np.argsort(orientation[:, 0])]
        if tuple(sizes) != placed.shape or np.abs(upright - np.array(placed.affine)).max() > _SAME_MM:
            raise VolumeError("changed", f"{modality}: the file changed while it was read; run again")
        return cls(modality, (x, y, z), affine, header)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / MM3_PER_ML


def tumour_on(grid: PatientGrid, probability: FloatArray, affine: Affine) -> Mask:
    """Return the tumour at the patient's voxels: where the interpolated probability is over one half.

    Parameters
    ----------
    probability : array, shape (D, H, W)
        Of the tumour, on the prepared array's voxels; it counts as 0 beyond them.
    affine : array, shape (4, 4)
        From the prepared array's index to RAS mm.
    """
    there = _at(grid, Volume(np.ascontiguousarray(probability, np.float32), affine), sitk.sitkLinear)
    return there > THRESHOLD


def expert_on(grid: PatientGrid, path: Path, record: Record) -> Mask:
    """Return the expert's whole tumour at the patient's voxels, the nearest of the expert's own.

    Where it was drawn on this grid that is the drawing itself. One drawn on another image is moved as that
    image was in preparation.

    Raises
    ------
    VolumeError
        The mask cannot be used.
    """
    drawing = drawing_over_reference(path, record)
    whole = Volume((drawing.array > 0).astype(np.float32), drawing.affine)
    return _at(grid, whole, sitk.sitkNearestNeighbor) > THRESHOLD


def write_mask(path: Path, mask: Mask, grid: PatientGrid) -> None:
    """Write a mask as NIfTI, uint8, 1 in the tumour, on the patient's own grid, for its owner alone.

    Of the header only the geometry is taken over: its texts may say who the patient is.
    """
    image = Nifti1Image(mask.astype(np.uint8), grid.affine)
    image.header.set_xyzt_units("mm")
    if grid.header is None:
        image.set_sform(grid.affine, code="scanner")
        image.set_qform(grid.affine, code="scanner")
    else:
        for name in _GEOMETRY:
            image.header[name] = grid.header[name]
        image.header["pixdim"][:4] = grid.header["pixdim"][:4]
    with replacing(path, mode=PRIVATE) as file:
        # No time in the stream: the same mask gives the same bytes.
        file.write(gzip.compress(image.to_bytes(), mtime=0))


def _at(grid: PatientGrid, volume: Volume, interpolator: int) -> npt.NDArray[np.float32]:
    """Return a volume's values at the grid's voxels, 0 outside the volume."""
    image = to_sitk(volume)
    sizes = voxel_sizes(grid.affine)
    mover = sitk.ResampleImageFilter()
    mover.SetInterpolator(interpolator)
    mover.SetDefaultPixelValue(0)
    mover.SetSize(list(grid.shape))
    mover.SetOutputSpacing(sizes.tolist())
    mover.SetOutputOrigin((RAS_TO_LPS @ grid.affine[:3, 3]).tolist())
    mover.SetOutputDirection((RAS_TO_LPS @ (grid.affine[:3, :3] / sizes)).ravel().tolist())
    moved = mover.Execute(image)  # named, because a view does not keep its image alive
    values: npt.NDArray[np.float32] = np.ascontiguousarray(sitk.GetArrayViewFromImage(moved).T)
    return values


def _header(path: Path) -> Any:
    """Return nibabel's view of a NIfTI header that preparation found usable."""
    with gzip.open(path, "rb") if is_compressed(path) else path.open("rb") as file:
        start = file.read(_NIFTI_2_BYTES)
    second = _NIFTI_2_BYTES in {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if second:
        return Nifti2Header(start, check=False)
    return Nifti1Header(start[:_NIFTI_1_BYTES], check=False)
