"""Augmentation in two steps: draw the parameters, then apply them, so that any image can be replayed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedglioma.case import CHANNELS, Frozen


class Augmentation(Frozen):
    """What may happen to a training image: mirroring, and per modality another scale and level.

    ``flip`` is the probability for each axis. ``scale`` and ``shift`` are the largest relative and
    absolute change of the z-scored intensities; 0 switches them off, MDPNet's authors use 0.1.
    """

    flip: float = Field(default=0.5, ge=0, le=1)
    scale: float = Field(default=0.0, ge=0, lt=1)
    shift: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Draw:
    """One outcome of an augmentation: which axes are mirrored, and each channel's factor and offset."""

    flips: tuple[bool, bool, bool] = (False, False, False)
    scale: tuple[float, ...] = (1.0,) * len(CHANNELS)
    shift: tuple[float, ...] = (0.0,) * len(CHANNELS)


def draw(augmentation: Augmentation, generator: np.random.Generator) -> Draw:
    """Return one outcome; a switched-off part uses up as many random numbers as a switched-on one."""
    first, second, third = (bool(value < augmentation.flip) for value in generator.random(3))
    scale = 1 + augmentation.scale * generator.uniform(-1, 1, len(CHANNELS))
    shift = augmentation.shift * generator.uniform(-1, 1, len(CHANNELS))
    return Draw((first, second, third), tuple(scale.tolist()), tuple(shift.tolist()))


def apply(outcome: Draw, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the augmented image, (4, D, H, W): the input itself where nothing happens to it.

    Background is exactly 0 and stays so, and with it an absent modality: only voxels that are not 0
    are shifted.
    """
    axes = tuple(axis + 1 for axis, mirrored in enumerate(outcome.flips) if mirrored)
    result = np.ascontiguousarray(np.flip(image, axes)) if axes else image
    if outcome.scale == Draw.scale and outcome.shift == Draw.shift:
        return result
    factor = np.asarray(outcome.scale, np.float32)[:, None, None, None]
    offset = np.asarray(outcome.shift, np.float32)[:, None, None, None]
    changed: NDArray[np.float32] = result * factor + offset * (result != 0)
    return changed
