"""Sites' counts and landmarks as numbers that add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import CHANNELS, GENES, SUBSETS, Modality
from fedglioma.counts import SiteCounts, estimate, task_weights
from fedglioma.errors import ProtocolError
from fedglioma.pooled import LENGTH, numbers_of, pooled
from fedglioma.scale import LandmarkSums, fit_scale
from fedglioma.weights import GROUPS

LIMIT = 5
cells = st.none() | st.integers(0, 200).map(lambda fives: 5 * fives)


@st.composite
def sites(draw: st.DrawFn) -> tuple[SiteCounts, dict[Modality, LandmarkSums]]:
    labels = {gene: (draw(cells), draw(cells), draw(cells)) for gene in GENES}
    masks = draw(cells)
    trunk = float(5 * draw(st.integers(0, 100)))
    counts = SiteCounts(
        cases=5 * draw(st.integers(0, 1000)),
        labels=labels,
        modalities=draw(st.dictionaries(st.sampled_from(SUBSETS), cells, max_size=4)),
        masks=masks,
        weights={"trunk": trunk} | task_weights(labels, masks, LIMIT),
        limit=LIMIT,
    )
    landmarks = {}
    for modality in draw(st.sets(st.sampled_from(CHANNELS))):
        number = 5 * draw(st.integers(1, 100))
        a, b, c = (number * draw(st.floats(0, 100)) for _ in range(3))
        landmarks[modality] = LandmarkSums(cases=number, sums=(a, b, c))
    return counts, landmarks


@settings(deadline=None, max_examples=60)
@given(st.lists(sites(), min_size=1, max_size=8))
def test_the_sum_of_sites_is_what_their_published_counts_add_up_to(
    told: list[tuple[SiteCounts, dict[Modality, LandmarkSums]]],
) -> None:
    found = pooled(np.sum([numbers_of(*site) for site in told], axis=0))
    counts = [site for site, _ in told]
    assert found.cases == sum(site.cases for site in counts)
    assert found.masks == sum(estimate(site.masks, LIMIT) for site in counts)
    for gene in GENES:
        for place in range(3):
            assert found.labels[gene][place] == sum(
                estimate(site.labels[gene][place], LIMIT) for site in counts
            )
    for name in SUBSETS:
        expected = sum(estimate(site.modalities.get(name, 0), LIMIT) for site in counts)
        assert found.modalities.get(name, 0.0) == expected
    assert found.weights == {group: sum(site.weights[group] for site in counts) for group in GROUPS}
    assert found.having == {group: sum(site.weights[group] > 0 for site in counts) for group in GROUPS}
    for modality in CHANNELS:
        having = [marks[modality] for _, marks in told if modality in marks]
        assert found.speaking[modality] == len(having)
        if having:
            assert found.landmarks[modality].cases == sum(sums.cases for sums in having)
            exact = np.sum([sums.sums for sums in having], axis=0)
            np.testing.assert_allclose(found.landmarks[modality].sums, exact, atol=len(having) / 128)


@settings(deadline=None, max_examples=20)
@given(st.lists(sites(), min_size=3, max_size=5))
def test_the_scale_of_the_sum_is_that_of_the_sites(
    told: list[tuple[SiteCounts, dict[Modality, LandmarkSums]]],
) -> None:
    found = pooled(np.sum([numbers_of(*site) for site in told], axis=0))
    scale, expected = fit_scale([found.landmarks]), fit_scale([marks for _, marks in told])
    for modality in CHANNELS:
        np.testing.assert_allclose(scale.landmarks[modality], expected.landmarks[modality], atol=1e-2)


@pytest.mark.parametrize("place", [0, 5, LENGTH - 5 * len(CHANNELS) - 1])
def test_sum_below_nothing_is_refused(place: int) -> None:
    numbers = np.zeros(LENGTH, np.int64)
    numbers[place] = -1
    with pytest.raises(ProtocolError, match="no site can have"):
        pooled(numbers)


def test_landmarks_of_no_images_are_refused() -> None:
    numbers = np.zeros(LENGTH, np.int64)
    numbers[-5:] = (1, 10, 10**9, 0, 0)
    with pytest.raises(ProtocolError, match="those of no images"):
        pooled(numbers)
    with pytest.raises(ProtocolError, match="pooled numbers where"):
        pooled(numbers[1:])
