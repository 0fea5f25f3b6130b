"""What a scanner makes of a head: contrast by the signal equations, then everything that spoils it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedglioma.case import Modality
from fedglioma.data.fields import Axes, FloatArray, smooth_noise, stream
from fedglioma.data.phantom import Tissue

IntArray = npt.NDArray[np.int16]

LOW_FIELD_T = 2.0
# T1 at 1.5 T as a fraction of T1 at 3 T, in the order of anatomy.Label; lesions shorten, too
_LOW_FIELD_T1 = np.array([1, 0.8, 1, 0.75, 1, 0.78, 0.74, 0.76], np.float32)
_LOW_FIELD_LESION_T1 = np.float32(0.8)
_LOW_FIELD_T2 = np.float32(1.08)
_RELAXIVITY_PER_MS = np.float32(4.3e-3)
_POINT_SPREAD_MM = 0.45
_BIAS_AFTER_CORRECTION = 0.15
"""What N4 left of a known field when it was measured, relative to the field."""
# signal of bright healthy tissue, which the scanner's gain brings to the same number of grey levels
_REFERENCE = {Modality.FLAIR: 0.20, Modality.T1CE: 0.20, Modality.T1: 0.20, Modality.T2: 0.25}


@dataclass(frozen=True)
class Sequence:
    """Timing of one sequence in ms; one with an inversion time is an inversion recovery."""

    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None


@dataclass(frozen=True)
class Scanner:
    """One machine and how its site drives it.

    ``gain`` is in grey levels, varying from scan to scan by ``gain_cv``; ``gamma`` bends the grey scale;
    ``bias`` is the largest relative shading; ``snr`` is that of bright tissue; ``slice_mm`` the thickness.
    """

    name: str
    field_t: float
    sequences: Mapping[Modality, Sequence]
    slice_mm: Mapping[Modality, float]
    gain: float
    offset: float
    gamma: float
    bias: float
    snr: float
    gain_cv: float = 0.15


def signal(tissue: Tissue, modality: Modality, scanner: Scanner) -> FloatArray:
    """Return the noise-free signal at every point of the tissue's box, as a fraction of the magnetisation.

    Spin echo: ``pd (1 - exp(-TR/T1)) exp(-TE/T2)``; inversion recovery, magnitude:
    ``pd |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)``. The contrast agent shortens T1 in t1ce only.
    """
    t1, t2 = _relaxation_at_field(tissue, scanner.field_t)
    if modality is Modality.T1CE:
        t1 = t1 / (1 + t1 * tissue.gadolinium * _RELAXIVITY_PER_MS)
    sequence = scanner.sequences[modality]
    recovered = np.exp(-sequence.repetition_ms / t1)
    if sequence.inversion_ms is None:
        longitudinal = 1 - recovered
    else:
        longitudinal = np.abs(1 - 2 * np.exp(-sequence.inversion_ms / t1) + recovered)
    echo: FloatArray = tissue.proton_density * longitudinal * np.exp(-sequence.echo_ms / t2)
    return echo


def acquire(tissue: Tissue, modality: Modality, scanner: Scanner, seed: int, *, prepared: bool) -> IntArray:
    """Return the scan on the tissue's whole grid, in the scanner's grey levels.

    Slices are as thick as the scanner makes them but stand on the common grid: the modalities of a patient
    are co-registered. A prepared scan has lost its skull, so that everything outside the brain is exactly 0
    and nothing inside is, and all of its shading but what a bias correction leaves.
    """
    rng = stream(seed, "scan", modality.value)
    echo = tissue.voxels(signal(tissue, modality, scanner))
    echo = _blur(echo, tissue.grid.spacing, scanner.slice_mm[modality])
    bias = scanner.bias * _BIAS_AFTER_CORRECTION if prepared else scanner.bias
    echo = echo * shading(rng, tissue.voxel_axes(), bias)
    grey = (echo / np.float32(_REFERENCE[modality])) ** np.float32(scanner.gamma)
    if not prepared:
        grey = tissue.whole(grey)
    gain = np.float32(scanner.gain * np.exp(rng.normal(0, scanner.gain_cv)))
    levels = _rician(rng, grey, 1 / scanner.snr) * gain + np.float32(scanner.offset)
    rounded: IntArray = np.clip(np.rint(levels), 0, np.iinfo(np.int16).max).astype(np.int16)
    if not prepared:
        return rounded
    brain: IntArray = np.maximum(rounded, 1) * tissue.brain_voxels()
    return tissue.whole(brain)


def shading(rng: np.random.Generator, axes: Axes, amplitude: float) -> FloatArray:
    """Return the coil's smooth bias field, a factor between ``exp(-amplitude)`` and ``exp(amplitude)``."""
    field = smooth_noise(rng, axes, 90.0)
    field -= field.mean()
    bias: FloatArray = np.exp(np.float32(amplitude) * field / max(1e-6, float(np.abs(field).max())))
    return bias


def slice_profile(thickness_mm: float, spacing_mm: float) -> npt.NDArray[np.float64]:
    """Return how much each voxel along z adds to the slice at the middle one; sums to 1.

    A box as thick as the slice meets voxels as high as the spacing; a slice thinner than a voxel is the
    voxel itself.
    """
    reach = int(np.ceil(max(0.0, (thickness_mm - spacing_mm) / 2) / spacing_mm))
    distance = np.abs(np.arange(-reach, reach + 1)) * spacing_mm
    common = np.clip((thickness_mm + spacing_mm) / 2 - distance, 0, min(thickness_mm, spacing_mm))
    profile: npt.NDArray[np.float64] = common / common.sum()
    return profile


def _relaxation_at_field(tissue: Tissue, field_t: float) -> tuple[FloatArray, FloatArray]:
    if field_t >= LOW_FIELD_T:
        return tissue.t1_ms, tissue.t2_ms
    factor = np.where(tissue.mask > 0, _LOW_FIELD_LESION_T1, _LOW_FIELD_T1[tissue.labels])
    return tissue.t1_ms * factor, tissue.t2_ms * _LOW_FIELD_T2


def _blur(echo: FloatArray, spacing: tuple[float, float, float], slice_mm: float) -> FloatArray:
    """Return the echo with the scanner's point spread in plane and its slice profile along z."""
    for axis in range(2):
        sigma = _POINT_SPREAD_MM / spacing[axis]
        if sigma > 0.25:  # below, hardly anything reaches the next voxel
            echo = ndimage.gaussian_filter1d(echo, sigma, axis=axis)
    profile = slice_profile(slice_mm, spacing[2])
    return ndimage.correlate1d(echo, profile, axis=2, mode="nearest") if len(profile) > 1 else echo


def _rician(rng: np.random.Generator, grey: FloatArray, sigma: float) -> FloatArray:
    """Return the magnitude of the signal with Gaussian noise in both of its channels."""
    real = grey + np.float32(sigma) * rng.standard_normal(grey.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(grey.shape, dtype=np.float32)
    magnitude: FloatArray = np.hypot(real, imaginary)
    return magnitude
