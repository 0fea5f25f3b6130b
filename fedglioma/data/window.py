"""Boxes of voxels in a volume: where the centred one lies, and the way back from a box to the volume.

A start is a voxel of the volume, one per axis; it is negative where the box begins before the volume.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
Part = tuple[slice, ...]


def centre_starts(shape: Sequence[int], box: Sequence[int]) -> tuple[int, ...]:
    """Return where a box begins that lies in the middle of a volume, as held-out cases are cut out."""
    return tuple((size - edge) // 2 for size, edge in zip(shape, box, strict=True))


def window(shape: Sequence[int], starts: Sequence[int], box: Sequence[int]) -> tuple[Part, Part]:
    """Return where a box that begins at ``starts`` lies in a volume, and that part's place in the box."""
    source, target = [], []
    for size, start, edge in zip(shape, starts, box, strict=True):
        low, high = max(start, 0), min(start + edge, size)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(source), tuple(target)


def put_back(cube: NDArray[Number], shape: Sequence[int]) -> NDArray[Number]:
    """Return what was found in a volume's centred box on all of the volume's voxels, (D, H, W).

    Where the box does not reach it is 0 or False: nobody looked there. What was found in the zeros that the
    box was padded with is gone.
    """
    whole = np.zeros(shape, cube.dtype)
    looked, inside = window(shape, centre_starts(shape, cube.shape), cube.shape)
    whole[looked] = cube[inside]
    return whole
