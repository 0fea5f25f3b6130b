"""The part of a grid that is kept: boxes that may reach beyond it, and arrays cut or stretched to size."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from fedglioma.data.cache import HalfArray
from fedglioma.data.harmonize import Box
from fedglioma.data.normalize import zscore_in_brain, zscore_in_volume
from fedglioma.data.volume import Affine, FloatArray, Mask

_NEARLY_ZERO: Final = np.finfo(np.float16).smallest_subnormal


def box_about(box: Box, extents_mm: Sequence[float], spacing_mm: float) -> Box:
    """Return a box of these extents about another one's middle; it may reach beyond the grid."""
    sizes = [max(1, round(extent / spacing_mm)) for extent in extents_mm]
    starts = [(low + high - size) // 2 for (low, high), size in zip(box, sizes, strict=True)]
    x, y, z = ((start, start + size) for start, size in zip(starts, sizes, strict=True))
    return (x, y, z)


def cut_out(mask: Mask, box: Box) -> Mask:
    """Return the mask inside a box, False where the box reaches beyond it."""
    part = np.zeros([high - low for low, high in box], bool)
    source = tuple(slice(max(low, 0), max(high, 0)) for low, high in box)
    found = mask[source]
    target = tuple(
        slice(max(-low, 0), max(-low, 0) + size) for (low, _), size in zip(box, found.shape, strict=True)
    )
    part[target] = found
    return part


def half_precision(scaled: FloatArray, inside: Mask) -> HalfArray:
    """Return a volume in float16, 0 outside the brain and there alone."""
    half = scaled.astype(np.float16)
    half[inside & (half == 0)] = _NEARLY_ZERO
    return half


def stretched(
    image: HalfArray, affine: Affine, edge: int, *, of_volume: bool = False
) -> tuple[HalfArray, Affine]:
    """Return images, shape (M, D, H, W), stretched to cubes of an edge, trilinearly, and their affine.

    The outer faces stay where they are. What was outside the brain stays 0: the brain itself is stretched
    by its nearest voxels, and has mean 0 and standard deviation 1 afterwards; with ``of_volume`` the whole
    cube has that deviation, outside with it.
    """
    whole = torch.from_numpy(image.astype(np.float32))[None]
    size = (edge, edge, edge)
    values = torch.nn.functional.interpolate(whole, size, mode="trilinear", align_corners=False)[0].numpy()
    inside = torch.nn.functional.interpolate((whole != 0).float(), size, mode="nearest-exact")[0].numpy() > 0
    result = np.zeros(values.shape, np.float16)
    for channel, (value, brain) in enumerate(zip(values, inside, strict=True)):
        if brain.any():  # standardised once more: a mean of neighbours varies less than they do
            scaled = zscore_in_volume(value, brain) if of_volume else zscore_in_brain(value, brain)
            result[channel] = half_precision(scaled, brain)
    factors = np.array(image.shape[1:]) / edge
    moved = affine @ np.diag([*factors, 1.0])
    moved[:3, 3] += affine[:3, :3] @ ((factors - 1) / 2)
    return result, moved
