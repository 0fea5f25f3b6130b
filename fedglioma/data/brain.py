"""Where the brain is, and the box around it.

A volume whose background is one constant value was stripped of its skull: what differs from that value
is brain. Of whole heads the hospital's own extractor finds it (``extractor.py``), or without one the shapes
do (``strip.py``), with a warning.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedglioma.case import Modality
from fedglioma.data.extractor import AUTO, extract_brain
from fedglioma.data.harmonize import Box, Grid, covering_grid, reference_of, resample, same_grid
from fedglioma.data.strip import WORKING_MM, strip_skull
from fedglioma.data.volume import Mask, Volume, VolumeError

MIN_BACKGROUND: Final = 0.35
MIN_SIDES: Final = 0.9
MAX_GAP: Final = 0.01
MAX_BRAIN_ML: Final = 2500.0


@dataclass(frozen=True)
class Brain:
    """The brain's voxels on a grid.

    ``own`` holds, for each modality that shows visibly less than all together, where it has signal (1)
    and where it was cut away (0), on its scanner's grid. ``doubts`` are (code, message).
    """

    mask: Mask
    own: Mapping[Modality, Volume]
    doubts: tuple[tuple[str, str], ...] = ()


def find_brain(volumes: Mapping[Modality, Volume], grid: Grid, extractor: str = AUTO) -> Brain:
    """Return the brain of RAS volumes on a grid.

    Stripped volumes decide together: a voxel is brain where any of them has signal. The largest piece
    counts, with its holes filled. Where none is stripped, ``extractor`` is asked: a command's template, or
    ``auto`` for shapes.

    Raises
    ------
    VolumeError
        Nothing is left of the foreground on the grid, or no brain was found in the heads.
    """
    foregrounds = {
        m: mask for m, volume in volumes.items() if (mask := stripped_foreground(volume)) is not None
    }
    if not foregrounds:
        return _by_shape(volumes, grid) if extractor == AUTO else _by_command(extractor, volumes, grid)
    joined = [
        (volumes[alike[0]], _union(foregrounds[m] for m in alike)) for alike in _by_grid(foregrounds, volumes)
    ]
    mask = _largest_filled(_on_grid(joined, grid))
    own = {
        modality: Volume(_filled(foreground).astype(np.float32), volumes[modality].affine)
        for modality, foreground in foregrounds.items()
        if len(joined) > 1 or foreground.sum() < (1 - MAX_GAP) * joined[0][1].sum()
    }
    millilitres = float(np.count_nonzero(mask)) * grid.spacing_mm**3 / 1000
    if millilitres <= MAX_BRAIN_ML:
        return Brain(mask, own)
    reason = f"{millilitres:.0f} mL of foreground is more than a brain; give skull-stripped volumes"
    return Brain(mask, own, (("not_stripped", reason),))


def stripped_foreground(volume: Volume) -> Mask | None:
    """Return what differs from a constant background, or None where there is no such background.

    It must fill over 35 % of the volume and 90 % of its four sides. Top and bottom do not count: a stack
    of thick slices may begin and end inside the brain.
    """
    array = volume.array
    foreground: Mask = array != array[0, 0, 0]
    if np.count_nonzero(foreground) > (1 - MIN_BACKGROUND) * array.size:
        return None
    sides = np.concatenate(
        [foreground[i].ravel() for i in (0, -1)] + [foreground[:, i].ravel() for i in (0, -1)]
    )
    return foreground if sides.mean() <= 1 - MIN_SIDES else None


def _by_shape(volumes: Mapping[Modality, Volume], grid: Grid) -> Brain:
    working = covering_grid(volumes[reference_of(volumes)], WORKING_MM)
    mask = strip_skull({modality: resample(volume, working) for modality, volume in volumes.items()})
    found = Volume(mask.astype(np.float32), working.affine)
    reason = (
        "the skull was still there and was cut off by shape alone; look at the outline in the quality "
        "report, and better give skull-stripped volumes or name a brain extractor"
    )
    return Brain(_largest_filled(_on_grid([(found, mask)], grid)), {}, (("not_stripped", reason),))


def _by_command(extractor: str, volumes: Mapping[Modality, Volume], grid: Grid) -> Brain:
    head = volumes[reference_of(volumes)]
    return Brain(_largest_filled(_on_grid([(head, extract_brain(extractor, head))], grid)), {})


def bounding_box(mask: Mask, margin_mm: float, spacing_mm: float) -> Box:
    """Return the smallest box that holds the mask and a margin, cut at the grid's edge."""
    margin = int(np.ceil(margin_mm / spacing_mm - 1e-6))
    x, y, z = (
        (max(int(held[0]) - margin, 0), min(int(held[-1]) + 1 + margin, size))
        for size, held in ((mask.shape[axis], _held(mask, axis)) for axis in range(3))
    )
    return (x, y, z)


def _held(mask: Mask, axis: int) -> npt.NDArray[np.intp]:
    """Return the indices along an axis whose plane holds any voxel of the mask."""
    return np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))


def _by_grid(
    foregrounds: Mapping[Modality, Mask], volumes: Mapping[Modality, Volume]
) -> list[list[Modality]]:
    """Return the modalities in groups of one scanner grid each."""
    groups: list[list[Modality]] = []
    for modality in foregrounds:
        group = next((g for g in groups if same_grid((volumes[g[0]], volumes[modality]))), None)
        if group is None:
            groups.append([modality])
        else:
            group.append(modality)
    return groups


def _union(masks: Iterable[Mask]) -> Mask:
    return reduce(np.logical_or, masks)


def _on_grid(foregrounds: Iterable[tuple[Volume, Mask]], grid: Grid) -> Mask:
    """Return where any foreground, given with a volume on the same voxels, is on the grid."""
    # At half, a voxel is brain where most of it is; NaN outside the field of view compares false.
    return _union(
        resample(Volume(mask.astype(np.float32), volume.affine), grid) >= 0.5 for volume, mask in foregrounds
    )


def _largest_filled(mask: Mask) -> Mask:
    """Return the largest connected piece of a mask, with its holes filled."""
    if not mask.any():
        raise VolumeError("no_brain", "no voxel stands out from the background; check the volumes")
    box = _slices(mask)
    labels, count = ndimage.label(mask[box])
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = np.zeros_like(mask)
        mask[box] = labels == sizes.argmax()
    return _filled(mask)


def _filled(mask: Mask) -> Mask:
    """Return a mask with its holes filled: all but the piece of background that surrounds it."""
    filled = np.zeros_like(mask)
    box = _slices(mask)
    pieces, _ = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
    filled[box] = (pieces != pieces[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def _slices(mask: Mask) -> tuple[slice, ...]:
    return tuple(slice(*limits) for limits in bounding_box(mask, 0.0, 1.0))
