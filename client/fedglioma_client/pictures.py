"""The pictures of one prepared case, from the cache, with the tumour's mask over them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.cache import Record
from fedglioma.data.extractor import AUTO
from fedglioma.data.harmonize import Grid, resample
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.source import Source
from fedglioma.data.volume import VolumeError
from fedglioma_client.thumbnail import Flat, picture

MARGIN_MM = 24.0


@dataclass(frozen=True)
class Pictures:
    """PNGs of a case: each modality; the reference with what was cut off, of a whole head.

    ``tumour_ml`` is the mask's volume.
    """

    modalities: dict[Modality, bytes]
    head: bytes | None = None
    tumour_ml: float | None = None


def pictures_of(prepared: PreparedCase, record: Record) -> Pictures:
    """Return a case's pictures: through the largest tumour slice, or else through the brain's middle.

    Raises
    ------
    OSError
        The prepared volume or its mask cannot be read.
    """
    array = np.load(prepared.array, mmap_mode="r", allow_pickle=False)
    grid = _grid(record)
    brain = (np.asarray(array) != 0).any(axis=0)
    tumour = None if prepared.mask is None else np.load(prepared.mask, allow_pickle=False) > 0
    level = _level(brain if tumour is None else tumour)
    size = [n * grid.spacing_mm for n in grid.shape[:2]]
    flat = brain[:, :, level]
    drawn = None if tumour is None else tumour[:, :, level]
    return Pictures(
        modalities={
            modality: picture(array[channel, :, :, level].astype(np.float32), size, flat, drawn)
            for channel, modality in enumerate(CHANNELS)
            if prepared.present[channel]
        },
        head=_head(
            prepared,
            record,
            grid,
            _nearest(level, array.shape[3], grid.shape[2]),
            _stretched(flat, grid.shape[:2]),
        ),
        tumour_ml=None if tumour is None else round(np.count_nonzero(tumour) * _voxel_ml(record), 1),
    )


def _voxel_ml(record: Record) -> float:
    return float(np.linalg.det(np.array(record.affine)[:3, :3])) / 1000


def _grid(record: Record) -> Grid:
    """Return the cubes that were kept, before any stretching to one size."""
    affine = np.array(record.affine)
    x, y, z = (high - low for low, high in record.box)
    # A stretched array's first voxel has another centre, and the same outer corner.
    corner = affine[:3, 3] - np.diag(affine)[:3] / 2
    a, b, c = (corner + record.spacing_mm / 2).tolist()
    return Grid((x, y, z), (a, b, c), record.spacing_mm)


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


def _stretched(plane: Flat, shape: tuple[int, ...]) -> Flat:
    """Return a plane on another number of pixels that span the same."""
    if plane.shape == shape:
        return plane
    places = [((np.arange(n) + 0.5) / n * old).astype(int) for n, old in zip(shape, plane.shape, strict=True)]
    stretched: Flat = plane[np.ix_(*places)]
    return stretched
