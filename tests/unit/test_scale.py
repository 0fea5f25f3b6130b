"""The consortium's scale: sums are as good as all cases together, and nothing else is needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from fedglioma.case import Modality
from fedglioma.errors import DataError
from fedglioma.scale import (
    FEWEST_CASES,
    PERCENTILES,
    USUAL,
    Inner,
    LandmarkSums,
    Scale,
    distance,
    fit_scale,
    inner_landmarks,
    landmark_sums,
)

percentile = st.floats(0.01, 99.99)
case = st.tuples(percentile, percentile, percentile).map(lambda found: tuple(sorted(found)))
hospital = st.lists(case, min_size=FEWEST_CASES, max_size=12)


def of_t1(cases: list[Inner]) -> list[dict[Modality, Inner]]:
    return [{Modality.T1: found} for found in cases]


@given(st.lists(hospital, min_size=1, max_size=5))
def test_scale_of_the_sums_is_the_scale_of_all_cases(hospitals: list[list[Inner]]) -> None:
    federated = fit_scale([landmark_sums(of_t1(cases)) for cases in hospitals])
    pooled = np.mean([found for cases in hospitals for found in cases], axis=0)
    if min(np.diff([0.0, *pooled, 100.0])) > 1e-3:
        np.testing.assert_allclose(federated.landmarks[Modality.T1], [0, *pooled, 100], rtol=0, atol=1e-9)
    assert federated.cases[Modality.T1] == sum(map(len, hospitals))
    assert federated.sites[Modality.T1] == len(hospitals)


@given(st.lists(hospital, min_size=2, max_size=4), st.randoms())
def test_order_of_the_hospitals_changes_no_more_than_rounding(hospitals: list[list[Inner]], random) -> None:
    sums = [landmark_sums(of_t1(cases)) for cases in hospitals]
    first = fit_scale(sums)
    random.shuffle(sums)
    np.testing.assert_allclose(
        fit_scale(sums).landmarks[Modality.T1], first.landmarks[Modality.T1], rtol=0, atol=1e-9
    )


@given(st.tuples(*[st.floats(-50, 150)] * 3))
def test_scale_rises_whatever_noise_did_to_the_sums(noisy: Inner) -> None:
    a, b, c = (value * 5 for value in noisy)
    found = fit_scale([{Modality.T2: LandmarkSums(cases=5, sums=(a, b, c))}])
    assert min(np.diff(found.landmarks[Modality.T2])) > 0


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1000), st.floats(-500, 500))
def test_landmarks_do_not_depend_on_gain_and_offset(seed: int, gain: float, offset: float) -> None:
    voxels: NDArray[np.float64] = np.random.default_rng(seed).gamma(3, 20, 2000)
    plain = inner_landmarks(np.percentile(voxels, PERCENTILES).tolist())
    scanned = inner_landmarks(np.percentile(gain * voxels + offset, PERCENTILES).tolist())
    np.testing.assert_allclose(scanned, plain, rtol=0, atol=1e-6)
    assert 0 <= plain[0] <= plain[1] <= plain[2] <= 100


def test_few_cases_say_nothing_and_a_modality_of_nobody_is_as_usual() -> None:
    few = landmark_sums(of_t1([(40.0, 60.0, 80.0)] * (FEWEST_CASES - 1)))
    assert few == {}
    scale = fit_scale([few])
    assert scale.landmarks == dict(USUAL)
    assert set(scale.cases.values()) == {0}


def test_most_of_the_brain_of_one_value_has_no_landmarks() -> None:
    with pytest.raises(DataError, match="one value"):
        inner_landmarks([7.0] * 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cases": 4, "sums": (1.0, 2.0, 3.0)},
        {"cases": 5, "sums": (1.0, float("nan"), 3.0)},
        {"cases": 5, "sums": (1.0, 2.0, 1e9)},
        {"cases": 10**9, "sums": (1.0, 2.0, 3.0)},
    ],
)
def test_sums_that_no_cases_have_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LandmarkSums.model_validate(wrong)


def test_id_follows_the_landmarks_alone() -> None:
    scale = fit_scale([landmark_sums(of_t1([(40.0, 60.0, 80.0)] * 5))])
    again = Scale.model_validate_json(scale.model_dump_json())
    assert again == scale
    assert again.id == scale.id
    assert fit_scale([landmark_sums(of_t1([(40.0, 60.0, 80.0)] * 6))]).id == scale.id
    assert fit_scale([landmark_sums(of_t1([(40.0, 60.0, 80.1)] * 5))]).id != scale.id


def test_distance_is_the_largest_over_landmarks_and_modalities() -> None:
    scale = fit_scale([])
    means: dict[Modality, Inner] = {Modality.T1: (54.0, 75.0, 92.0), Modality.T2: (24.0, 37.0, 75.0)}
    assert distance(means, scale) == (7.0, Modality.T2)
    assert distance({}, scale) == (0.0, None)
