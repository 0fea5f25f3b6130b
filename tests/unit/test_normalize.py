import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.data.normalize import HALF_RANGE, MIDDLE, brain_percentiles, onto_scale, zscore_in_brain
from fedglioma.data.volume import VolumeError
from fedglioma.scale import PERCENTILES

SHAPE = (6, 5, 4)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[1:5, 1:4, 1:3] = True


def _values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(300, 40, SHAPE).astype(np.float32)


def test_brain_has_mean_0_and_deviation_1_and_the_rest_is_exactly_0() -> None:
    scaled = zscore_in_brain(_values(), BRAIN)
    assert scaled.dtype == np.float32
    assert scaled[BRAIN].mean() == pytest.approx(0, abs=1e-5)
    assert scaled[BRAIN].std() == pytest.approx(1, abs=1e-5)
    assert not scaled[~BRAIN].any()


def test_four_voxels_by_hand() -> None:
    array, brain = np.zeros((4, 1, 2), np.float32), np.zeros((4, 1, 2), bool)
    array[:, 0, 0], brain[:, 0, 0] = (1, 1, 3, 3), True
    np.testing.assert_array_equal(zscore_in_brain(array, brain)[:, 0, 0], (-1, -1, 1, 1))


@settings(deadline=None, max_examples=30)
@given(gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_gain_and_offset_of_the_scanner_do_not_matter(gain: float, offset: float) -> None:
    moved = (_values().astype(np.float64) * gain + offset).astype(np.float32)
    np.testing.assert_allclose(zscore_in_brain(moved, BRAIN), zscore_in_brain(_values(), BRAIN), atol=0.02)


def test_what_was_not_acquired_counts_for_nothing_and_becomes_0() -> None:
    cut = _values()
    cut[4] = np.nan
    part = BRAIN.copy()
    part[4] = False
    np.testing.assert_array_equal(zscore_in_brain(cut, BRAIN), zscore_in_brain(_values(), part))


def test_constant_and_absent_modalities_are_refused() -> None:
    with pytest.raises(VolumeError, match="every voxel in the brain is 5"):
        zscore_in_brain(np.full(SHAPE, 5, np.float32), BRAIN)
    with pytest.raises(VolumeError, match="no voxel of it lies in the brain"):
        zscore_in_brain(np.full(SHAPE, np.nan, np.float32), BRAIN)


def test_landmarks_land_on_the_scale_and_beyond_them_the_lines_go_on() -> None:
    own, common = (-1.0, -0.5, 0.25, 0.5, 1.0), (0.0, 40.0, 60.0, 90.0, 100.0)
    values = np.array([*own, -2.0, 3.0, 0.0], np.float32)
    moved = onto_scale(values, own, common) * HALF_RANGE + MIDDLE
    np.testing.assert_allclose(moved[:5], common, atol=1e-3)
    np.testing.assert_allclose(moved[5:7], [-80.0, 140.0], atol=1e-2)
    assert onto_scale(values, own, common)[7] == 0


def test_landmarks_that_coincide_make_no_voxel_infinite() -> None:
    values = np.random.default_rng(0).normal(0, 1.2, 40_000).round()
    scaled = ((values - values.mean()) / values.std()).astype(np.float32)
    own = tuple(np.percentile(scaled, PERCENTILES).tolist())
    assert len(set(own)) < len(own)
    moved = onto_scale(scaled, own, (0.0, 45.0, 67.0, 87.0, 100.0)).astype(np.float16)
    assert np.isfinite(moved).all()


def test_percentiles_are_those_of_the_brain_alone() -> None:
    scaled = zscore_in_brain(_values(), BRAIN)
    found = brain_percentiles(scaled)
    np.testing.assert_allclose(found, np.percentile(scaled[BRAIN], [10, 30, 50, 70, 80]))
    flat = np.where(BRAIN, np.float32(1), np.float32(0))
    with pytest.raises(VolumeError, match="one value"):
        brain_percentiles(flat)
