import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.data.fields import Grid, smooth_noise, stream


def line(*places):
    return np.array(places, np.float32)


def test_cube_covers_176_mm_around_its_centre():
    grid = Grid.cube(32)
    x, y, z = grid.axes()
    assert x[0] == pytest.approx(-88 + 5.5 / 2)
    assert y[-1] == pytest.approx(88 - 5.5 / 2)
    assert z.mean() == pytest.approx(-5)


def test_affine_maps_the_first_and_last_voxel_to_the_ends_of_the_axes():
    grid = Grid.full()
    last = np.array([*grid.shape, 2]) - 1
    ends = grid.affine() @ np.array([[0, 0, 0, 1], last]).T
    assert ends[:3, 0].tolist() == [axis[0] for axis in grid.axes()]
    assert ends[:3, 1].tolist() == [axis[-1] for axis in grid.axes()]


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**31), st.floats(4, 60), st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=4)
)
def test_a_place_has_its_value_whatever_else_is_asked_for(seed, pitch, places):
    alone = smooth_noise(stream(seed), (line(places[0]), line(3), line(-7)), pitch)
    among = smooth_noise(stream(seed), (line(*places), line(3, 50), line(-60, -7)), pitch)
    assert among[0, 0, 1] == alone[0, 0, 0]


def test_noise_is_standard_normal_at_every_place_even_between_the_lattice_points():
    axes = (line(0.0, 4.0), line(1.7), line(-31.3))
    draws = np.array([smooth_noise(stream(seed), axes, 16.0).ravel() for seed in range(2000)])
    assert draws.mean(axis=0) == pytest.approx([0, 0], abs=0.08)
    assert draws.std(axis=0) == pytest.approx([1, 1], abs=0.06)
    assert 0.5 < np.corrcoef(draws.T)[0, 1] < 1  # a quarter of a blob apart


def test_streams_of_different_keys_are_different_and_repeat():
    assert stream(1, "a").random() == stream(1, "a").random()
    assert len({stream(*key).random() for key in ((1,), (2,), (1, "a"), (1, "b"), (1, "a", 0))}) == 5
