"""Numbers as multiples of a unit, so that sums modulo 2^32 are exact.

A masked sum works on whole numbers modulo 2^32. A number x becomes the nearest multiple of a unit, ties to
even, as two's complement. The unit is the smallest power of two with which the largest sum still fits, so a
whole number is exact wherever the unit is 1 or less, and scaling never rounds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedglioma.case import Frozen
from fedglioma.errors import AggregationError, Diverged, ProtocolError

Words = NDArray[np.uint32]
"""What is masked and summed: numbers modulo 2^32."""

LARGEST_SUM: Final = 2**31 - 1
BLOCK: Final = 2**16
"""Numbers worked on at a time; a block stays in the processor's cache."""


class Part(Frozen):
    """A named run of numbers in what is summed, and how large any of them can be at one site."""

    name: str = Field(min_length=1, max_length=64)
    size: int = Field(ge=0, lt=2**40)
    range: float = Field(ge=2.0**-100, le=2.0**100)


@dataclass(frozen=True)
class FixedPoint:
    """The code of numbers from ``-range`` to ``range``, of at most ``sites`` sites, for their sum.

    The sum of n sites is off by at most n/2 units. A unit is above ``range * sites / 2^31`` and no more than
    twice that; four times, where the largest sum would miss by a hair.

    Raises
    ------
    ProtocolError
        There is no such code.
    """

    range: float
    sites: int
    unit: float = field(init=False)

    def __post_init__(self) -> None:
        fits = 2.0**-100 <= self.range <= 2.0**100 and 1 <= self.sites <= 2**16
        if not fits:
            raise ProtocolError(
                f"fixed point: range {self.range:g} for {self.sites} sites; the range must be above 0 and "
                "finite, with 1 to 65536 sites"
            )
        power = math.frexp(self.range * self.sites)[1] - 33
        while self.sites * round(self.range / 2.0**power) > LARGEST_SUM:
            power += 1
        object.__setattr__(self, "unit", 2.0**power)

    def encode(self, numbers: NDArray[Any], out: Words | None = None) -> Words:
        """Return numbers of shape (n,), float32 or float64, as multiples of the unit modulo 2^32.

        Raises
        ------
        Diverged
            A number is not finite.
        ProtocolError
            A number lies outside the range. Which, and by how much, is not said: the words may be told.
        """
        coded = np.empty(numbers.shape, np.uint32) if out is None else out
        for start in range(0, numbers.size, BLOCK):
            block = numbers[start : start + BLOCK].astype(np.float64)
            largest = float(np.abs(block).max())
            if not math.isfinite(largest):
                raise Diverged("secure sum: training diverged; a number to add is not finite")
            if largest > self.range:
                raise ProtocolError(
                    f"secure sum: a number lies outside the agreed range, {self.range:g} either way; "
                    "clip the update, or let the coordinator set a larger range"
                )
            block /= self.unit
            np.rint(block, out=block)
            coded[start : start + BLOCK] = block.astype(np.int32).view(np.uint32)
        return coded

    def decode(self, total: Words, count: int) -> NDArray[np.float64]:
        """Return the sum over ``count`` sites, shape as given, exact to half a unit per site.

        Raises
        ------
        AggregationError
            More sites than agreed on, or a sum that numbers inside the range cannot have.
        """
        if not 1 <= count <= self.sites:
            raise AggregationError(
                f"secure sum: {count} sites, the code is made for 1 to {self.sites}; repeat the round"
            )
        signed = total.view(np.int32)
        most = count * round(self.range / self.unit)
        if signed.size and max(int(signed.max()), -int(signed.min())) > most:
            raise AggregationError(
                f"secure sum: a number is larger than {count} sites with the range {self.range:g} can give; "
                "some site added what it should not; repeat the round with fewer sites to find it"
            )
        return signed * np.float64(self.unit)


def encode_parts(parts: Sequence[Part], sites: int, arrays: Mapping[str, NDArray[Any]]) -> Words:
    """Return all parts as one vector, each with its own unit, in the order of ``parts``.

    Raises
    ------
    ProtocolError
        A part is missing, too much or of another size; or a number lies outside its range.
    Diverged
        A number is not finite.
    """
    sizes = {name: array.shape for name, array in arrays.items()}
    wanted = {part.name: (part.size,) for part in parts}
    if sizes != wanted:
        raise ProtocolError(f"secure sum: parts {sizes} where {wanted} were agreed on")
    vector = np.empty(sum(part.size for part in parts), np.uint32)
    start = 0
    for part in parts:
        FixedPoint(part.range, sites).encode(arrays[part.name], vector[start : start + part.size])
        start += part.size
    return vector


def decode_parts(
    parts: Sequence[Part], sites: int, total: Words, count: int
) -> dict[str, NDArray[np.float64]]:
    """Return the sums over ``count`` sites, by the parts' names.

    Raises
    ------
    AggregationError
        The vector has another size, or a sum is larger than the ranges allow.
    """
    if total.shape != (sum(part.size for part in parts),):
        raise AggregationError(f"secure sum: {total.shape} numbers are not the parts agreed on")
    sums = {}
    start = 0
    for part in parts:
        code = FixedPoint(part.range, sites)
        sums[part.name] = code.decode(total[start : start + part.size], count)
        start += part.size
    return sums
