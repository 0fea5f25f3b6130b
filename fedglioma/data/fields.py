"""Grids in millimetres, and smooth random fields that are the same on every grid.

A field is white noise on a lattice fixed in space, blurred by a Gaussian and evaluated where it is asked
for. One seed therefore draws one patient, whether on 32 voxels a side or on 240.
"""

import zlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Axes = tuple[FloatArray, FloatArray, FloatArray]

LATTICE_MM = 256.0
BLUR = 0.6
"""Standard deviation of the blur, in lattice pitches: less shows the lattice, more wastes its detail."""
TAPS = 6
"""Lattice points that reach one place: the first one left out has weight exp(-12.5)."""
TEST_FIELD_OF_VIEW_MM = 176.0
FULL_SHAPE = (240, 240, 155)


@dataclass(frozen=True)
class Grid:
    """Voxel centres in mm, axes to the right, front and top (RAS+); the origin is the middle of the brain."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    centre: tuple[float, float, float] = (0.0, 0.0, -5.0)

    @classmethod
    def cube(cls, size: int) -> Self:
        """Return ``size`` voxels a side over 176 mm: a whole brain at test resolution."""
        return cls((size,) * 3, (TEST_FIELD_OF_VIEW_MM / size,) * 3)

    @classmethod
    def full(cls) -> Self:
        """Return 240 x 240 x 155 voxels of 1 mm, the grid of the BraTS collections."""
        return cls(FULL_SHAPE, (1.0, 1.0, 1.0))

    def axes(self) -> Axes:
        """Return the coordinates of the voxel centres along each axis, in mm."""
        x, y, z = (
            ((np.arange(count) - (count - 1) / 2) * step + middle).astype(np.float32)
            for count, step, middle in zip(self.shape, self.spacing, self.centre, strict=True)
        )
        return x, y, z

    def affine(self) -> npt.NDArray[np.float64]:
        """Return the map from voxel index to mm, shape (4, 4)."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [
            middle - (count - 1) / 2 * step
            for count, step, middle in zip(self.shape, self.spacing, self.centre, strict=True)
        ]
        return affine


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """Return a generator of its own for each key, so that no draw depends on the order of use."""
    words = [k if isinstance(k, int) else zlib.crc32(k.encode()) for k in key]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))


def smooth_noise(rng: np.random.Generator, axes: Axes, pitch_mm: float) -> FloatArray:
    """Return a Gaussian field of mean 0 and variance 1 whose blobs are about ``pitch_mm`` wide.

    Plain multiplications and additions: no BLAS, whose threads cost more than they give at this size and
    whose sums would differ in the last bit from one machine to the next.
    """
    nodes = int(np.ceil(LATTICE_MM / pitch_mm)) + 1
    field = rng.standard_normal((nodes, nodes, nodes), dtype=np.float32)
    for axis in axes:
        position = (axis.astype(np.float64) + LATTICE_MM / 2) / pitch_mm
        first = np.clip(np.floor(position).astype(np.intp) - TAPS // 2 + 1, 0, nodes - TAPS)
        reached = first[:, None] + np.arange(TAPS)
        weight = np.exp(-0.5 * ((position[:, None] - reached) / BLUR) ** 2)
        weight = (weight / np.sqrt((weight**2).sum(axis=1, keepdims=True))).astype(np.float32)
        blurred = field[reached[:, 0]] * weight[:, 0, None, None]
        for tap in range(1, TAPS):
            blurred += field[reached[:, tap]] * weight[:, tap, None, None]
        field = np.ascontiguousarray(np.moveaxis(blurred, 0, 2))
    return field


def sigmoid(values: FloatArray) -> FloatArray:
    """Return a soft step from 0 to 1: how much of a voxel lies inside a surface at 0."""
    inside: FloatArray = expit(values)
    return inside
