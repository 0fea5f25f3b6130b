import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedglioma.data.augment import Augmentation, Draw, apply, apply_to_mask, draw

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


@settings(deadline=None, max_examples=50)
@given(st.tuples(*[st.integers(-7, 7)] * 3), st.tuples(*[st.booleans()] * 3))
def test_moved_image_is_a_window_of_itself_in_zeros_and_its_mask_with_it(
    by: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    outcome = Draw(flips=flips, shift_by=by)
    wide = np.pad(np.flip(image(), [a + 1 for a in range(3) if flips[a]]), [(0, 0)] + [(8, 8)] * 3)
    expected = wide[:, *(slice(8 - b, 8 - b + n) for b, n in zip(by, (3, 4, 5), strict=True))]
    result = apply(outcome, image())
    assert np.array_equal(result, expected)
    mask = (image()[0] > 0).astype(np.int8)
    assert np.array_equal(apply_to_mask(outcome, mask), expected[0] > 0)


def test_unknown_mask_stays_unknown_everywhere() -> None:
    unknown = np.full((3, 4, 5), -1, np.int8)
    moved = apply_to_mask(Draw(flips=(True, False, True), shift_by=(1, 0, -2)), unknown)
    assert (moved == -1).all()


def test_intensities_leave_the_mask_alone() -> None:
    mask = (image()[0] > 0).astype(np.int8)
    assert np.array_equal(apply_to_mask(Draw(scale=(2.0,) * 4, shift=(0.5,) * 4), mask), mask)


def test_sgpnets_own_moves_and_mirrors_half_of_the_time_each() -> None:
    generator = np.random.default_rng(0)
    own = Augmentation(flip=0, one_flip_p=0.5, shift_voxels=10)
    outcomes = [draw(own, generator) for _ in range(4000)]
    flips = np.array([outcome.flips for outcome in outcomes])
    assert set(flips.sum(axis=1)) == {0, 1}
    assert flips.any(axis=1).mean() == pytest.approx(0.5, abs=0.03)
    assert flips.mean(axis=0) == pytest.approx([1 / 6] * 3, abs=0.025)
    moves = np.array([outcome.shift_by for outcome in outcomes])
    moved = moves[moves.any(axis=1)]
    assert len(moved) / len(moves) == pytest.approx(0.5, abs=0.03)
    assert (moved.min(), moved.max()) == (-10, 10)
    counts = np.bincount(moved.ravel() + 10, minlength=21) / moved.size
    assert counts == pytest.approx(np.full(21, 1 / 21), abs=0.012)
    both = flips.any(axis=1) & moves.any(axis=1)
    assert both.mean() == pytest.approx(0.25, abs=0.03)
    assert all(outcome.scale == Draw.scale and outcome.shift == Draw.shift for outcome in outcomes)


def test_translation_leaves_the_other_draws_as_they_were() -> None:
    """Flips and intensities as numpy's generator gives them first, whatever else is switched on."""
    both = Augmentation(scale=0.1, shift=0.2, shift_voxels=4, shift_p=1)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        outcome = draw(both, np.random.default_rng(seed))
        assert outcome.flips == tuple(generator.random(3) < 0.5)
        assert outcome.scale == pytest.approx(1 + 0.1 * generator.uniform(-1, 1, 4))
        assert outcome.shift == pytest.approx(0.2 * generator.uniform(-1, 1, 4))


@pytest.mark.parametrize(
    "setting",
    [
        {"flip": 1.5},
        {"scale": 1.0},
        {"shift": -0.1},
        {"shift_voxels": -1},
        {"one_flip_p": 2},
        {"shift_p": -1},
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**setting)
