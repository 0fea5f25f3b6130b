"""A brain out of a whole head, without learned weights: shapes in each modality, and a vote among them.

In each modality, on 2 mm voxels: what is about as bright as the middle of the head is eroded until brain
and scalp come apart, the piece in the middle is grown back, closed and smoothed. FLAIR, where skull and
fluid are dark, has the most say; a vote that is no brain's size does not count.

A stand-in where no learned extractor is at hand: tuned on made-up heads, validated on none. Its result
always carries a warning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses

from fedglioma.case import Modality
from fedglioma.data.volume import FloatArray, Mask, VolumeError

WORKING_MM: Final = 2.0
PLAUSIBLE_ML: Final = (800.0, 2000.0)
WEIGHTS: Final = {Modality.FLAIR: 3, Modality.T2: 2, Modality.T1: 1, Modality.T1CE: 1}
_UPPER_HEAD: Final = 75
_BELOW_TOP: Final = 38
_CORE: Final = 18
_MIDDLE: Final = 25
_ROOM: Final = 10
_OPENING: Final = 4


@dataclass(frozen=True)
class _Shape:
    """How one modality's brain is cut out; radii in voxels of ``WORKING_MM``.

    ``bright`` is the share of the middle's brightness that still counts as brain.
    """

    bright: float
    erode: int
    grow: int
    close: int
    shrink: int = 0


_SHAPES: Final = {
    Modality.T1: _Shape(0.30, erode=3, grow=4, close=7),
    Modality.T1CE: _Shape(0.30, erode=3, grow=4, close=7),
    Modality.T2: _Shape(0.45, erode=2, grow=2, close=4, shrink=2),
    Modality.FLAIR: _Shape(0.42, erode=3, grow=4, close=7, shrink=1),
}


def strip_skull(heads: Mapping[Modality, FloatArray]) -> Mask:
    """Return the brain's voxels, shape (X, Y, Z), of modalities on one RAS grid of ``WORKING_MM``.

    Parameters
    ----------
    heads : mapping of Modality to array, shape (X, Y, Z)
        NaN where a modality was not acquired.

    Raises
    ------
    VolumeError
        ``no_brain``: no modality shows anything of a brain's size.
    """
    votes: dict[Modality, Mask] = {}
    seen = []
    for modality, head in heads.items():
        mask = _cut_out(np.nan_to_num(head, nan=0.0), _SHAPES[modality])
        millilitres = float(np.count_nonzero(mask)) * WORKING_MM**3 / 1000
        seen.append(f"{modality} {millilitres:.0f} mL")
        if PLAUSIBLE_ML[0] <= millilitres <= PLAUSIBLE_ML[1]:
            votes[modality] = mask
    if not votes:
        low, high = PLAUSIBLE_ML
        raise VolumeError(
            "no_brain",
            f"no brain of {low:.0f} to {high:.0f} mL was found ({', '.join(seen)}); "
            "give skull-stripped volumes or name a brain extractor",
        )
    total = sum(WEIGHTS[modality] * mask.astype(np.int8) for modality, mask in votes.items())
    brain: Mask = 2 * np.asarray(total) > sum(WEIGHTS[modality] for modality in votes)
    return brain


def _cut_out(head: FloatArray, shape: _Shape) -> Mask:
    smooth = sitk.CurvatureFlow(sitk.GetImageFromArray(np.ascontiguousarray(head.T)), 0.05, 3)
    grey = sitk.GetArrayFromImage(smooth)  # (Z, Y, X)
    centre = _centre(grey)
    if centre is None:
        return np.zeros(head.shape, bool)
    middle, foreground = centre
    bright = float(np.median(grey[(middle < _CORE) & foreground]))
    tissue = sitk.GetImageFromArray((grey > shape.bright * bright).astype(np.uint8))
    brain = _grown(tissue, _middle_piece(tissue, middle, shape.erode), shape)
    result: Mask = sitk.GetArrayFromImage(_rounded(brain, shape)).T.astype(bool)
    return result


def _centre(grey: FloatArray) -> tuple[FloatArray, Mask] | None:
    """Return each voxel's distance from the middle of the brain case, in voxels, and the head."""
    low, high = np.percentile(grey, [2, 98])
    head: Mask = grey > low + 0.1 * (high - low)
    heights = np.nonzero(head)[0]
    if not heights.size:
        return None
    top = float(np.percentile(heights, 99.5))
    # The upper part alone: neck and face would pull the middle down and forward.
    upper = np.nonzero(head[int(max(0.0, top - _UPPER_HEAD)) :])
    middle = (top - _BELOW_TOP, float(upper[1].mean()), float(upper[2].mean()))
    axes = np.ogrid[tuple(slice(size) for size in grey.shape)]
    square = sum((axis - place) ** 2 for axis, place in zip(axes, middle, strict=True))
    distance: FloatArray = np.sqrt(square)
    if not (head & (distance < _CORE)).any():
        return None
    return distance, head


def _middle_piece(tissue: sitk.Image, distance: FloatArray, radius: int) -> sitk.Image:
    """Return the connected piece of eroded tissue that fills most of the middle."""
    pieces = sitk.ConnectedComponent(sitk.BinaryErode(tissue, [radius] * 3, sitk.sitkBall))
    labels = sitk.GetArrayViewFromImage(pieces)[distance < _MIDDLE]
    labels = labels[labels > 0]
    chosen = int(np.bincount(labels).argmax()) if labels.size else 1
    piece: sitk.Image = sitk.Cast(pieces == chosen, sitk.sitkUInt8)
    return piece


def _grown(tissue: sitk.Image, piece: sitk.Image, shape: _Shape) -> sitk.Image:
    """Return the piece as large as before the erosion; a short growth stays inside the tissue."""
    for _ in range(shape.grow):
        piece = sitk.BinaryDilate(piece, [1] * 3, sitk.sitkBall)
        if shape.grow <= shape.erode:
            piece = piece & tissue
    return piece


def _rounded(brain: sitk.Image, shape: _Shape) -> sitk.Image:
    """Return the brain with folds closed, holes filled and thin bridges cut, smoothed."""
    wide = sitk.ConstantPad(brain, [_ROOM] * 3, [_ROOM] * 3, 0)
    wide = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(wide, [shape.close] * 3, sitk.sitkBall))
    if shape.shrink:
        wide = sitk.BinaryErode(wide, [shape.shrink] * 3, sitk.sitkBall)
    opened = sitk.BinaryMorphologicalOpening(wide, [_OPENING] * 3, sitk.sitkBall)
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(opened)) == 1
    brain = sitk.Cast(sitk.Crop(largest, [_ROOM] * 3, [_ROOM] * 3), sitk.sitkFloat32)
    smooth: sitk.Image = sitk.SmoothingRecursiveGaussian(brain, 1.0) > 0.5
    return smooth
