"""The pictures of one prepared case, from the cache; the tumour's mask over them where that is certain."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.cache import Record
from fedglioma.data.extractor import AUTO
from fedglioma.data.harmonize import Grid, resample, to_ras
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.source import Source
from fedglioma.data.volume import Volume, VolumeError, read_volume
from fedglioma_client.thumbnail import Flat, picture

MARGIN_MM = 24.0
LEAST_INSIDE = 0.8
_SAME_MM = 1e-2


@dataclass(frozen=True)
class Pictures:
    """PNGs of a case: each modality; the reference with what was cut off, of a whole head.

    ``tumour_ml`` is the mask's volume in the brain; ``mask_note`` says why a mask is not shown.
    """

    modalities: dict[Modality, bytes]
    head: bytes | None = None
    tumour_ml: float | None = None
    mask_note: str | None = None


def pictures_of(prepared: PreparedCase, record: Record) -> Pictures:
    """Return a case's pictures: through the largest tumour slice, or else through the brain's middle.

    Raises
    ------
    OSError
        The prepared volume cannot be read.
    """
    array = np.load(prepared.array, mmap_mode="r", allow_pickle=False)
    grid = _grid(record)
    brain = (np.asarray(array) != 0).any(axis=0)
    mask, note = _mask_on(prepared, record, grid, _stretched(brain, grid.shape))
    level = _level(mask if mask is not None else _stretched(brain, grid.shape))
    at = _nearest(level, grid.shape[2], array.shape[3])
    size = [n * grid.spacing_mm for n in grid.shape[:2]]
    tumour = None if mask is None else mask[:, :, level]
    flat = brain[:, :, at]
    drawn_tumour = None if tumour is None else _plane(tumour, flat.shape)
    return Pictures(
        modalities={
            modality: picture(array[channel, :, :, at].astype(np.float32), size, flat, drawn_tumour)
            for channel, modality in enumerate(CHANNELS)
            if prepared.present[channel]
        },
        head=_head(prepared, record, grid, level, _plane(flat, grid.shape[:2])),
        tumour_ml=None
        if mask is None
        else round(float(np.count_nonzero(mask)) * grid.spacing_mm**3 / 1000, 1),
        mask_note=note,
    )


def _grid(record: Record) -> Grid:
    """Return the cubes that were kept, before any stretching to one size."""
    affine = np.array(record.affine)
    x, y, z = (high - low for low, high in record.box)
    # A stretched array's first voxel has another centre, and the same outer corner.
    corner = affine[:3, 3] - np.diag(affine)[:3] / 2
    a, b, c = (corner + record.spacing_mm / 2).tolist()
    return Grid((x, y, z), (a, b, c), record.spacing_mm)


def _mask_on(
    prepared: PreparedCase, record: Record, grid: Grid, brain: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_] | None, str | None]:
    """Return the tumour's mask on the grid, or why there is none."""
    path = prepared.case.mask
    if path is None:
        return None, None
    if record.movements and not _on_reference(prepared, record):
        return None, "the mask was drawn on a sequence that had to be moved, so it is not shown"
    try:
        volume = to_ras(read_volume(path))
    except VolumeError as error:
        return None, f"the mask cannot be read: {error.reason}"
    labelled = Volume((volume.array > 0).astype(np.float32), volume.affine)
    mask = resample(labelled, grid) >= 0.5
    drawn = float(labelled.array.sum()) * float(np.prod(volume.spacing))
    if np.count_nonzero(mask & brain) * grid.spacing_mm**3 < LEAST_INSIDE * drawn:
        return None, "the mask lies outside the brain, so it is not shown"
    return mask, None


def _on_reference(prepared: PreparedCase, record: Record) -> bool:
    """Return whether the mask has the voxels of the file that the others were laid over."""
    mask, reference = prepared.case.mask, prepared.case.volumes.get(record.reference)
    if mask is None or reference is None:
        return False
    try:
        one, other = (nib.Nifti1Image.from_filename(path) for path in (mask, reference))
        same = bool(one.shape[:3] == other.shape[:3])
        return same and bool(np.allclose(one.affine, other.affine, rtol=0, atol=_SAME_MM))
    except (OSError, ValueError, nib.filebasedimages.ImageFileError):
        return False


def _head(prepared: PreparedCase, record: Record, grid: Grid, level: int, brain: Flat) -> bytes | None:
    """Return the reference as it was given, of a case whose skull was removed here."""
    cut_here = any(remark.code == "not_stripped" for remark in record.remarks)
    if not cut_here and record.settings.get("brain_extractor", AUTO) == AUTO:
        return None
    source = Source.of(prepared.case, record.reference)
    try:
        volume = source.read(record.inputs[record.reference])
    except VolumeError:
        return None
    pad = round(MARGIN_MM / grid.spacing_mm)
    x, y, _ = grid.shape
    around = grid.crop(((-pad, x + pad), (-pad, y + pad), (level, level + 1)))
    plane = resample(volume, around)[:, :, 0]
    size = [n * grid.spacing_mm for n in plane.shape]
    return picture(plane, size, np.pad(brain, pad), window=np.isfinite(plane))


def _level(mask: npt.NDArray[np.bool_]) -> int:
    """Return the axial slice that shows most."""
    return int(mask.sum(axis=(0, 1)).argmax())


def _nearest(index: int, count: int, others: int) -> int:
    """Return where a slice of ``count`` lies among ``others`` that span the same."""
    return min(others - 1, int((index + 0.5) / count * others))


def _stretched(mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return a mask on another number of voxels that span the same."""
    if mask.shape == shape:
        return mask
    places = [((np.arange(n) + 0.5) / n * old).astype(int) for n, old in zip(shape, mask.shape, strict=True)]
    stretched: npt.NDArray[np.bool_] = mask[np.ix_(*places)]
    return stretched


def _plane(plane: Flat, shape: tuple[int, ...]) -> Flat:
    return _stretched(plane, shape)
