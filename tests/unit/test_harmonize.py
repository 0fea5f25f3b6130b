from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from fedglioma.case import Modality
from fedglioma.data.harmonize import Grid, covering_grid, reference_of, resample, same_grid, to_ras
from fedglioma.data.volume import Volume

SHAPE = (12, 10, 8)
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)), float)
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def _volume(spacing: tuple[float, float, float] = (1, 1, 1), seed: int = 0) -> Volume:
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = (-3.5, 2.0, 7.25)
    return Volume(np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32), matrix)


def _turned(volume: Volume, degrees: float) -> Volume:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Volume(volume.array, turn @ volume.affine)


def _ramp_on(volume: Volume) -> Volume:
    """Return a volume whose value is 2x - y + 0.5z at its place in mm."""
    places = np.indices(volume.array.shape).reshape(3, -1)
    x, y, z = volume.affine[:3, :3] @ places + volume.affine[:3, 3:]
    return Volume((2 * x - y + 0.5 * z).reshape(volume.array.shape).astype(np.float32), volume.affine)


@settings(deadline=None, max_examples=48)
@given(orientation=st.sampled_from(ORIENTATIONS))
def test_stored_orientation_does_not_matter(orientation: np.ndarray) -> None:
    volume = _volume((1.0, 1.5, 2.0))
    stored = Volume(
        apply_orientation(volume.array, orientation), volume.affine @ inv_ornt_aff(orientation, SHAPE)
    )
    again = to_ras(stored)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-12)


def test_volume_on_its_own_grid_is_a_copy_of_itself() -> None:
    volume = _volume()
    grid = covering_grid(volume, 1.0)
    same = resample(volume, grid)
    np.testing.assert_array_equal(same, volume.array)
    assert not np.shares_memory(same, volume.array)


def test_resampling_twice_is_resampling_once() -> None:
    turned = _turned(_volume((1.0, 1.2, 3.0)), 15)
    grid = covering_grid(turned, 1.0)
    once = resample(turned, grid)
    np.testing.assert_array_equal(resample(Volume(once, grid.affine), grid), once)


@pytest.mark.parametrize("degrees", [0, 12, -40])
def test_linear_ramp_stays_itself_wherever_it_is_seen(degrees: float) -> None:
    ramp = _ramp_on(_turned(_volume((0.9, 0.9, 3.0)), degrees))
    grid = covering_grid(ramp, 1.0)
    expected = _ramp_on(Volume(np.zeros(grid.shape, np.float32), grid.affine)).array
    seen = resample(ramp, grid)
    # Within half a voxel of its edge, a volume is continued by its last value.
    inner = (
        resample(Volume(np.pad(np.ones(tuple(n - 2 for n in SHAPE), np.float32), 1), ramp.affine), grid) == 1
    )
    assert inner.sum() > 50
    np.testing.assert_allclose(seen[inner], expected[inner], atol=1e-4)


def test_outside_the_field_of_view_is_nan_and_nowhere_else() -> None:
    volume = _volume()
    grid = Grid((14, 10, 8), (-5.5, 2.0, 7.25), 1.0)
    seen = resample(volume, grid)
    assert np.isnan(seen[:2]).all()
    np.testing.assert_array_equal(seen[2:], volume.array)


def test_coarser_grid_takes_the_mean_of_whole_voxels() -> None:
    volume = _volume()
    halved = resample(volume, covering_grid(volume, 2.0))
    blocks = volume.array.reshape(6, 2, 5, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(halved, blocks, atol=1e-6)


def test_grid_covers_a_turned_volume_whole() -> None:
    turned = _turned(_volume((2, 2, 5)), 30)
    grid = covering_grid(turned, 1.0)
    corners = np.array([[x, y, z, 1] for x, y, z in product(*[(-0.5, n - 0.5) for n in SHAPE])]).T
    places = (turned.affine @ corners)[:3]
    low = np.array(grid.origin) - 0.5
    high = low + np.array(grid.shape)
    assert (places.min(axis=1) >= low - 1e-6).all()
    assert (places.max(axis=1) <= high + 1e-6).all()


def test_crop_of_a_grid_keeps_its_voxels_where_they_are() -> None:
    grid = Grid((10, 10, 10), (1.0, 2.0, 3.0), 2.0)
    part = grid.crop(((2, 5), (0, 10), (9, 10)))
    assert part == Grid((3, 10, 1), (5.0, 2.0, 21.0), 2.0)


def test_reference_is_the_sharpest_and_then_the_first_of_the_order() -> None:
    thick, thin = _volume((0.5, 0.5, 5)), _volume((1, 1, 1.0001))
    assert reference_of({Modality.T1CE: thick, Modality.FLAIR: thin}) is Modality.FLAIR
    assert reference_of(dict.fromkeys(Modality, thin)) is Modality.T1CE
    assert reference_of({Modality.FLAIR: thin, Modality.T2: thin}) is Modality.T2


def test_same_grid_forgives_rounding_and_nothing_else() -> None:
    volume = _volume()
    assert same_grid((volume, Volume(volume.array, volume.affine + 1e-5)))
    assert not same_grid((volume, _turned(volume, 1)))
    assert not same_grid((volume, Volume(volume.array[:-1], volume.affine)))


def test_smooth_resampling_keeps_a_wave_that_linear_flattens() -> None:
    """Between voxels a cubic spline is nearer to a sine of six voxels than straight lines are."""
    wave = np.sin(np.arange(40) * 2 * np.pi / 6).astype(np.float32)
    volume = Volume(np.tile(wave[:, None, None], (1, 12, 12)), np.eye(4))
    grid = Grid((20, 4, 4), (8.5, 4.0, 4.0), 1.0)
    true = np.sin((8.5 + np.arange(20)) * 2 * np.pi / 6)
    errors = [np.abs(resample(volume, grid, smooth=smooth)[:, 2, 2] - true).max() for smooth in (False, True)]
    assert errors[1] < errors[0] / 5
