"""What a site says of its landmarks: no exact count, and with noise no patient."""

import os
from math import sqrt
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fedglioma import landmarks
from fedglioma.case import CHANNELS, Modality
from fedglioma.counts import round_up, suppress
from fedglioma.landmarks import (
    PRIOR,
    STEPS,
    fit_with_noise,
    in_points,
    noise_of_means,
    noise_of_sums,
    noisy_sums,
    private_sums,
    published_sums,
)
from fedglioma.noise import DELTA, sigma_for
from fedglioma.scale import (
    FEWEST_CASES,
    MOST_DISTANCE,
    PERCENTILES,
    USUAL,
    Inner,
    distance,
    fit_scale,
    inner_landmarks,
    landmark_sums,
)

REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
SECRET = bytes(range(32))
T1 = Modality.T1

landmark = st.floats(0.01, 99.99)
inner = st.tuples(landmark, landmark, landmark).map(lambda found: tuple(sorted(found)))
patient = st.dictionaries(st.sampled_from(CHANNELS), inner, min_size=1)
patients = st.lists(patient, min_size=1, max_size=25)
limits = st.integers(1, 12)

Patient = dict[Modality, Inner]


def usual(modality: Modality, by: float = 0.0) -> Inner:
    """Return the usual inner landmarks, moved by points."""
    a, b, c = (value + by for value in USUAL[modality][1:4])
    return (a, b, c)


def alike(number: int) -> list[Patient]:
    return [{modality: usual(modality) for modality in CHANNELS}] * number


@given(patients, limits)
def test_numbers_of_cases_are_rounded_and_means_are_true(cases: list[Patient], limit: int) -> None:
    told = published_sums(cases, limit)
    for modality in CHANNELS:
        found = np.array([case[modality] for case in cases if modality in case])
        number = suppress(len(found), limit)
        if len(found) < FEWEST_CASES or number is None or number < FEWEST_CASES:
            assert modality not in told
            continue
        assert told[modality].cases == number
        assert told[modality].cases <= round_up(len(cases), limit), "what the server believes at most"
        np.testing.assert_allclose(told[modality].mean, found.mean(axis=0), rtol=0, atol=1e-9)


@given(patients)
def test_a_limit_of_one_rounds_no_number(cases: list[Patient]) -> None:
    told, exact = published_sums(cases, 1), landmark_sums(cases)
    assert {m: sums.cases for m, sums in told.items()} == {m: sums.cases for m, sums in exact.items()}
    for modality, sums in told.items():
        np.testing.assert_allclose(sums.sums, exact[modality].sums, rtol=1e-12)


@given(st.lists(patients, min_size=1, max_size=4), limits)
def test_scale_is_the_fit_on_all_cases_where_each_hospital_weighs_what_it_published(
    hospitals: list[list[Patient]], limit: int
) -> None:
    told = [published_sums(cases, limit) for cases in hospitals]
    scale = fit_scale(told)
    for modality in CHANNELS:
        pooled = [
            (case[modality], sums[modality].cases / sum(modality in one for one in cases))
            for cases, sums in zip(hospitals, told, strict=True)
            if modality in sums
            for case in cases
            if modality in case
        ]
        if pooled:
            values, weights = zip(*pooled, strict=True)
            expected = [0.0, *np.average(values, axis=0, weights=weights), 100.0]
            if min(np.diff(expected)) > 1e-3:
                np.testing.assert_allclose(scale.landmarks[modality], expected, rtol=0, atol=1e-9)


@settings(max_examples=50)
@given(patients, limits, st.floats(1e-3, 100))
def test_noisy_sums_stay_in_the_box_and_are_the_same_again(
    cases: list[Patient], limit: int, epsilon: float
) -> None:
    told = noisy_sums(cases, limit, epsilon, SECRET)
    exact = published_sums(cases, limit)
    assert {m: sums.cases for m, sums in told.items()} == {m: sums.cases for m, sums in exact.items()}
    for modality, sums in told.items():
        low, high = PRIOR[modality]
        assert all(a - 1e-9 <= x <= b + 1e-9 for a, x, b in zip(low, sums.mean, high, strict=True))
    assert noisy_sums(cases[::-1], limit, epsilon, SECRET) == told


@given(st.lists(patient, min_size=6, max_size=12), patient, st.data())
def test_one_patient_moves_the_sums_by_no_more_than_the_noise_is_made_for(
    cases: list[Patient], other: Patient, data
) -> None:
    place = data.draw(st.integers(0, len(cases) - 1))
    changed = [*cases[:place], other, *cases[place + 1 :]]
    moved = 0.0
    for modality in CHANNELS:
        if all(any(modality in case for case in held) for held in (cases, changed)):
            one, another = (landmarks._places(held, modality) for held in (cases, changed))
            moved += float((((one - another) / STEPS) ** 2).sum())
    assert sqrt(moved) <= 2 * sqrt(3 * len(CHANNELS)) + 1e-9


@pytest.mark.parametrize("number", [29, 31, 20])
def test_noisy_mean_is_that_of_the_cases_and_not_of_the_published_number(number: int) -> None:
    low = (24.0, 44.0, 75.0)
    (told,) = noisy_sums([{Modality.T2: low}] * number, 20, 1e4, SECRET).values()
    assert told.mean == pytest.approx(low, abs=0.2)


def test_noise_has_the_deviation_that_is_told() -> None:
    cases = alike(400)
    drawn = [noisy_sums(cases, 1, 8.0, bytes([n // 256, n % 256]) * 16) for n in range(600)]
    told = noise_of_means(drawn[0], 8.0)
    for modality in CHANNELS:
        means = np.array([sums[modality].mean for sums in drawn])  # (draws, 3)
        expected = in_points(modality, told[modality])
        np.testing.assert_allclose(means.std(axis=0), expected, rtol=0.12)
        np.testing.assert_allclose(
            means.mean(axis=0), usual(modality), rtol=0, atol=5 * max(expected) / sqrt(600)
        )


def test_who_knows_all_others_can_tell_a_patient_from_another_no_better_than_promised() -> None:
    """The attack that the definition of privacy is about, on the two patients that differ most."""
    epsilon, draws, ends = 3.0, 1200, []
    for first, side in ((0, 0), (draws, 1)):
        cases = [*alike(39), {modality: PRIOR[modality][side] for modality in CHANNELS}]
        told = [noisy_sums(cases, 1, epsilon, (first + n).to_bytes(32)) for n in range(draws)]
        ends.append(np.array([sum(np.sum(sums.mean / widths(m)) for m, sums in one.items()) for one in told]))
    lows, highs = ends
    apart = (highs.mean() - lows.mean()) / np.concatenate([lows - lows.mean(), highs - highs.mean()]).std()
    promised = 1 / sigma_for(epsilon, 1.0)  # no test of two normal distributions so far apart does better
    assert apart == pytest.approx(promised, abs=4 * sqrt(2 / draws))


def widths(modality: Modality) -> np.ndarray:
    return np.subtract(PRIOR[modality][1], PRIOR[modality][0])


@given(st.lists(patients, min_size=1, max_size=4), limits)
def test_without_noise_the_fit_is_the_plain_one_to_the_bit(
    hospitals: list[list[Patient]], limit: int
) -> None:
    told = [published_sums(cases, limit) for cases in hospitals]
    assert fit_with_noise(told, [noise_of_means(sums, None) for sums in told]) == fit_scale(told)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("number", [5, 30, 95])
def test_noise_alone_never_bends_the_scale_so_far_that_a_usual_hospital_is_refused(
    epsilon: float, number: int
) -> None:
    for draw in range(20):
        told = [noisy_sums(alike(number), 5, epsilon, bytes([draw, site]) * 16) for site in range(3)]
        scale = fit_with_noise(told, [noise_of_means(sums, epsilon) for sums in told])
        off, _ = distance({modality: usual(modality) for modality in CHANNELS}, scale)
        assert off < MOST_DISTANCE


def test_a_hospital_with_much_noise_hardly_counts_beside_others_without() -> None:
    exact = [published_sums([{T1: usual(T1, -6.0)}] * 100, 5)] * 2
    noisy = noisy_sums([{T1: usual(T1)}] * 100, 5, 0.1, SECRET)
    noise = [*[noise_of_means(sums, None) for sums in exact], noise_of_means(noisy, 0.1)]
    scale = fit_with_noise([*exact, noisy], noise)
    assert distance({T1: usual(T1, -6.0)}, scale)[0] < 0.5
    assert scale.cases[T1] == 300
    assert scale.sites[T1] == 3


def test_more_patients_or_more_epsilon_is_less_noise_in_a_mean() -> None:
    assert noise_of_sums(1.0, 4) > noise_of_sums(2.0, 4) > noise_of_sums(2.0, 3)
    few, many = (published_sums(alike(number), 5) for number in (10, 100))
    assert noise_of_means(few, 1.0)[T1] == pytest.approx(10 * noise_of_means(many, 1.0)[T1])


def test_usual_landmarks_lie_in_the_box_with_room() -> None:
    for modality in CHANNELS:
        for low, value, high in zip(PRIOR[modality][0], usual(modality), PRIOR[modality][1], strict=True):
            assert low + 5 < value < high - 5


@pytest.mark.skipif(not REAL, reason="FEDGLIOMA_REAL_DATA names no folder of real cases")
def test_no_landmark_of_real_gliomas_is_cut_off() -> None:
    """Of the skull-stripped voxels as published: what preparation does moves them a little."""
    found = 0
    for path in sorted(Path(str(REAL)).glob("glioma/BraTS2021_0147*/*.nii.gz")):
        name = path.name.removesuffix(".nii.gz").rsplit("_", 1)[1]
        if name not in list(CHANNELS):
            continue
        voxels = np.asarray(nibabel.load(path).dataobj)
        seen = inner_landmarks(np.percentile(voxels[voxels != 0], PERCENTILES).tolist())
        low, high = PRIOR[Modality(name)]
        assert all(a <= x <= b for a, x, b in zip(low, seen, high, strict=True)), (name, seen)
        found += 1
    assert found >= 12


def inner(value: float) -> dict[Modality, Inner]:
    return dict.fromkeys(CHANNELS, (value, value + 5, value + 9))


def test_private_noise_has_one_deviation_whoever_has_which_sequence() -> None:
    """Whatever the numbers of cases, the sums get the noise of the analytic Gaussian mechanism."""
    deviation = STEPS * sigma_for(8.0, sqrt(12), DELTA)
    numbers = dict.fromkeys(CHANNELS, 10_000.0)  # so many that nothing is cut to the box
    for cases in ([inner(60.0)] * 3, [{Modality.T1: (50.0, 60.0, 70.0)}] * 40, []):
        drawn = []
        for number in range(40):
            told = private_sums(cases, numbers, 8.0, bytes([number]) * 32)
            quiet = private_sums(cases, numbers, 1e5, bytes([number]) * 32)
            for modality in CHANNELS:
                low, high = np.array(PRIOR[modality])
                scale = STEPS * 10_000 / ((high - low) / 2)
                drawn += list((np.array(told[modality].mean) - np.array(quiet[modality].mean)) * scale)
        low, high = chi2.ppf([1e-5, 1 - 1e-5], len(drawn)) / len(drawn)
        assert low < np.mean(np.square(drawn)) / deviation**2 < high


def test_private_landmarks_are_told_of_the_noised_number_and_of_nobody_below_five() -> None:
    numbers = {Modality.T1: 12.4, Modality.T2: 4.2}
    told = private_sums([inner(60.0)] * 47, numbers, 1.0, b"s" * 32)
    assert {modality: sums.cases for modality, sums in told.items()} == {Modality.T1: 12}
