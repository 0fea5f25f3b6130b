import numpy as np
import pytest

from fedglioma.case import Modality
from fedglioma.data.brain import bounding_box, find_brain, stripped_foreground
from fedglioma.data.fields import Grid
from fedglioma.data.harmonize import covering_grid, resample, to_ras
from fedglioma.data.phantom import render_tissue
from fedglioma.data.scanner import acquire
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.data.volume import Volume, VolumeError
from tests.bad_cohorts import affine, brain


def _stripped(seed: int = 0, background: float = 0.0) -> Volume:
    array = brain(seed)
    return Volume(np.where(array > 0, array, np.float32(background)), affine())


def _with_skull() -> Volume:
    noise = np.random.default_rng(5).uniform(1, 9, brain(0).shape).astype(np.float32)
    return Volume(np.where(brain(0) > 0, 500 + brain(0) / 10, noise), affine())


@pytest.mark.parametrize("background", [0.0, -3.5])
def test_brain_of_a_stripped_volume_is_what_differs_from_its_background(background: float) -> None:
    volume = _stripped(background=background)
    found = find_brain({Modality.T1: volume}, covering_grid(volume, 8.0))
    np.testing.assert_array_equal(found.mask, brain(0) > 0)
    assert not found.doubts
    assert not found.own


def test_holes_are_brain_and_stray_pieces_are_not() -> None:
    volume = _stripped()
    array = volume.array.copy()
    array[11:13, 13:15, 10:12] = 0
    array[1, 13, 10] = 400
    found = find_brain({Modality.T1: Volume(array, volume.affine)}, covering_grid(volume, 8.0))
    np.testing.assert_array_equal(found.mask, brain(0) > 0)


def test_stripped_modalities_decide_for_one_that_is_not() -> None:
    both = {Modality.T1: _with_skull(), Modality.FLAIR: _stripped(3)}
    found = find_brain(both, covering_grid(both[Modality.T1], 8.0))
    np.testing.assert_array_equal(found.mask, brain(0) > 0)
    assert not found.doubts


def test_modality_that_shows_less_than_the_others_has_its_own_part() -> None:
    whole, cut = _stripped(), _stripped(1).array.copy()
    cut[:, :, :8] = 0
    volumes = {Modality.T1: whole, Modality.FLAIR: Volume(cut, affine())}
    found = find_brain(volumes, covering_grid(whole, 8.0))
    np.testing.assert_array_equal(found.mask, brain(0) > 0)
    assert set(found.own) == {Modality.FLAIR}
    np.testing.assert_array_equal(found.own[Modality.FLAIR].array, (cut > 0).astype(np.float32))


def test_head_with_its_skull_is_told() -> None:
    """The brain of a made-up head is found to a Dice coefficient above 0.93, and a warning says how."""
    grid = Grid.cube(72)
    site = make_sites(["zhengzhou"])[0]
    tissue = render_tissue(Recipe(patients=1, sites=(site,), size=72).sample(0), grid, skull=True)
    heads = {
        m: to_ras(
            Volume(acquire(tissue, m, site.scanner, 1, prepared=False).astype(np.float32), grid.affine())
        )
        for m in (Modality.FLAIR, Modality.T2)
    }
    truth = to_ras(Volume(tissue.whole(tissue.brain_voxels().astype(np.float32)), grid.affine()))
    assert stripped_foreground(heads[Modality.T2]) is None
    target = covering_grid(heads[Modality.T2], 4.0)
    found = find_brain(heads, target)
    assert [code for code, _ in found.doubts] == ["not_stripped"]
    real = resample(truth, target) > 0.5
    assert 2 * (found.mask & real).sum() / (found.mask.sum() + real.sum()) > 0.93


def test_what_is_no_head_has_no_brain() -> None:
    noise = np.random.default_rng(0).uniform(1, 9, (30, 30, 30)).astype(np.float32)
    volume = Volume(noise, np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(VolumeError, match="no brain of 800 to 2000 mL"):
        find_brain({Modality.T1: volume}, covering_grid(volume, 4.0))


def test_foreground_larger_than_any_brain_is_told() -> None:
    volume = Volume(_stripped().array, np.diag([1.4, 1.4, 1.4, 1.0]) @ affine())
    found = find_brain({Modality.T1: volume}, covering_grid(volume, 8.0))
    assert [code for code, _ in found.doubts] == ["not_stripped"]
    assert "mL of foreground" in found.doubts[0][1]


def test_stack_that_ends_inside_the_brain_counts_as_stripped() -> None:
    slab = brain(0)[:, :, 6:15]
    assert stripped_foreground(Volume(slab, affine())) is not None


def test_foreground_too_small_for_the_grid_is_no_brain() -> None:
    array = np.zeros((30, 30, 30), np.float32)
    array[15, 15, 15] = 1
    volume = Volume(array, np.eye(4))
    with pytest.raises(VolumeError, match="no voxel stands out"):
        find_brain({Modality.T1: volume}, covering_grid(volume, 4.0))


def test_box_has_its_margin_and_ends_at_the_edge() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[8:12, 1:5, 19] = True
    assert bounding_box(mask, 4.0, 2.0) == ((6, 14), (0, 7), (17, 20))
    assert bounding_box(mask, 3.0, 2.0) == ((6, 14), (0, 7), (17, 20))
    assert bounding_box(mask, 0.0, 1.0) == ((8, 12), (1, 5), (19, 20))
