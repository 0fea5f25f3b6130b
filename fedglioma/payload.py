"""What a site sends: its weights as they are, or its step rounded to 16 or 8 bits.

=============  =================================================================================
payload        from a site
=============  =================================================================================
``float32``    its weights
``bfloat16``   its step, each number rounded to the nearest bfloat16 (to even)
``int8``       its step, each number as a multiple -127 to 127 of its block's scale, the largest
               magnitude of 1024 numbers / 127
``masked``     its weighted step in fixed point under the masks of a secure sum, and one number
               more, its weight (``privacy/masked.py``)
=============  =================================================================================

A step is local - received in float32. It is off by at most 2^-8 of its own magnitude (bfloat16, above
2^-126) or half of its block's scale, 1/254 of the block's largest step (int8). To the sites the weights
travel as float32 with every payload: rounded on this way, they were slow to learn (docs/payload.md).

Each group stays one flat array: float32, uint16 (the upper half of a float32), or uint8 (the float32 scales
of all blocks, then the multiples as int8), or uint32 (masked).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedglioma.config.run import Payload
from fedglioma.errors import Diverged
from fedglioma.weights import FlatArrays, Packed

BLOCK = 1024
"""Numbers that share a scale; parts of an array begin at a multiple of it."""
PART = 256 * BLOCK
"""Numbers rounded at a time, so that a step needs no second copy of the model."""
LEVELS = 127


class Sliceable(Protocol):
    """An array in memory, or one on disk that is read in parts."""

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Return some of its elements."""


def forms(payload: Payload, sizes: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Return dtype and number of elements of each group on the road, given its numbers."""
    kinds = {"float32": "float32", "bfloat16": "uint16", "int8": "uint8", "masked": "uint32"}
    return {group: (kinds[payload], size + _more(payload, size)) for group, size in sizes.items()}


def _more(payload: Payload, size: int) -> int:
    """Return how many elements travel beyond one for each number."""
    return {"int8": 4 * _blocks(size), "masked": 1}.get(payload, 0)


def packed_bytes(payload: Payload, sizes: Mapping[str, int]) -> int:
    """Return the bytes of all groups on the road."""
    return sum(np.dtype(kind).itemsize * size for kind, size in forms(payload, sizes).values())


def update(payload: Payload, local: FlatArrays, received: FlatArrays) -> Packed:
    """Return what a site sends: its weights, or its step away from what it received, rounded.

    Raises
    ------
    FedGliomaError
        A step is not a finite number.
    """
    if payload == "float32":
        return dict(local)
    packed: Packed = {}
    wanted = forms(payload, {group: array.size for group, array in local.items()})
    for group, array in local.items():
        kind, size = wanted[group]
        packed[group] = np.empty(size, kind)
        for start in range(0, array.size, PART):
            part = slice(start, min(start + PART, array.size))
            step = array[part] - received[group][part]
            if not np.isfinite(step).all():
                raise Diverged("training diverged: the step is no longer made of finite numbers")
            if payload == "bfloat16":
                packed[group][part] = to_bfloat16(step)
            else:
                _put_int8(packed[group], array.size, part, step)
    return packed


def step_part(
    payload: Payload, packed: Sliceable, size: int, part: slice, sent: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return part of a site's step, exactly as it travelled, in float64.

    Parameters
    ----------
    packed : sliceable
        One group of what the site sent.
    size : int
        Numbers of the whole group.
    part : slice
        Which of them; begins at a multiple of ``BLOCK``.
    sent : array
        The group's weights that the site started from.
    """
    if payload == "float32":
        return packed[part].astype(np.float64) - sent[part]
    if payload == "bfloat16":
        return from_bfloat16(packed[part]).astype(np.float64)
    head = 4 * _blocks(size)
    scales = packed[slice(4 * (part.start // BLOCK), 4 * _blocks(part.stop))].view("<f4").astype(np.float64)
    levels = packed[slice(head + part.start, head + part.stop)].view(np.int8)
    return levels * np.repeat(scales, BLOCK)[: levels.size]


def to_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the nearest bfloat16 of each number, ties to even; what would overflow becomes the largest."""
    bits = numbers.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    overflowed = ((rounded & 0x7FFF) == 0x7F80) & np.isfinite(numbers)
    return np.where(overflowed, rounded - 1, rounded).astype(np.uint16)


def from_bfloat16(packed: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 numbers as float32, exactly."""
    return (packed.astype(np.uint32) << 16).view(np.float32)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _put_int8(packed: NDArray[np.uint8], size: int, part: slice, step: NDArray[np.float32]) -> None:
    blocks = np.zeros((_blocks(step.size), BLOCK))
    blocks.reshape(-1)[: step.size] = step
    largest = np.abs(blocks).max(axis=1)
    scales = (largest / LEVELS).astype(np.float32)
    # Rounded down, the scale would let the largest number end beyond the last level.
    short = LEVELS * scales.astype(np.float64) < largest
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    divisors = np.where(scales > 0, scales, 1).astype(np.float64)
    levels = np.rint(blocks / divisors[:, None]).astype(np.int8)
    head = 4 * _blocks(size)
    packed[4 * (part.start // BLOCK) : 4 * _blocks(part.stop)] = scales.astype("<f4").view(np.uint8)
    packed[head + part.start : head + part.stop] = levels.reshape(-1)[: step.size].view(np.uint8)
