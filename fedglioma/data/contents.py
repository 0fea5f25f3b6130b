"""Whether images show what they are called, told from the brain alone, without headers.

Cerebrospinal fluid is dark in T1 and FLAIR and bright in T2. The darkest 6 % of T1, away from the brain's
surface, is mostly fluid; its median rank in another sequence (0 darkest, 1 brightest) tells that one's
weighting. Thresholds stand where none of 15 real gliomas is called an error: a large tumour, a necrosis or
blurred surfaces move the ranks of real brains far further than those of phantoms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.volume import FloatArray, Mask

DARKEST: Final = 0.06
DEPTH_MM: Final = 8.0
MIN_VOXELS: Final = 500
SWAPPED: Final = 0.3
"""How much brighter fluid is in FLAIR than in T2 before they count as exchanged; real: up to 0.08."""
CERTAIN: Final = (0.35, 0.85)
FLAIR_TOO_BRIGHT: Final = 0.6
T2_TOO_DARK: Final = 0.1
T1_TOO_BRIGHT: Final = 0.5
LESS_ENHANCED: Final = -1.0
SAME: Final = 0.98
IDENTICAL: Final = 0.999
_COARSE_MM: Final = 2.0
_MAX_VOXELS: Final = 100_000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Doubt:
    """What speaks against a sequence's name; only a certain one should exclude the case."""

    code: str
    message: str
    certain: bool = False


def check_contents(
    images: Mapping[Modality, FloatArray], brain: Mask, spacing_mm: float
) -> tuple[Doubt, ...]:
    """Return what speaks against the images' names, most certain first.

    Parameters
    ----------
    images : mapping of Modality to array
        On one grid, shape (X, Y, Z) like ``brain``; NaN where nothing was seen.
    spacing_mm : float
        Side of the grid's cubic voxels.

    Notes
    -----
    Codes: ``same_contents``, ``t2_flair``, ``flair_like_t2``, ``t2_like_t1``, ``not_t1``, ``t1_t1ce``.
    A second plain T1 offered as T1ce of a tumour that does not enhance cannot be told.
    """
    deep = _deep_values(images, brain, spacing_mm)
    if deep is None:
        return ()
    doubts = [*_same(deep), *_fluid(deep), *_enhancement(deep)]
    return tuple(sorted(doubts, key=lambda doubt: not doubt.certain))


def _deep_values(
    images: Mapping[Modality, FloatArray], brain: Mask, spacing_mm: float
) -> dict[Modality, Values] | None:
    """Return the values away from the brain's surface, each of shape (V,), or None where they are few."""
    step = max(1, round(_COARSE_MM / spacing_mm))
    coarse = np.pad(brain[::step, ::step, ::step], 1)
    depth = ndimage.distance_transform_edt(coarse)[1:-1, 1:-1, 1:-1] * step * spacing_mm
    inside = depth > DEPTH_MM
    thin = {m: images[m][::step, ::step, ::step] for m in CHANNELS if m in images}
    for image in thin.values():
        inside &= np.isfinite(image)
    count = int(np.count_nonzero(inside))
    if count < MIN_VOXELS:
        return None
    every = max(1, count // _MAX_VOXELS)
    return {m: image[inside][::every].astype(np.float64) for m, image in thin.items()}


def _same(deep: Mapping[Modality, Values]) -> list[Doubt]:
    ranks = {m: _ranks(values) for m, values in deep.items() if np.ptp(values) > 0}
    doubts = []
    for one, other in combinations(ranks, 2):
        alike = float(np.corrcoef(ranks[one], ranks[other])[0, 1])
        if alike > SAME:
            message = f"{one} and {other} show the same image (rank correlation {alike:.3f}); one is misnamed"
            doubts.append(Doubt("same_contents", message, certain=alike > IDENTICAL))
    return doubts


def _fluid(deep: Mapping[Modality, Values]) -> list[Doubt]:
    base = next((m for m in (Modality.T1, Modality.T1CE) if m in deep), None)
    if base is None:
        return []
    fluid = deep[base] <= np.quantile(deep[base], DARKEST)
    rank = {m: float(np.median(_ranks(deep[m])[fluid])) for m in (Modality.T2, Modality.FLAIR) if m in deep}
    t2, flair = rank.get(Modality.T2), rank.get(Modality.FLAIR)
    if t2 is not None and flair is not None and flair - t2 > SWAPPED:
        low, high = CERTAIN
        ranks = f"fluid has rank {t2:.2f} in t2 and {flair:.2f} in flair"
        message = f"{ranks}: the two are exchanged, or not what they are called"
        return [Doubt("t2_flair", message, certain=t2 < low and flair > high)]
    doubts = []
    # After contrast, the darkest voxels need not be fluid, so one sequence alone says nothing.
    if base is Modality.T1 and flair is not None and flair > FLAIR_TOO_BRIGHT:
        doubts.append(Doubt("flair_like_t2", f"fluid is bright in flair (rank {flair:.2f}), as in a t2"))
    if base is Modality.T1 and t2 is not None and t2 < T2_TOO_DARK:
        doubts.append(Doubt("t2_like_t1", f"fluid is dark in t2 (rank {t2:.2f}), as in a t1 or flair"))
    return doubts


def _enhancement(deep: Mapping[Modality, Values]) -> list[Doubt]:
    if Modality.T1 not in deep or Modality.T1CE not in deep:
        return []
    plain, agent = deep[Modality.T1], deep[Modality.T1CE]
    dark = agent <= np.quantile(agent, DARKEST)
    rank = float(np.median(_ranks(plain)[dark]))
    if rank > T1_TOO_BRIGHT:
        return [Doubt("not_t1", f"what is darkest in t1ce is bright in t1 (rank {rank:.2f}): one is no T1")]
    gain = _standard(agent) - _standard(plain)
    lean = float(np.quantile(gain, 0.998) + np.quantile(gain, 0.002))
    if lean < LESS_ENHANCED:
        return [Doubt("t1_t1ce", f"t1 is brighter than t1ce where they differ ({lean:.1f}): exchanged?")]
    return []


def _ranks(values: Values) -> Values:
    """Return each value's rank from 0 to 1; equal values share the middle of their ranks."""
    ordered = np.sort(values)
    ranks: Values = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (
        2 * len(values)
    )
    return ranks


def _standard(values: Values) -> Values:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    scaled: Values = (values - middle) / max(high - low, 1e-9)
    return scaled
