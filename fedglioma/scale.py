"""The consortium's intensity scale: what sites say of their brightness, and what follows from all of them.

A case's landmarks are the 10th, 30th, 50th, 70th and 80th percentile of a modality inside the brain, put on
a scale that has the first at 0 and the last at 100; the three between are all that is free (after Nyul and
Udupa 1999; percentiles above the 80th move with tumour and contrast agent). A site sends their sums over
its cases and the number of cases, the server divides: the same as a fit on all cases together, and nobody
shows a patient's image, as matching histograms to one reference would.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from fedglioma.case import CHANNELS, Frozen, Modality
from fedglioma.errors import DataError

PERCENTILES: Final = (10.0, 30.0, 50.0, 70.0, 80.0)
TOP: Final = 100.0
FEWEST_CASES: Final = 5
"""A site with fewer cases of a modality adds nothing to its scale, and uses it all the same."""
MOST_DISTANCE: Final = 20.0
"""Points, of 100, that a site's mean landmark may lie from the consortium's."""
LEAST_STEP: Final = 1e-4

Landmarks = tuple[float, float, float, float, float]
Inner = tuple[float, float, float]


class LandmarkSums(Frozen):
    """What a site says of one modality: the sums of its cases' inner landmarks, 0 to 100 each."""

    model_config = ConfigDict(allow_inf_nan=False)

    cases: int = Field(ge=FEWEST_CASES, le=10**6)
    sums: Inner

    @model_validator(mode="after")
    def _possible(self) -> "LandmarkSums":
        low, middle, high = self.sums
        # Noise may be added on purpose, so the sums need not be those of any cases.
        if not -TOP * self.cases <= min(low, middle, high) <= max(low, middle, high) <= 2 * TOP * self.cases:
            raise ValueError(f"landmarks of {self.cases} cases cannot add up to {self.sums}")
        return self

    @property
    def mean(self) -> Inner:
        """The mean landmarks of the site."""
        low, middle, high = (value / self.cases for value in self.sums)
        return (low, middle, high)


class Scale(Frozen):
    """Where each modality's landmarks lie for everybody, strictly rising from 0 to 100.

    ``cases`` and ``sites`` say how many stood behind each modality; where none did, the modality has
    ``USUAL`` landmarks.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    landmarks: dict[Modality, Landmarks]
    cases: dict[Modality, int]
    sites: dict[Modality, int]

    @model_validator(mode="after")
    def _rising(self) -> "Scale":
        if set(self.landmarks) != set(CHANNELS):
            raise ValueError("a scale has landmarks for each of the four modalities")
        for modality, values in self.landmarks.items():
            if not all(low < high for low, high in pairwise(values)):
                raise ValueError(f"{modality}: landmarks must rise, found {values}")
        return self

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def id(self) -> str:
        """sha256 over the landmarks: what prepared volumes are kept under."""
        content = ";".join(
            f"{modality.value}:" + ",".join(value.hex() for value in self.landmarks[modality])
            for modality in CHANNELS
        )
        return hashlib.sha256(content.encode()).hexdigest()


USUAL: Final[Mapping[Modality, Landmarks]] = {
    Modality.FLAIR: (0.0, 60.0, 78.0, 91.0, 100.0),
    Modality.T1CE: (0.0, 54.0, 74.0, 91.0, 100.0),
    Modality.T1: (0.0, 53.0, 75.0, 92.0, 100.0),
    Modality.T2: (0.0, 24.0, 44.0, 75.0, 100.0),
}
"""Where landmarks lie in gliomas of open collections, for a modality that no site has enough cases of."""


def inner_landmarks(percentiles: Sequence[float]) -> Inner:
    """Return a case's inner landmarks on its own scale of 0 to 100, from its five percentiles.

    Raises
    ------
    DataError
        The lowest and the highest percentile are the same: most of the brain has one value.
    """
    low, *between, high = (float(value) for value in percentiles)
    if not high > low:
        raise DataError("most of the brain has one value; export the series again")
    a, b, c = ((value - low) / (high - low) * TOP for value in between)
    return (a, b, c)


def landmark_sums(cases: Sequence[Mapping[Modality, Inner]]) -> dict[Modality, LandmarkSums]:
    """Return what a site sends of its cases: modalities of which it has ``FEWEST_CASES`` or more."""
    sums = {}
    for modality in CHANNELS:
        of = np.array([case[modality] for case in cases if modality in case], dtype=np.float64)
        if len(of) >= FEWEST_CASES:
            a, b, c = of.sum(axis=0).tolist()
            sums[modality] = LandmarkSums(cases=len(of), sums=(a, b, c))
    return sums


def fit_scale(
    sites: Sequence[Mapping[Modality, LandmarkSums]], trust: Sequence[Mapping[Modality, float]] | None = None
) -> Scale:
    """Return the scale of all sites together; landmarks that noise made fall are set beside each other.

    Parameters
    ----------
    sites : sequence of mappings
        What each site says.
    trust : sequence of mappings, optional
        How much a case of each site counts, above 0 to 1; without it, or unnamed, fully.
    """
    landmarks, cases, counted = {}, {}, {}
    for modality in CHANNELS:
        told = [site[modality] for site in sites if modality in site]
        counts = [
            one.get(modality, 1.0)
            for site, one in zip(sites, trust or [{}] * len(sites), strict=True)
            if modality in site
        ]
        counted[modality] = len(told)
        cases[modality] = sum(site.cases for site in told)
        landmarks[modality] = _rising(told, counts) if told else USUAL[modality]
    return Scale(landmarks=landmarks, cases=cases, sites=counted)


def _rising(told: Sequence[LandmarkSums], counts: Sequence[float]) -> Landmarks:
    sums = np.sum([count * np.array(site.sums) for site, count in zip(told, counts, strict=True)], axis=0)
    cases = sum(count * site.cases for site, count in zip(told, counts, strict=True))
    values = [0.0, *(sums / cases).tolist(), TOP]
    for place in (1, 2, 3):
        values[place] = max(values[place], values[place - 1] + LEAST_STEP)
    for place in (3, 2, 1):
        values[place] = min(values[place], values[place + 1] - LEAST_STEP)
    low, a, b, c, high = values
    return (low, a, b, c, high)


def distance(means: Mapping[Modality, Inner], scale: Scale) -> tuple[float, Modality | None]:
    """Return how far mean landmarks lie from the scale's at most, in points, and in which modality."""
    found = [
        (max(abs(own - common) for own, common in zip(mean, scale.landmarks[m][1:4], strict=True)), m)
        for m, mean in means.items()
    ]
    return max(found, default=(0.0, None))
