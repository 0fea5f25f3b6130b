"""A made-up head as maps of what an MR scanner measures: T1, T2, proton density, contrast agent.

One patient has the same brain and the same tumour on every grid.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedglioma.data.anatomy import Label, draw_anatomy
from fedglioma.data.fields import Axes, BoolArray, FloatArray, Grid, smooth_noise, stream
from fedglioma.data.lesion import TUMOUR_LABELS, Box, Layer, MaskArray, Surroundings, grow, lesion_box
from fedglioma.data.patients import Patient

T = TypeVar("T", bound=np.generic)


# at 3 T, in the order of Label
T1_MS = np.array([1, 370, 400, 1400, 4200, 1350, 850, 1150], np.float32)
T2_MS = np.array([1, 95, 1, 42, 1500, 95, 74, 80], np.float32)
PROTON_DENSITY = np.array([0, 0.80, 0.06, 0.70, 1.0, 0.80, 0.69, 0.76], np.float32)

FINE_MM = 4.0
POINTS = 2
"""Points along a voxel's edge where voxels are wider than ``FINE_MM``, as wide as a tumour's ring."""

_HEAD_MM = ((-92, 92), (-112, 112), (-112, 86))
_BRAIN_MM = ((-76, 76), (-95, 95), (-96, 68))


@dataclass(frozen=True)
class Tissue:
    """Maps over ``box``, the part of the grid that holds the head (or the brain, without skull).

    A voxel of a coarse grid has several ``points`` along each of its edges, for it shows the mean of what it
    covers: the maps have a value per point, the images a value per voxel. Times are in ms at 3 T; ``mask``
    is the tumour with the labels of BraTS 2021.
    """

    grid: Grid
    box: Box
    points: int
    labels: MaskArray
    brain: BoolArray
    t1_ms: FloatArray
    t2_ms: FloatArray
    proton_density: FloatArray
    gadolinium: FloatArray
    mask: MaskArray

    def voxels(self, values: npt.NDArray[Any]) -> FloatArray:
        """Return the mean over each voxel of what is given at each point."""
        if self.points == 1:
            return values.astype(np.float32)
        total = np.zeros([length // self.points for length in values.shape], np.float32)
        for i, j, k in product(range(self.points), repeat=3):
            total += values[i :: self.points, j :: self.points, k :: self.points]
        return total / np.float32(self.points**3)

    def brain_voxels(self) -> BoolArray:
        """Return the voxels that are mostly brain."""
        return self._mostly(self.brain)

    def mask_voxels(self) -> MaskArray:
        """Return the tumour's mask by voxel: those mostly tumour, with the label that fills most."""
        if self.points == 1:
            return self.mask
        shares = np.stack([self.voxels(self.mask == label) for label in TUMOUR_LABELS])
        mask: MaskArray = np.array(TUMOUR_LABELS, np.uint8)[shares.argmax(axis=0)]
        mask[~self._mostly(self.mask > 0)] = 0
        return mask

    def _mostly(self, inside: BoolArray) -> BoolArray:
        # half filled is decided by one point: always yes would make what is small too large
        first = inside[:: self.points, :: self.points, :: self.points]
        more: BoolArray = self.voxels(inside) > np.where(first, 0.49, 0.51)
        return more

    def voxel_axes(self) -> Axes:
        """Return the coordinates of the box's voxels, in mm."""
        x, y, z = (axis[part] for axis, part in zip(self.grid.axes(), self.box, strict=True))
        return x, y, z

    def whole(self, part: npt.NDArray[T]) -> npt.NDArray[T]:
        """Return the box's voxels in their place on the whole grid, zero around them."""
        whole = np.zeros(self.grid.shape, part.dtype)
        whole[self.box] = part
        return whole


def render_tissue(patient: Patient, grid: Grid, *, skull: bool = False) -> Tissue:
    """Return the patient's tissue on a grid, with or without skull, scalp and face."""
    box = _crop(grid, _HEAD_MM if skull else _BRAIN_MM)
    count = 1 if max(grid.spacing) <= FINE_MM else POINTS
    axes = _subdivide(grid, box, count)
    anatomy = draw_anatomy(patient, axes, skull=skull)
    t1, t2, density = _relaxation(anatomy.labels, axes, patient.seed)
    tissue = Tissue(
        grid=grid,
        box=box,
        points=count,
        labels=anatomy.labels,
        brain=anatomy.brain,
        t1_ms=t1,
        t2_ms=t2,
        proton_density=density,
        gadolinium=np.zeros_like(t1),
        mask=np.zeros_like(anatomy.labels),
    )
    _add_tumour(tissue, axes, patient, anatomy.depth)
    _add_vessels(tissue, axes, patient.seed)
    return tissue


def _crop(grid: Grid, limits_mm: tuple[tuple[int, int], ...]) -> Box:
    x, y, z = (
        slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high)))
        for axis, (low, high) in zip(grid.axes(), limits_mm, strict=True)
    )
    return x, y, z


def _subdivide(grid: Grid, box: Box, count: int) -> Axes:
    """Return the coordinates, in mm, of ``count`` points along each edge of the box's voxels."""
    steps = (np.arange(count) - (count - 1) / 2) / count
    x, y, z = (
        np.add.outer(axis[part], steps * spacing).ravel().astype(np.float32)
        for axis, part, spacing in zip(grid.axes(), box, grid.spacing, strict=True)
    )
    return x, y, z


def _relaxation(labels: MaskArray, axes: Axes, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    jitter = stream(seed, "relaxation").normal(1, 0.03, (3, len(Label))).astype(np.float32)
    jitter[:, Label.AIR] = 1
    texture = smooth_noise(stream(seed, "texture"), axes, 7.0)
    t1 = (T1_MS * jitter[0])[labels] * (1 + 0.025 * texture)
    t2 = (T2_MS * jitter[1])[labels] * (1 - 0.02 * texture)
    density = (PROTON_DENSITY * (1 + (jitter[2] - 1) * 0.4))[labels]
    return t1, t2, density


def _add_tumour(tissue: Tissue, axes: Axes, patient: Patient, depth: FloatArray) -> None:
    box = lesion_box(patient, axes)
    near = (axes[0][box[0]], axes[1][box[1]], axes[2][box[2]])
    labels, brain = tissue.labels[box], tissue.brain[box]
    around = Surroundings(
        white=(labels == Label.WHITE) | (labels == Label.DEEP_GREY),
        parenchyma=brain & (labels >= Label.GREY),
        # a tumour fills sulci but not the cisterns around the brain
        sulci=brain & (labels == Label.CSF) & (depth[box] > 1),
        brain=brain,
    )
    lesion = grow(patient, near, around)
    for layer in lesion.layers:
        _blend(tissue, box, layer)
    tissue.gadolinium[box] += lesion.gadolinium
    tissue.mask[box] = lesion.mask


def _blend(tissue: Tissue, box: Box, layer: Layer) -> None:
    for values, new in (
        (tissue.t1_ms, layer.t1_ms),
        (tissue.t2_ms, layer.t2_ms),
        (tissue.proton_density, layer.proton_density),
    ):
        values[box] += layer.weight * (new - values[box])


def _add_vessels(tissue: Tissue, axes: Axes, seed: int) -> None:
    """Add cortical vessels: they take up contrast agent, and flowing blood is black on T2."""
    course = smooth_noise(stream(seed, "vessels"), axes, 12.0)
    vessels = (tissue.labels == Label.CSF) & tissue.brain & (np.abs(course) < 0.02)
    tissue.gadolinium[vessels] = 0.8
    tissue.t2_ms[vessels] = 30
