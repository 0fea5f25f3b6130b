import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedglioma.data.augment import Augmentation, Draw, apply, draw

STRONG = Augmentation(flip=0.5, scale=0.1, shift=0.1)


def image() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(4, 3, 4, 5)).astype(np.float32)
    values[:, 0] = 0  # background
    values[2] = 0  # an absent modality
    return values


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_background_and_absent_modality_stay_zero(seed: int) -> None:
    outcome = draw(STRONG, np.random.default_rng(seed))
    mirrored = apply(Draw(flips=outcome.flips), image())
    assert np.array_equal(apply(outcome, image()) == 0, mirrored == 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_twice_is_nothing_and_once_turns_that_axis(axis: int) -> None:
    outcome = Draw(flips=(axis == 0, axis == 1, axis == 2))
    once = apply(outcome, image())
    assert np.array_equal(once, np.flip(image(), axis + 1))
    assert np.array_equal(apply(outcome, once), image())


def test_each_modality_gets_its_own_factor_and_offset() -> None:
    outcome = Draw(scale=(1.0, 2.0, 1.0, 1.0), shift=(0.0, 0.0, 0.5, -0.5))
    ones = np.ones((4, 2, 2, 2), np.float32)
    assert apply(outcome, ones)[:, 0, 0, 0].tolist() == [1.0, 2.0, 1.5, 0.5]


def test_applying_leaves_the_input_as_it_is() -> None:
    original = image()
    apply(draw(STRONG, np.random.default_rng(3)), original)
    assert np.array_equal(original, image())


def test_same_generator_draws_the_same_outcome() -> None:
    assert draw(STRONG, np.random.default_rng(5)) == draw(STRONG, np.random.default_rng(5))


def test_switching_intensity_on_does_not_change_the_flips() -> None:
    for seed in range(20):
        off, on = (draw(a, np.random.default_rng(seed)) for a in (Augmentation(), STRONG))
        assert off == Draw(flips=on.flips)


def test_draws_keep_within_their_limits_and_flip_half_the_time() -> None:
    generator = np.random.default_rng(0)
    outcomes = [draw(STRONG, generator) for _ in range(1000)]
    flips = np.mean([outcome.flips for outcome in outcomes], axis=0)
    assert flips == pytest.approx([0.5, 0.5, 0.5], abs=0.065)
    factors = np.array([outcome.scale for outcome in outcomes])
    offsets = np.array([outcome.shift for outcome in outcomes])
    assert 0.9 <= factors.min() < 0.905
    assert 1.095 < factors.max() <= 1.1
    assert np.abs(offsets).max() <= 0.1


@pytest.mark.parametrize("setting", [{"flip": 1.5}, {"scale": 1.0}, {"shift": -0.1}])
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**setting)
