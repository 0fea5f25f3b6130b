"""What a site says of its cases as whole numbers that can be added up: for sums that hide the single site.

One number each for what ``SiteCounts`` publishes and for the sums of intensity landmarks, in a fixed order.
Only what a site would also publish by itself goes in, so that the difference of two sums, with and without a
site, tells no more than the small-cell rule allows.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedglioma.case import CHANNELS, GENES, SUBSETS, Frozen, Gene, Modality
from fedglioma.counts import SiteCounts, estimate
from fedglioma.errors import ProtocolError
from fedglioma.scale import FEWEST_CASES, Inner, LandmarkSums
from fedglioma.weights import GROUPS

HALVES: Final = 2
"""Counts are told in halves: a suppressed cell counts as half its limit."""
FINEST: Final = 64
"""Parts of a point that sums of landmarks are rounded to."""
LANDMARKS: Final = 5 * len(CHANNELS)
LENGTH: Final = 2 + 3 * len(GENES) + len(SUBSETS) + 2 * len(GROUPS) + LANDMARKS

Numbers = NDArray[np.int64]


class Pooled(Frozen):
    """The sums over all sites; cells of suppressed sites are estimated, so that they may be halves.

    ``speaking`` says of each modality how many sites told their landmarks, ``having`` of each group how many
    have a weight in it. ``sites`` are those whose numbers were summed.
    """

    cases: float
    masks: float
    labels: dict[Gene, tuple[float, float, float]]
    modalities: dict[str, float]
    weights: dict[str, float]
    landmarks: dict[Modality, LandmarkSums]
    speaking: dict[Modality, int]
    having: dict[str, int] = Field(default={})
    sites: tuple[str, ...] = ()


def numbers_of(counts: SiteCounts, landmarks: Mapping[Modality, LandmarkSums]) -> Numbers:
    """Return a site's numbers, shape (``LENGTH``,), none of them negative but for landmarks with noise."""
    limit = counts.limit
    cells = [estimate(cell, limit) for gene in GENES for cell in counts.labels[gene]]
    subsets = [estimate(counts.modalities.get(name, 0), limit) for name in SUBSETS]
    weights = [counts.weights.get(group, 0.0) for group in GROUPS]
    having = [float(weight > 0) for weight in weights]
    halves = [float(counts.cases), estimate(counts.masks, limit), *cells, *subsets, *weights, *having]
    told = chain.from_iterable(_told(landmarks.get(modality)) for modality in CHANNELS)
    return np.array([*(round(HALVES * value) for value in halves), *told], np.int64)


def _told(sums: LandmarkSums | None) -> Sequence[int]:
    if sums is None:
        return (0, 0, 0, 0, 0)
    return (1, sums.cases, *(round(FINEST * value) for value in sums.sums))


def pooled(numbers: Numbers) -> Pooled:
    """Return what the sum of several sites' numbers says.

    Raises
    ------
    ProtocolError
        No sum of sites' numbers can be this.
    """
    if numbers.shape != (LENGTH,):
        raise ProtocolError(f"{numbers.size} pooled numbers where {LENGTH} are expected")
    counts, landmarks = np.split(numbers, [LENGTH - LANDMARKS])
    if (counts < 0).any():
        raise ProtocolError("a pooled count is below 0: a site sent what no site can have")
    halves = iter((counts / HALVES).tolist())
    cases, masks = next(halves), next(halves)
    labels = {gene: (next(halves), next(halves), next(halves)) for gene in GENES}
    subsets = {name: value for name in SUBSETS if (value := next(halves))}
    weights = {group: next(halves) for group in GROUPS}
    having = {group: round(next(halves)) for group in GROUPS}
    sums, speaking = {}, {}
    for modality, (sites, number, *values) in zip(CHANNELS, landmarks.reshape(-1, 5).tolist(), strict=True):
        speaking[modality] = sites
        if sites > 0:
            sums[modality] = _sums(modality, number, values)
    return Pooled(
        cases=cases,
        masks=masks,
        labels=labels,
        modalities=subsets,
        weights=weights,
        landmarks=sums,
        speaking=speaking,
        having=having,
    )


def _sums(modality: Modality, number: int, values: Sequence[int]) -> LandmarkSums:
    low, middle, high = (value / FINEST for value in values)
    inner: Inner = (low, middle, high)
    try:
        if number < FEWEST_CASES:
            raise ValueError("too few cases")
        return LandmarkSums(cases=number, sums=inner)
    except ValueError:
        raise ProtocolError(
            f"the pooled landmarks of {modality} are those of no images: a site sent what no site can have"
        ) from None
