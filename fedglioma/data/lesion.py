"""The tumour of a made-up patient: which tissue is where, as layers laid over the healthy brain.

Every tumour is a noisy ellipsoid with oedema along the white matter. What lies inside follows the signs
that the patient was given: a ring around necrosis, a nearly watery core with a cellular rim (T2-FLAIR
mismatch), patches of enhancement, flecks of calcium.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglioma.data.biology import Subtype
from fedglioma.data.fields import Axes, BoolArray, FloatArray, sigmoid, smooth_noise, stream
from fedglioma.data.patients import Patient

NECROTIC_CORE, OEDEMA, ENHANCING = 1, 2, 4
"""Mask labels of BraTS up to 2021; 1 is necrotic or non-enhancing tumour."""
TUMOUR_LABELS = (NECROTIC_CORE, OEDEMA, ENHANCING)

MaskArray = npt.NDArray[np.uint8]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Layer:
    """A tissue that replaces what lies below it, as far as ``weight`` (0 to 1) says; times in ms."""

    weight: FloatArray
    t1_ms: FloatArray | float
    t2_ms: FloatArray | float
    proton_density: FloatArray | float


@dataclass(frozen=True)
class Lesion:
    """Layers from the bottom up, contrast agent that leaked (arbitrary unit), and the expert's mask."""

    layers: tuple[Layer, ...]
    gadolinium: FloatArray
    mask: MaskArray


@dataclass(frozen=True)
class Surroundings:
    """What the tumour finds in its box: white matter, all parenchyma, and the sulci that it may fill."""

    white: BoolArray
    parenchyma: BoolArray
    sulci: BoolArray
    brain: BoolArray


def lesion_box(patient: Patient, axes: Axes) -> Box:
    """Return the part of the grid that tumour and oedema can reach; empty where they miss the grid."""
    tumour = patient.tumour
    reach = tumour.radius_mm * 1.35 + tumour.oedema_mm * 1.6 + 3 * tumour.margin_mm + 4
    x, y, z = (
        slice(int(np.searchsorted(axis, middle - reach)), int(np.searchsorted(axis, middle + reach)) + 1)
        for axis, middle in zip(axes, tumour.centre, strict=True)
    )
    return x, y, z


def grow(patient: Patient, axes: Axes, around: Surroundings) -> Lesion:
    """Return the tumour on the given coordinates, which are those of its box."""
    tumour = patient.tumour
    shape = {p: smooth_noise(stream(patient.seed, f"tumour {p}"), axes, p) for p in (13, 8, 6)}
    inside = tumour.radius_mm * (1 + tumour.roughness * shape[13]) - _distance(patient, axes)
    host = (around.parenchyma | (around.sulci & (inside > 2))).astype(np.float32)

    along_white: FloatArray = np.where(around.white, np.float32(1), np.float32(0.22))
    spread: FloatArray = tumour.oedema_mm * along_white * (1 + 0.35 * shape[6])
    oedema = sigmoid((inside + spread) / 1.2) * host
    core = sigmoid(inside / tumour.margin_mm) * host

    layers = [Layer(0.85 * oedema, 1450, 150, 0.82), _core_layer(patient, core, inside, shape[8])]
    enhancing = np.zeros_like(core)
    gadolinium = np.zeros_like(core)
    if tumour.necrotic:
        ring: FloatArray = tumour.ring_mm * (1 + 0.45 * shape[6])
        necrosis = sigmoid((inside - ring) / 0.6) * host
        layers.append(Layer(necrosis, 2500, 290, 0.93))
        enhancing = core * (1 - necrosis) * sigmoid((1.4 + shape[6]) / 0.25)  # a ring with gaps
        gadolinium = 0.42 * enhancing + 0.05 * necrosis
    elif tumour.enhancing:
        enhancing = core * sigmoid((shape[8] - 0.75) / 0.2) * sigmoid(inside - 2)
        gadolinium = (0.18 if patient.subtype is Subtype.OLIGODENDROGLIOMA else 0.30) * enhancing
    if tumour.calcified:
        flecks = smooth_noise(stream(patient.seed, "calcium"), axes, 4.5)
        layers.append(Layer(core * sigmoid((flecks - 1.25) / 0.12), 900, 22, 0.45))

    mask = np.zeros(core.shape, np.uint8)
    mask[oedema > 0.5] = OEDEMA
    mask[core > 0.5] = NECROTIC_CORE
    mask[enhancing > 0.5] = ENHANCING
    mask[~around.brain] = 0
    return Lesion(tuple(layers), gadolinium, mask)


def _distance(patient: Patient, axes: Axes) -> FloatArray:
    x, y, z = (
        (grid - middle) / squash
        for grid, middle, squash in zip(
            np.meshgrid(*axes, indexing="ij", sparse=True),
            patient.tumour.centre,
            patient.tumour.squash,
            strict=True,
        )
    )
    distance: FloatArray = np.sqrt(x**2 + y**2 + z**2)
    return distance


def _core_layer(patient: Patient, core: FloatArray, inside: FloatArray, texture: FloatArray) -> Layer:
    """Return the solid tumour.

    Lesions differ in T1 and T2 by 11 and 15 percent whatever their genotype: without that, 1p/19q could be
    read off the mean intensity (AUC 0.99).
    """
    tumour = patient.tumour
    jitter = stream(patient.seed, "lesion").normal(0, [0.11, 0.15])
    t1, t2 = (float(factor) for factor in np.exp(jitter))
    if tumour.mismatch:
        watery = sigmoid((inside - 3.5) / 0.8)
        return Layer(core, 1650 + 1050 * watery, (175 + 155 * watery) * t2, 0.88 + 0.06 * watery)
    mottle = tumour.heterogeneity * texture
    if patient.subtype is Subtype.GLIOBLASTOMA and patient.grade == 4:
        return Layer(core, (1500 + 140 * mottle) * t1, (138 + 22 * mottle) * t2, 0.83)
    if patient.subtype is Subtype.OLIGODENDROGLIOMA:
        return Layer(core, (1580 + 200 * mottle) * t1, (160 + 34 * mottle) * t2, 0.84)
    return Layer(core, (1640 + 170 * mottle) * t1, (170 + 28 * mottle) * t2, 0.85)
