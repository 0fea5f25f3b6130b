"""The healthy part of a made-up head: which tissue is where, pushed aside by the tumour.

Everything is an analytic surface in millimetres: ellipsoids for hull, cerebellum and stem, zero levels of
smooth noise for the folds. So one patient has the same brain on every grid.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fedglioma.data.fields import Axes, BoolArray, FloatArray, smooth_noise, stream
from fedglioma.data.lesion import MaskArray
from fedglioma.data.patients import Patient, Tumour


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


_DEPTHS_MM = (38, 48, 32)
"""How far nuclei and ventricles lie from the middle along each axis, pushed aside or not."""
# centre and half axes in mm, right side: thalamus, lentiform nucleus, caudate head
_NUCLEI = (((10, -10, 2), (8, 13, 8)), ((26, 5, 0), (5, 15, 10)), ((13, 19, 8), (5, 9, 8)))


@dataclass(frozen=True)
class Anatomy:
    """Tissue classes, the brain with the fluid in its folds, and the depth in mm below the cerebral hull."""

    labels: MaskArray
    brain: BoolArray
    depth: FloatArray


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


def draw_anatomy(patient: Patient, axes: Axes, *, skull: bool) -> Anatomy:
    """Return the anatomy at the given coordinates, with or without skull, scalp and face."""
    points = _Points(*np.meshgrid(*axes, indexing="ij", sparse=True))
    pulled = _mass_effect(points, patient.tumour)
    head = _sample_head(patient)
    surfaces = _surfaces(pulled, axes, head, patient.seed)
    labels = np.zeros(surfaces.cerebrum.shape, np.uint8)
    if skull:
        _paint_skull(labels, points, axes, head, surfaces, patient.seed)
    _paint_hindbrain_and_hull(labels, surfaces, pulled)
    _paint_cerebrum(labels, surfaces, head)
    _paint_depths(labels, axes, pulled, head)
    _paint_cleft(labels, surfaces, pulled)
    brain = np.maximum(np.maximum(surfaces.cerebrum, surfaces.cerebellum), surfaces.stem) > -1.0
    return Anatomy(labels, brain, surfaces.cerebrum)


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
    # a head that filled the field of view from front to back would not look skull-stripped
    length = min(length, 1.01)
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


def _paint_depths(labels: MaskArray, axes: Axes, points: _Points, head: _Head) -> None:
    """Paint deep nuclei and ventricles; only near the middle, for this is where they are."""
    middle = tuple(
        slice(*np.searchsorted(axis, (-reach, reach))) for axis, reach in zip(axes, _DEPTHS_MM, strict=True)
    )
    labels = labels[middle]
    points = _Points(points.x[middle], points.y[middle], points.z[middle])
    x, y, z = points.x, points.y, points.z
    bend = np.clip(y / 40, -1.2, 1.2) ** 2
    radius = head.ventricle_mm * np.sqrt(np.clip(1 - (y / 41) ** 2, 0, 1)) + 1e-3
    for side in (-1, 1):
        for (cx, cy, cz), half_axes in _NUCLEI:
            labels[points.ellipsoid((side * cx, cy, cz), half_axes) < 1] = Label.DEEP_GREY
        horn = ((x - side * (6 + 9 * bend)) / radius) ** 2 + ((z - (11 - 7 * bend)) / (1.3 * radius)) ** 2
        labels[(horn < 1) & (np.abs(y) < 41)] = Label.CSF
    labels[(np.abs(x) < 1.8) & (np.abs(y + 5) < 12) & (np.abs(z + 3) < 8)] = Label.CSF


def _paint_cleft(labels: MaskArray, surfaces: _Surfaces, points: _Points) -> None:
    """Paint the fluid between the hemispheres, above and around what joins them."""
    inner = (points.z <= 24) & (points.y <= 48) & (points.y >= -52)
    cleft = (np.abs(points.x) < 1.1 + 0.3 * surfaces.folds) & ~inner
    labels[cleft & (surfaces.cerebrum > 0)] = Label.CSF
