"""A known movement of a made-up head is found again; what cannot be one is refused."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses
from scipy.spatial.transform import Rotation

from fedglioma.case import Modality
from fedglioma.data.fields import Grid
from fedglioma.data.harmonize import RAS_TO_LPS, to_ras, to_sitk
from fedglioma.data.phantom import render_tissue
from fedglioma.data.register import MOST_DEGREES, register
from fedglioma.data.scanner import acquire
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.data.volume import Affine, FloatArray, Volume, VolumeError

GRID = Grid.cube(72)
SITE = make_sites(["ningxia"])[0]


def head(modality: Modality, *, skull: bool, patient: int = 0) -> Volume:
    recipe = Recipe(patients=4, sites=(SITE,), size=72)
    tissue = render_tissue(recipe.sample(patient), GRID, skull=skull)
    scan = acquire(tissue, modality, SITE.scanner, 1, prepared=not skull)
    return to_ras(Volume(scan.astype(np.float32), GRID.affine()))


@pytest.fixture(scope="module")
def t1ce() -> Volume:
    return head(Modality.T1CE, skull=True)


def motion(seed: int, degrees: float, millimetres: float) -> Affine:
    """Return a movement of RAS points about the origin, near which the phantom's brain lies."""
    rng = np.random.default_rng(seed)
    axis, shift = rng.normal(size=(2, 3))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    matrix[:3, 3] = millimetres * shift / np.linalg.norm(shift)
    return matrix


def scanned_in(volume: Volume, movement: Affine) -> Volume:
    """Return the volume as a scanner would see the moved head, on the volume's own grid."""
    moved = to_sitk(Volume(volume.array, movement @ volume.affine))
    seen = sitk.Resample(moved, to_sitk(volume), sitk.Transform(), sitk.sitkBSpline, 0.0)
    array: FloatArray = np.ascontiguousarray(sitk.GetArrayFromImage(seen).T)
    return Volume(array, volume.affine)


def target_error(found: Affine, true: Affine, volume: Volume) -> float:
    """Return the mean distance in mm by which points of the head are laid wrong."""
    inside = np.argwhere(volume.array > volume.array.max() / 5)[::53]
    points = np.c_[inside, np.ones(len(inside))] @ volume.affine.T
    return float(np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean())


@pytest.mark.parametrize("modality", [Modality.T1CE, Modality.T2])
def test_known_movement_is_found_again(t1ce: Volume, modality: Modality) -> None:
    true = motion(3, 12.0, 18.0)
    moving = scanned_in(head(modality, skull=True), true)
    found = register(t1ce, moving)
    assert target_error(np.eye(4), true, t1ce) > 10
    assert target_error(found.matrix, true, t1ce) < (0.3 if modality is Modality.T1CE else 1.0)
    assert found.degrees == pytest.approx(12.0, abs=0.5)
    laid = found.moved(moving)
    assert laid.array is moving.array
    np.testing.assert_allclose(laid.affine, np.linalg.inv(true) @ moving.affine, atol=1.5)


def test_movement_maps_points_as_simpleitk_does(t1ce: Volume) -> None:
    """The affine of the moved volume says where SimpleITK's own resampling puts it."""
    found = register(t1ce, scanned_in(t1ce, motion(5, 8.0, 6.0)))
    lps = RAS_TO_LPS @ found.matrix[:3, :3] @ RAS_TO_LPS
    transform = sitk.AffineTransform(lps.ravel().tolist(), (RAS_TO_LPS @ found.matrix[:3, 3]).tolist())
    point = np.array([11.0, -23.0, 31.0])
    there = RAS_TO_LPS @ np.array(transform.TransformPoint((RAS_TO_LPS @ point).tolist()))
    np.testing.assert_allclose((found.matrix @ [*point, 1.0])[:3], there, atol=1e-9)


def test_same_volumes_give_the_same_movement(t1ce: Volume) -> None:
    moving = scanned_in(head(Modality.FLAIR, skull=True), motion(1, 5.0, 5.0))
    np.testing.assert_array_equal(register(t1ce, moving).matrix, register(t1ce, moving).matrix)


def test_stripped_brain_is_found_too() -> None:
    fixed, true = head(Modality.T1, skull=False), motion(7, 10.0, 10.0)
    moving = scanned_in(head(Modality.FLAIR, skull=False), true)
    assert target_error(register(fixed, moving).matrix, true, fixed) < 1.0


def test_head_on_its_side_is_refused_with_the_angle(t1ce: Volume) -> None:
    with pytest.raises(VolumeError, match=r"turned by \d+ degrees|did not come to an end") as caught:
        register(t1ce, scanned_in(t1ce, motion(2, MOST_DEGREES + 30, 0.0)))
    assert caught.value.code == "registration"


def test_slab_that_shows_little_of_the_head_is_refused(t1ce: Volume) -> None:
    slab = Volume(np.ascontiguousarray(t1ce.array[:, :, :12]), t1ce.affine)
    with pytest.raises(VolumeError, match=r"covers only \d+%") as caught:
        register(t1ce, slab)
    assert caught.value.code == "registration"
