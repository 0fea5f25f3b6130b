"""What a site says of its cases' intensity landmarks: under the small-cell rule, with noise where it wants.

Without noise the sums are those of its mean, with the number of cases rounded as every count is. With noise
each case is first cut to a public box about where landmarks lie, so that one patient can move the sums by
no more than is known, and noise is added that hides as much (``noise.py``). The numbers of cases are not
part of what the noise hides; they are rounded like all others.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglioma.case import CHANNELS, Modality
from fedglioma.counts import suppress
from fedglioma.noise import DELTA, keyed_normals, sigma_for
from fedglioma.scale import FEWEST_CASES, USUAL, Inner, LandmarkSums, Scale, fit_scale, landmark_sums

_T1_LIKE: Final[tuple[Inner, Inner]] = ((27.0, 48.0, 73.0), (85.0, 96.0, 100.0))
PRIOR: Final[dict[Modality, tuple[Inner, Inner]]] = {
    Modality.FLAIR: _T1_LIKE,
    Modality.T1CE: _T1_LIKE,
    Modality.T1: _T1_LIKE,
    Modality.T2: ((8.0, 22.0, 54.0), (74.0, 85.0, 98.0)),
}
"""Lowest and highest inner landmarks that count as they are where there is noise; public, nobody's own.

Those of 54 gliomas of open collections (T2 of 15) after preparation, with 3 to 5 points of room.
"""

STEPS: Final = 1000
"""Parts of half a box that a case's place in it is rounded to, so that sums are whole numbers."""
SPREAD: Final = 0.2
"""How far consortia's means are taken to lie from the usual ones, in halves of the box."""

Sums = Mapping[Modality, LandmarkSums]
Cases = Sequence[Mapping[Modality, Inner]]


def published_sums(cases: Cases, limit: int) -> dict[Modality, LandmarkSums]:
    """Return the sums of the modalities that a site may speak of, each with a rounded number of cases.

    The sums are the site's mean times that number, so that the mean is true and the number is not: exact
    numbers of several modalities would give away how few cases lack one.

    Parameters
    ----------
    cases : sequence of mappings
        Each case's inner landmarks, 0 to 100.
    limit : int
        The site's small-cell limit; 1 rounds nothing.
    """
    counts = _counts(cases, limit)
    return {m: _of_mean(sums.mean, counts[m]) for m, sums in landmark_sums(cases).items() if m in counts}


def noisy_sums(cases: Cases, limit: int, epsilon: float, key: bytes) -> dict[Modality, LandmarkSums]:
    """Return the sums with noise that is (epsilon, ``DELTA``) private for replacing one patient's images.

    Parameters
    ----------
    key : bytes
        Of the noise, for this answer alone (``noise.keyed_normals``).

    Raises
    ------
    PrivacyError
        The key is shorter than 32 bytes.
    """
    counts = _counts(cases, limit)
    if not counts:
        return {}
    sigma = noise_of_sums(epsilon, len(counts))
    true = {modality: _places(cases, modality) for modality in counts}
    noise = keyed_normals(key, 3 * len(counts)).reshape(-1, 3)
    found = {}
    for (modality, sums), drawn in zip(true.items(), noise, strict=True):
        middle, half = _box(modality)
        # For as many cases as are published the true mean adds up to this, and one patient moves it by that
        # share of two halves; rounding to whole numbers, so that the last digits tell nothing, by one more.
        share = counts[modality] / sum(modality in case for case in cases)
        deviation = STEPS * sigma * max(share, 1.0) * (1 + 1 / STEPS)
        told = np.rint(share * sums) + np.rint(deviation * drawn)
        # The mean of what was cut to a box lies in it, whatever noise says.
        means = np.clip(told / (STEPS * counts[modality]), -1, 1)
        a, b, c = (middle + half * means).tolist()
        found[modality] = _of_mean((a, b, c), counts[modality])
    return found


def private_sums(
    cases: Cases, numbers: Mapping[Modality, float], epsilon: float, key: bytes
) -> dict[Modality, LandmarkSums]:
    """Return noised landmarks that say nothing but themselves of a patient more or less.

    The sums of clipped landmarks of all four modalities get noise of one deviation, whoever has which: one
    patient adds to each of three sums of each modality by half a box at most, sqrt(12) halves together. Only
    then are they divided by numbers of cases, which were noised and paid for before.

    Parameters
    ----------
    cases : sequence of mappings
        One case of each patient.
    numbers : mapping
        Noised number of cases with each modality; of fewer than ``FEWEST_CASES`` nothing is told.
    key : bytes
        Of the noise, for this answer alone (``noise.keyed_normals``).

    Raises
    ------
    PrivacyError
        The key is shorter than 32 bytes.
    """
    deviation = STEPS * sigma_for(epsilon, sqrt(3 * len(CHANNELS)), DELTA)
    true = {modality: _places(cases, modality) for modality in CHANNELS}
    noise = keyed_normals(key, 3 * len(CHANNELS)).reshape(-1, 3)
    found = {}
    for (modality, sums), drawn in zip(true.items(), noise, strict=True):
        number = round(numbers.get(modality, 0.0))
        if number >= FEWEST_CASES:
            middle, half = _box(modality)
            means = np.clip((sums + np.rint(deviation * drawn)) / (STEPS * number), -1, 1)
            a, b, c = (middle + half * means).tolist()
            found[modality] = _of_mean((a, b, c), number)
    return found


def noise_of_sums(epsilon: float, modalities: int) -> float:
    """Return the standard deviation of the noise on each sum of a site, in halves of the box.

    One patient replaced by another moves each of three sums of each modality by two halves at most.
    """
    return sigma_for(epsilon, 2 * sqrt(3 * modalities), DELTA)


def noise_of_means(told: Sums, epsilon: float | None) -> dict[Modality, float]:
    """Return the standard deviation of the noise on a site's means, in halves of the box; 0 without noise."""
    sigma = 0.0 if epsilon is None or not told else noise_of_sums(epsilon, len(told))
    return {modality: sigma / sums.cases for modality, sums in told.items()}


def in_points(modality: Modality, halves: float) -> Inner:
    """Return what a part of half a box is in points of 100, for each of the three landmarks."""
    a, b, c = (halves * _box(modality)[1]).tolist()
    return (a, b, c)


def fit_with_noise(told: Sequence[Sums], noise: Sequence[Mapping[Modality, float]]) -> Scale:
    """Return the scale of all sites together, where some said what they say with noise.

    The best guess (least mean square) where sites and consortia lie ``SPREAD`` about the usual landmarks and
    noise comes on top: a noisy site counts for less, and a scale with noise in it is drawn towards the usual.
    Otherwise noise alone could bend the scale so far that hospitals would be refused for lying off it. Where
    nobody added noise this is ``fit_scale``, to the bit.

    Parameters
    ----------
    told : sequence of mappings
        What each site says.
    noise : sequence of mappings
        The standard deviation of the noise on each site's means, in halves of the box.
    """
    trust = [{modality: _kept(deviation) for modality, deviation in one.items()} for one in noise]
    scale = fit_scale(told, trust)
    landmarks = dict(scale.landmarks)
    for modality in CHANNELS:
        weights = [  # and noise
            (one[modality] * sums[modality].cases, noisy[modality])
            for sums, one, noisy in zip(told, trust, noise, strict=True)
            if modality in sums
        ]
        variance = sum((weight * deviation) ** 2 for weight, deviation in weights)
        if variance > 0:
            kept = _kept(sqrt(variance) / sum(weight for weight, _ in weights))
            pairs = zip(landmarks[modality], USUAL[modality], strict=True)
            low, a, b, c, high = (usual + kept * (found - usual) for found, usual in pairs)
            landmarks[modality] = (low, a, b, c, high)
    return Scale(landmarks=landmarks, cases=scale.cases, sites=scale.sites)


def _kept(deviation: float) -> float:
    """Return the share of what is seen that is signal, where so much noise is in it."""
    return SPREAD**2 / (SPREAD**2 + deviation**2)


def _counts(cases: Cases, limit: int) -> dict[Modality, int]:
    """Return the published number of cases of each modality that enough have."""
    counts = {}
    for modality in CHANNELS:
        having = sum(modality in case for case in cases)
        number = suppress(having, limit) if having >= FEWEST_CASES else None
        if number is not None and number >= FEWEST_CASES:
            counts[modality] = number
    return counts


def _places(cases: Cases, modality: Modality) -> npt.NDArray[np.int64]:
    """Return the sums, shape (3,), of the cases' places in the box, each -``STEPS`` to ``STEPS``."""
    middle, half = _box(modality)
    found = np.array([case[modality] for case in cases if modality in case]).reshape(-1, 3)
    places = np.clip((found - middle) / half, -1, 1)
    sums: npt.NDArray[np.int64] = np.rint(STEPS * places).astype(np.int64).sum(axis=0)
    return sums


def _box(modality: Modality) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    low, high = np.array(PRIOR[modality])
    return (low + high) / 2, (high - low) / 2


def _of_mean(mean: Inner, cases: int) -> LandmarkSums:
    a, b, c = (value * cases for value in mean)
    return LandmarkSums(cases=cases, sums=(a, b, c))
