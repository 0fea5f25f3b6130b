"""Augmentation in two steps: draw the parameters, then apply them, so that any image can be replayed."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedglioma.case import CHANNELS, UNKNOWN, Frozen

Value = TypeVar("Value", np.float32, np.int8)


class Augmentation(Frozen):
    """What may happen to a training image: mirroring, translation, and per modality another scale and level.

    ``flip`` is the probability for each axis, ``one_flip_p`` that one of the axes, whichever, is mirrored.
    ``scale`` and ``shift`` are the largest relative and absolute change of the z-scored intensities; 0
    switches them off, MDPNet's authors use 0.1. With probability ``shift_p`` the image is moved by up to
    ``shift_voxels`` along each axis, zeros moving in; 0 switches it off.
    """

    flip: float = Field(default=0.5, ge=0, le=1)
    scale: float = Field(default=0.0, ge=0, lt=1)
    shift: float = Field(default=0.0, ge=0)
    shift_voxels: int = Field(default=0, ge=0)
    shift_p: float = Field(default=0.5, ge=0, le=1)
    one_flip_p: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True)
class Draw:
    """One outcome of an augmentation: which axes are mirrored, each channel's factor and offset.

    ``shift_by`` is how many voxels the mirrored image is then moved along each axis.
    """

    flips: tuple[bool, bool, bool] = (False, False, False)
    scale: tuple[float, ...] = (1.0,) * len(CHANNELS)
    shift: tuple[float, ...] = (0.0,) * len(CHANNELS)
    shift_by: tuple[int, int, int] = (0, 0, 0)


def draw(augmentation: Augmentation, generator: np.random.Generator) -> Draw:
    """Return one outcome; a switched-off part uses up as many random numbers as a switched-on one."""
    flips = (generator.random(3) < augmentation.flip).tolist()
    scale = 1 + augmentation.scale * generator.uniform(-1, 1, len(CHANNELS))
    shift = augmentation.shift * generator.uniform(-1, 1, len(CHANNELS))
    # After the others, so that seeds from before there was a translation give what they gave.
    flipped, axis, moved, *along = generator.random(6).tolist()
    if flipped < augmentation.one_flip_p:
        chosen = int(axis * 3)
        flips[chosen] = not flips[chosen]
    x, y, z = (_voxels(part, augmentation.shift_voxels) for part in along)
    shift_by = (x, y, z) if moved < augmentation.shift_p else Draw.shift_by
    return Draw((flips[0], flips[1], flips[2]), tuple(scale.tolist()), tuple(shift.tolist()), shift_by)


def apply(outcome: Draw, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the augmented image, (4, D, H, W): the input itself where nothing happens to it.

    Background is exactly 0 and stays so, and with it an absent modality: only voxels that are not 0
    are shifted in intensity.
    """
    result = _placed(outcome, image)
    if outcome.scale == Draw.scale and outcome.shift == Draw.shift:
        return result
    factor = np.asarray(outcome.scale, np.float32)[:, None, None, None]
    offset = np.asarray(outcome.shift, np.float32)[:, None, None, None]
    changed: NDArray[np.float32] = result * factor + offset * (result != 0)
    return changed


def apply_to_mask(outcome: Draw, mask: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the mask, (D, H, W), where ``apply`` puts the image; a mask of ``UNKNOWN`` stays as it is."""
    if (mask == UNKNOWN).any():
        return mask
    return _placed(outcome, mask)


def _placed(outcome: Draw, array: NDArray[Value]) -> NDArray[Value]:
    """Return an array whose last three axes are mirrored and moved; what moves in is 0."""
    axes = tuple(axis - 3 for axis, mirrored in enumerate(outcome.flips) if mirrored)
    result = np.ascontiguousarray(np.flip(array, axes)) if axes else array
    if outcome.shift_by == Draw.shift_by:
        return result
    source: tuple[slice, ...] = (slice(None),) * (array.ndim - 3)
    target: tuple[slice, ...] = source
    for by, size in zip(outcome.shift_by, array.shape[-3:], strict=True):
        low = max(by, 0)
        high = max(low, size + min(by, 0))
        target, source = (*target, slice(low, high)), (*source, slice(low - by, high - by))
    moved = np.zeros_like(result)
    moved[target] = result[source]
    return moved


def _voxels(part: float, most: int) -> int:
    """Return an integer from -most to most, each as likely, from a number in [0, 1)."""
    return int(part * (2 * most + 1)) - most
