"""A made-up head as maps of what an MR scanner measures: T1, T2, proton density, contrast agent.

Everything is an analytic surface in millimetres: ellipsoids for hull, cerebellum and stem, zero levels of
smooth noise for the folds. So one patient has the same brain and the same tumour on every grid.
"""

from dataclasses import dataclass
from enum import IntEnum
from itertools import product
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedglioma.data.fields import Axes, BoolArray, FloatArray, Grid, smooth_noise, stream
from fedglioma.data.lesion import TUMOUR_LABELS, Box, Layer, MaskArray, Surroundings, grow, lesion_box
from fedglioma.data.patients import Patient, Tumour

T = TypeVar("T", bound=np.generic)


class Label(IntEnum):
    """Healthy tissue classes."""

    AIR = 0
    SCALP = 1
    BONE = 2
    MUSCLE = 3
    CSF = 4
    GREY = 5
    WHITE = 6
    DEEP_GREY = 7


# at 3 T, in the order of Label
T1_MS = np.array([1, 370, 400, 1400, 4200, 1350, 850, 1150], np.float32)
T2_MS = np.array([1, 95, 1, 42, 1500, 95, 74, 80], np.float32)
PROTON_DENSITY = np.array([0, 0.80, 0.06, 0.70, 1.0, 0.80, 0.69, 0.76], np.float32)

FINE_MM = 4.0
POINTS = 2
"""Points along a voxel's edge where voxels are wider than ``FINE_MM``, as wide as a tumour's ring."""

# centre and half axes in mm, right side: thalamus, lentiform nucleus, caudate head
_NUCLEI = (((10, -10, 2), (8, 13, 8)), ((26, 5, 0), (5, 15, 10)), ((13, 19, 8), (5, 9, 8)))
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
        """Return the voxels that are brain for at least their half."""
        half: BoolArray = self.voxels(self.brain) >= 0.5
        return half

    def mask_voxels(self) -> MaskArray:
        """Return the tumour's mask by voxel: those half filled, with the label that fills most."""
        if self.points == 1:
            return self.mask
        shares = np.stack([self.voxels(self.mask == label) for label in TUMOUR_LABELS])
        mask: MaskArray = np.array(TUMOUR_LABELS, np.uint8)[shares.argmax(axis=0)]
        mask[shares.sum(axis=0) < 0.5] = 0
        return mask

    def voxel_axes(self) -> Axes:
        """Return the coordinates of the box's voxels, in mm."""
        x, y, z = (axis[part] for axis, part in zip(self.grid.axes(), self.box, strict=True))
        return x, y, z

    def whole(self, part: npt.NDArray[T]) -> npt.NDArray[T]:
        """Return the box's voxels in their place on the whole grid, zero around them."""
        whole = np.zeros(self.grid.shape, part.dtype)
        whole[self.box] = part
        return whole


@dataclass(frozen=True)
class _Points:
    """Coordinates in mm that broadcast to the box."""

    x: FloatArray
    y: FloatArray
    z: FloatArray

    def ellipsoid(
        self, centre: tuple[float, float, float], half_axes: tuple[float, float, float]
    ) -> FloatArray:
        """Return the distance from the centre in half axes: 1 on the surface."""
        (cx, cy, cz), (ax, ay, az) = centre, half_axes
        square = ((self.x - cx) / ax) ** 2 + ((self.y - cy) / ay) ** 2 + ((self.z - cz) / az) ** 2
        distance: FloatArray = np.sqrt(square)
        return distance


@dataclass(frozen=True)
class _Head:
    """Sizes of one head relative to the average, ventricles in mm, and how wide the sulci gape."""

    width: float
    length: float
    height: float
    ventricle_mm: float
    atrophy: float


@dataclass(frozen=True)
class _Surfaces:
    """Depth in mm (positive inside) below the hulls of cerebrum, cerebellum and stem; noise for the folds."""

    cerebrum: FloatArray
    cerebellum: FloatArray
    stem: FloatArray
    wobble: FloatArray
    folds: FloatArray


def render_tissue(patient: Patient, grid: Grid, *, skull: bool = False) -> Tissue:
    """Return the patient's tissue on a grid, with or without skull, scalp and face."""
    box = _crop(grid, _HEAD_MM if skull else _BRAIN_MM)
    count = 1 if max(grid.spacing) <= FINE_MM else POINTS
    axes = _subdivide(grid, box, count)
    points = _Points(*np.meshgrid(*axes, indexing="ij", sparse=True))
    pulled = _mass_effect(points, patient.tumour)
    head = _sample_head(patient)
    surfaces = _surfaces(pulled, axes, head, patient.seed)

    labels = np.zeros(surfaces.cerebrum.shape, np.uint8)
    if skull:
        _paint_skull(labels, points, axes, head, surfaces, patient.seed)
    _paint_hindbrain_and_hull(labels, surfaces, pulled)
    _paint_cerebrum(labels, surfaces, head)
    _paint_depths(labels, surfaces, pulled, head)
    brain = np.maximum(np.maximum(surfaces.cerebrum, surfaces.cerebellum), surfaces.stem) > -1.0

    t1, t2, density = _relaxation(labels, axes, patient.seed)
    tissue = Tissue(
        grid=grid,
        box=box,
        points=count,
        labels=labels,
        brain=brain,
        t1_ms=t1,
        t2_ms=t2,
        proton_density=density,
        gadolinium=np.zeros_like(t1),
        mask=np.zeros_like(labels),
    )
    _add_tumour(tissue, axes, patient, surfaces.cerebrum)
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


def _mass_effect(points: _Points, tumour: Tumour) -> _Points:
    """Return where each point lay before the tumour pushed it aside."""
    dx, dy, dz = (
        p - c for p, c in zip((points.x, points.y, points.z), map(np.float32, tumour.centre), strict=True)
    )
    push = 0.22 * min(1.0, tumour.radius_mm / 24)
    pull = push * np.exp(-(dx**2 + dy**2 + dz**2) / (1.3 * tumour.radius_mm) ** 2)
    return _Points(points.x - pull * dx, points.y - pull * dy, points.z - pull * dz)


def _sample_head(patient: Patient) -> _Head:
    rng = stream(patient.seed, "head")
    width, length, height = (float(size) for size in rng.normal(1, 0.03, 3))
    ventricle = float(np.clip(rng.normal(5.5, 1.0) + 0.04 * (patient.age - 50), 3.5, 9.5))
    return _Head(width, length, height, ventricle, atrophy=1 + 0.012 * max(0.0, patient.age - 55))


def _surfaces(points: _Points, axes: Axes, head: _Head, seed: int) -> _Surfaces:
    wobble = 1 + 0.025 * smooth_noise(stream(seed, "hull"), axes, 40.0)
    # the base of the brain is flatter than its vault
    height = np.where(points.z > -5, np.float32(62 * head.height), np.float32(42 * head.height))
    square = (points.x / (67 * head.width)) ** 2 + (points.y / (84 * head.length)) ** 2
    hull = np.sqrt(square + ((points.z + 5) / height) ** 2) * wobble
    cerebellum = points.ellipsoid((0, -46, -45), (50 * head.width, 33 * head.length, 25 * head.height))
    return _Surfaces(
        cerebrum=(1 - hull) * 68,
        cerebellum=(1 - cerebellum) * 33,
        stem=(1 - points.ellipsoid((0, -20, -52), (13, 12, 42))) * 13,
        wobble=wobble,
        folds=smooth_noise(stream(seed, "folds"), axes, 8.0),
    )


def _paint_skull(
    labels: MaskArray, points: _Points, axes: Axes, head: _Head, surfaces: _Surfaces, seed: int
) -> None:
    x, y, z = points.x, points.y, points.z
    height = np.where(z > -5, np.float32(62 * head.height + 15), np.float32(110))
    square = (x / (67 * head.width + 15)) ** 2 + (y / (84 * head.length + 15)) ** 2
    scalp = (1 - np.sqrt(square + ((z + 5) / height) ** 2) * surfaces.wobble) * 80
    face = (1 - points.ellipsoid((0, 55, -62), (50, 48, 46))) * 46
    thickness = 5 + 1.5 * smooth_noise(stream(seed, "scalp"), axes, 30.0)
    labels[(scalp > 0) | (face > 0)] = Label.SCALP
    labels[(scalp > thickness) & (z > -62)] = Label.BONE
    labels[((scalp > thickness) & (z <= -48)) | (face > 5)] = Label.MUSCLE
    for side in (-1, 1):
        eye = points.ellipsoid((side * 31, 74 * head.length, -34), (12.5, 12.5, 12.5))
        labels[eye < 1] = Label.CSF


def _paint_hindbrain_and_hull(labels: MaskArray, surfaces: _Surfaces, points: _Points) -> None:
    cerebellum, stem = surfaces.cerebellum, surfaces.stem
    outer = np.maximum(np.maximum(surfaces.cerebrum + 3.2, cerebellum + 2.5), stem + 2.0)
    labels[outer > 0] = Label.CSF
    below = surfaces.cerebrum <= 0
    folia = np.abs(np.sin(points.z * (np.pi / 3.2) + 1.2 * surfaces.folds)) < 0.25
    labels[(cerebellum > 0) & below] = Label.GREY
    labels[(cerebellum > 0) & below & (folia | (cerebellum > 12))] = Label.WHITE
    labels[(stem > 0) & below] = Label.WHITE


def _paint_cerebrum(labels: MaskArray, surfaces: _Surfaces, head: _Head) -> None:
    depth = surfaces.cerebrum
    fold = np.abs(surfaces.folds)
    labels[depth > 0] = Label.WHITE
    labels[(depth > 0) & (((fold < 0.78) & (depth < 22)) | (depth < 3.6))] = Label.GREY
    labels[(depth > 0) & (depth < 20) & (fold < 0.12 * head.atrophy)] = Label.CSF


def _paint_depths(labels: MaskArray, surfaces: _Surfaces, points: _Points, head: _Head) -> None:
    """Paint deep nuclei, the lateral and third ventricles and the cleft between the hemispheres."""
    x, y, z = points.x, points.y, points.z
    bend = np.clip(y / 40, -1.2, 1.2) ** 2
    radius = head.ventricle_mm * np.sqrt(np.clip(1 - (y / 41) ** 2, 0, 1)) + 1e-3
    for side in (-1, 1):
        for (cx, cy, cz), half_axes in _NUCLEI:
            labels[points.ellipsoid((side * cx, cy, cz), half_axes) < 1] = Label.DEEP_GREY
        horn = ((x - side * (6 + 9 * bend)) / radius) ** 2 + ((z - (11 - 7 * bend)) / (1.3 * radius)) ** 2
        labels[(horn < 1) & (np.abs(y) < 41)] = Label.CSF
    labels[(np.abs(x) < 1.8) & (np.abs(y + 5) < 12) & (np.abs(z + 3) < 8)] = Label.CSF
    cleft = (np.abs(x) < 1.1 + 0.3 * surfaces.folds) & ((z > 24) | (y > 48) | (y < -52))
    labels[cleft & (surfaces.cerebrum > 0)] = Label.CSF


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
