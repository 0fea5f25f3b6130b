"""How good the images of one case are: figures that a data manager can act on, and what speaks from them.

Noise is measured on the scanner's own voxels, because interpolation hides it; everything else on the grid,
on at most ``MOST_VOXELS`` voxels of the brain. Definitions of contrast are MRIQC's (Esteban et al. 2017), on
classes found by brightness alone, since nobody has segmented the brain. Thresholds stand where none of the
15 real gliomas that were at hand is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedglioma.case import CHANNELS, Frozen, Modality
from fedglioma.data.contents import Doubt
from fedglioma.data.harmonize import Grid
from fedglioma.data.volume import FloatArray, Mask, Volume, VolumeError

MOST_VOXELS: Final = 100_000
BINS: Final = 48
NOISE_LIMITS: Final = (8.0, 4.0)
"""SNR below which a case gets a warning, and below which it is excluded."""
VOLUME_WARN_ML: Final = (900.0, 1900.0)
VOLUME_FAIL_ML: Final = (700.0, 2200.0)
PEAK_LIMITS: Final = (1.7, 1.3)
"""How many times as much a modality must share with the reference in its place as ``OFF_MM`` beside it.

17 real gliomas: 1.8 to 10 with shading corrected, 1.9 to 7.3 without; another patient's volume, laid over as
well as it goes: 1.2 to 2.3; 8 mm off its place: 0.6 to 1.5. Mutual information itself tells less: 1.016 to
1.19 against 1.006 to 1.03.
"""
OFF_MM: Final = 8.0
LEAST_DICE: Final = 0.85
FEWEST_NOISE_VOXELS: Final = 5_000
FEWEST_JOINT_VOXELS: Final = 20_000
"""With fewer, chance alone gives the 48 x 48 cells of the joint histogram visible information."""
FINE_MM: Final = 2.0
"""Along a wider axis neighbouring voxels differ by anatomy and not by noise."""
DEPTH_MM: Final = 6.0
_CLASSES: Final = 3
_ROUNDS: Final = 50
_MAD: Final = 1.4826

Values = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]


class Measures(Frozen):
    """One modality of one case; None where there is too little to measure it on.

    ``snr``, ``cnr``, ``cjv`` are ratios; ``coverage`` is the share of the brain that was seen;
    ``information`` is the normalised mutual information with the reference, 1 (none) to 2, and ``peak`` how
    many times more of it there is than ``OFF_MM`` away. Of the file's own values ``raw`` is the brain's
    median, ``raw_span`` the range from the 10th to the 80th percentile, ``white_raw`` the median of the
    white-matter-like half; ``white`` is that of the z-scores. The agreement between scanners is told from
    these.
    """

    snr: float | None
    cnr: float | None
    cjv: float | None
    coverage: float
    information: float | None
    peak: float | None
    raw: float
    raw_span: float
    white_raw: float | None
    white: float | None


class Quality(Frozen):
    """One case: the brain's volume in mL, the least overlap (Dice) of its own masks, each modality."""

    brain_ml: float
    mask_agreement: float | None
    modalities: dict[Modality, Measures]


@dataclass(frozen=True)
class Sampled:
    """One modality at the sampled voxels of the brain, each of shape (V,); NaN where nothing was seen.

    ``raw`` are the file's values, ``corrected`` those without shading, ``scaled`` the z-scores; ``own`` says
    whether the modality's own mask has the voxel, None where it has no mask of its own.
    """

    raw: FloatArray
    corrected: FloatArray
    scaled: FloatArray
    own: Mask | None = None


@dataclass(frozen=True)
class Region:
    """The brain on its grid; ``sampled`` are flat indices of evenly spread voxels of it, shape (V,)."""

    mask: Mask
    grid: Grid
    sampled: npt.NDArray[np.intp]

    @classmethod
    def of(cls, mask: Mask, grid: Grid) -> "Region":
        """Return the region with about ``MOST_VOXELS`` voxels of it, or all where it has fewer."""
        flat = np.flatnonzero(mask)
        return cls(mask, grid, flat[:: max(1, len(flat) // MOST_VOXELS)])

    @property
    def millilitres(self) -> float:
        """The brain's volume."""
        return float(np.count_nonzero(self.mask)) * self.grid.spacing_mm**3 / 1000


def deep_points(brain: Mask, grid: Grid) -> Points:
    """Return points inside the brain and away from its surface, in RAS mm, shape (V, 3)."""
    step = max(1, round(FINE_MM / grid.spacing_mm))
    rounds = max(1, round(DEPTH_MM / (step * grid.spacing_mm)))
    deep = ndimage.binary_erosion(brain[::step, ::step, ::step], iterations=rounds)
    # Every voxel of the thinned mask stands for the cube around it, so that single slices are met too.
    found = np.argwhere(deep).astype(np.float64) * step
    if len(found) > MOST_VOXELS:
        found = found[:: len(found) // MOST_VOXELS]
    points: Points = found * grid.spacing_mm + np.array(grid.origin)
    return points


def measure(
    volumes: Mapping[Modality, Volume],
    images: Mapping[Modality, FloatArray],
    samples: Mapping[Modality, Sampled],
    reference: Modality,
    region: Region,
) -> Quality:
    """Return the figures of one case.

    Parameters
    ----------
    volumes : mapping of Modality to Volume
        The scanner's own voxels, in the reference's space.
    images : mapping of Modality to array
        Without shading, on the region's grid; NaN where nothing was seen.
    samples : mapping of Modality to Sampled
        The same at the region's sampled voxels.

    Raises
    ------
    VolumeError
        ``no_overlap``: a modality has no voxel among those that are sampled.
    """
    white = _white(samples)
    points = deep_points(region.mask, region.grid)
    found = {}
    for modality, sample in samples.items():
        joint = None
        if modality != reference:
            joint = standing(images[reference], images[modality], region)
        if not np.isfinite(sample.corrected).any():
            reason = f"{modality}: hardly a voxel of it lies in the brain; compare the headers"
            raise VolumeError("no_overlap", reason)
        found[modality] = _one(volumes[modality], sample, white, points, joint)
    return Quality(
        brain_ml=round(region.millilitres, 1),
        mask_agreement=_rounded(mask_agreement(samples)),
        modalities=found,
    )


def _one(
    volume: Volume, sample: Sampled, white: Mask | None, points: Points, joint: tuple[float, float] | None
) -> Measures:
    seen = np.isfinite(sample.corrected)
    tissues = contrast(sample.corrected[seen].astype(np.float64))
    bright = None if white is None else white & seen
    usable = bright is not None and bright.any()
    return Measures(
        snr=_rounded(signal_to_noise(volume, points)),
        cnr=None if tissues is None else _rounded(tissues[0]),
        cjv=None if tissues is None else _rounded(tissues[1]),
        coverage=round(float(seen.mean()), 4),
        information=None if joint is None else _rounded(joint[0]),
        peak=None if joint is None else _rounded(joint[1]),
        raw=_median(sample.raw[seen]),
        raw_span=float(f"{np.subtract(*np.percentile(sample.raw[seen], [80, 10])):.6g}"),
        white_raw=_median(sample.raw[bright]) if usable else None,
        white=_median(sample.scaled[bright]) if usable else None,
    )


def signal_to_noise(volume: Volume, points: Points) -> float | None:
    """Return the median signal over the deviation of noise, on the volume's own voxels.

    Noise is what the Laplacian (6 neighbours; 4 where slices are over ``FINE_MM`` apart) leaves of a smooth
    image: 1.4826 times its median absolute deviation over the square root of 42 (20). None where fewer than
    ``FEWEST_NOISE_VOXELS`` voxels are met, or the voxels are too coarse to tell noise from anatomy.
    """
    axes = [axis for axis, size in enumerate(volume.spacing) if size <= FINE_MM]
    if len(axes) < 2 or not len(points):
        return None
    inverse = np.linalg.inv(volume.affine)
    index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
    shape = np.array(volume.array.shape)
    inside = ((index >= 0) & (index < shape)).all(axis=1)
    inside &= ((index[:, axes] > 0) & (index[:, axes] < shape[axes] - 1)).all(axis=1)
    flat = np.unique(np.ravel_multi_index(tuple(index[inside].T), volume.array.shape))
    if len(flat) < FEWEST_NOISE_VOXELS:
        return None
    place = np.stack(np.unravel_index(flat, volume.array.shape))
    centre = volume.array[tuple(place)].astype(np.float64)
    neighbours = 2 * len(axes)
    curved = neighbours * centre
    for axis in axes:
        step = np.zeros((3, 1), dtype=np.intp)
        step[axis] = 1
        curved -= volume.array[tuple(place + step)]
        curved -= volume.array[tuple(place - step)]
    if np.percentile(centre, 10) <= 0:  # scaled before it came here: there is no zero to count signal from
        return None
    noise = _deviation(curved) / np.sqrt(neighbours**2 + neighbours)
    signal = float(np.median(centre))
    return signal / noise if noise > 1e-6 * abs(signal) else None


def contrast(values: Values) -> tuple[float, float] | None:
    """Return contrast to noise and the coefficient of joint variation of the brain's two commonest tissues.

    MRIQC's |m1 - m2| / sqrt(s1^2 + s2^2) and (s1 + s2) / |m1 - m2|, with medians and 1.4826 times median
    absolute deviations of classes from 3-means; the background's term is left out, as it is 0 in stripped
    images. None where there are no three classes.
    """
    classes = _three_classes(np.sort(values))
    if classes is None:
        return None
    first, second = sorted(classes, key=len)[-2:]
    apart = abs(float(np.median(first) - np.median(second)))
    one, other = _deviation(first), _deviation(second)
    if not apart > 0 or not one + other > 0:
        return None
    return apart / float(np.hypot(one, other)), (one + other) / apart


def _three_classes(ordered: Values) -> list[Values] | None:
    """Return sorted values in three classes around their means (Lloyd 1982)."""
    if len(ordered) < _CLASSES or ordered[0] == ordered[-1]:
        return None
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # Even in value and not in rank: else a small class, as fluid, is lost and a large one split.
    low, high = np.percentile(ordered, [1, 99]).tolist()
    means = np.linspace(low, high, _CLASSES)
    cuts = np.array([0, 0, 0, len(ordered)])
    for _ in range(_ROUNDS):
        middle = np.searchsorted(ordered, (means[1:] + means[:-1]) / 2)
        new = np.array([0, *middle, len(ordered)])
        if (np.diff(new) == 0).any():
            return None
        means = np.diff(sums[new]) / np.diff(new)
        if (new == cuts).all():
            break
        cuts = new
    return [ordered[low:high] for low, high in pairwise(cuts)]


def shared_information(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return (H(a) + H(b)) / H(a, b) of a 48 x 48 histogram: 1 independent, 2 the same (Studholme 1999).

    Bins are even between the 0.5th and 99.5th percentile; what lies beyond counts to the outer ones.
    """
    joint = np.bincount(_bins(first) * BINS + _bins(second), minlength=BINS**2).reshape(BINS, BINS)
    share = joint / joint.sum()
    whole = _entropy(share.ravel())
    return (_entropy(share.sum(axis=0)) + _entropy(share.sum(axis=1))) / whole if whole > 0 else 2.0


def standing(reference: FloatArray, image: FloatArray, region: Region) -> tuple[float, float] | None:
    """Return what an image shares with the reference, and how many times more than ``OFF_MM`` away.

    The second is (I - 1) over the mean of it after six movements, one each way along each axis. None where
    fewer than ``FEWEST_JOINT_VOXELS`` sampled voxels of the brain were seen in both.
    """
    shape = region.mask.shape
    place = np.stack(np.unravel_index(region.sampled, shape))
    values = reference.ravel()[region.sampled]
    steps = max(1, round(OFF_MM / region.grid.spacing_mm))
    shared: list[float] = []
    moves = [sign * steps * axis for axis in np.eye(3, dtype=np.intp) for sign in (-1, 1)]
    for move in (np.zeros(3, np.intp), *moves):
        moved = place + move[:, np.newaxis]
        inside = ((moved >= 0) & (moved < np.array(shape)[:, np.newaxis])).all(axis=0)
        moved, still = moved[:, inside], values[inside]
        other = image[tuple(moved)]
        both = region.mask[tuple(moved)] & np.isfinite(still) & np.isfinite(other)
        if not shared and np.count_nonzero(both) < FEWEST_JOINT_VOXELS:
            return None
        if both.any():
            shared.append(shared_information(still[both], other[both]))
    away = float(np.mean(shared[1:])) - 1 if shared[1:] else 0.0
    return shared[0], (shared[0] - 1) / away if away > 0 else 1.0


def mask_agreement(samples: Mapping[Modality, Sampled]) -> float | None:
    """Return the least overlap, as Dice, of two modalities' own masks where both were in view; or None."""
    found = []
    for first, second in combinations(samples.values(), 2):
        if first.own is None or second.own is None:
            continue
        size = int(np.count_nonzero(first.own)) + int(np.count_nonzero(second.own))
        if size:
            found.append(2 * int(np.count_nonzero(first.own & second.own)) / size)
    return min(found, default=None)


def judge(quality: Quality, *, whole_head: bool) -> tuple[Doubt, ...]:
    """Return what speaks against a case, the certain first; ``whole_head`` where the skull was not removed.

    Notes
    -----
    Codes: ``noise``, ``misaligned``, ``brain_volume``, ``masks_differ``. Of a head whose skull may still be
    counted as brain the volume is never certain.
    """
    doubts = []
    for modality in (m for m in CHANNELS if m in quality.modalities):
        found = quality.modalities[modality]
        warn, fail = NOISE_LIMITS
        if found.snr is not None and found.snr < warn:
            message = f"{modality}: signal to noise is {found.snr:.1f}; below {warn:g} is poor"
            doubts.append(Doubt("noise", message, certain=found.snr < fail))
        warn, fail = PEAK_LIMITS
        if found.peak is not None and found.peak < warn:
            message = (
                f"{modality} hardly fits the reference better in its place than {OFF_MM:g} mm beside it "
                f"({found.peak:.1f} times, usual is over {warn:g}); is it in place, and the same patient's?"
            )
            doubts.append(Doubt("misaligned", message, certain=found.peak < fail))
    low, high = VOLUME_WARN_ML
    if not low <= quality.brain_ml <= high:
        least, most = VOLUME_FAIL_ML
        message = f"the brain has {quality.brain_ml:.0f} mL; usual is {low:.0f} mL to {high:.0f} mL"
        certain = not whole_head and not least <= quality.brain_ml <= most
        doubts.append(Doubt("brain_volume", message, certain=certain))
    if quality.mask_agreement is not None and quality.mask_agreement < LEAST_DICE:
        message = f"the modalities were stripped differently (overlap {quality.mask_agreement:.2f})"
        doubts.append(Doubt("masks_differ", message))
    return tuple(sorted(doubts, key=lambda doubt: not doubt.certain))


def _white(samples: Mapping[Modality, Sampled]) -> Mask | None:
    """Return where T1, or else T1ce, is in its brighter half: mostly white matter."""
    for modality in (Modality.T1, Modality.T1CE):
        if modality in samples:
            values = samples[modality].corrected
            white: Mask = values > np.nanmedian(values)
            return white
    return None


def _bins(values: npt.ArrayLike) -> npt.NDArray[np.intp]:
    array = np.asarray(values, np.float64)
    low, high = np.percentile(array, [0.5, 99.5])
    width = high - low if high > low else 1.0
    bins: npt.NDArray[np.intp] = np.clip((array - low) / width * BINS, 0, BINS - 1).astype(np.intp)
    return bins


def _entropy(share: Values) -> float:
    held = share[share > 0]
    return float(-(held * np.log(held)).sum())


def _deviation(values: Values) -> float:
    return _MAD * float(np.median(np.abs(values - np.median(values))))


def _median(values: FloatArray) -> float:
    return float(f"{np.median(values):.6g}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
