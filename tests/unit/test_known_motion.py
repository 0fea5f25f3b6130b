"""The geometry benchmark at small size: movements that its own sampler made, by scipy, are found again."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedglioma.case import Modality
from fedglioma.data.fields import Grid
from fedglioma.data.harmonize import to_ras
from fedglioma.data.phantom import render_tissue
from fedglioma.data.register import register
from fedglioma.data.scanner import acquire
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.data.volume import Volume, read_volume

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
GRID = Grid.cube(72)


def benchmark(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def motion() -> Any:
    return benchmark("motion")


@pytest.fixture(scope="module")
def geometry() -> Any:
    return benchmark("geometry")


@pytest.fixture(scope="module")
def heads(motion: Any) -> dict[Modality, Any]:
    """A made-up whole head at 2.4 mm."""
    site = make_sites(["zhengzhou"])[0]
    recipe = Recipe(patients=1, sites=(site,), size=72, skull=True)
    tissue = render_tissue(recipe.sample(0), GRID, skull=True)
    brain = to_ras(Volume(tissue.whole(tissue.brain_voxels()).astype(np.float32), GRID.affine())).array > 0
    scans = {}
    for modality in (Modality.T1, Modality.T2):
        levels = acquire(tissue, modality, site.scanner, 3, prepared=False)
        volume = to_ras(Volume(levels.astype(np.float32), GRID.affine()))
        scans[modality] = motion.Scan(volume, brain)
    return scans


def test_view_shows_a_voxel_where_the_movement_put_it(motion: Any) -> None:
    """A bright cube's middle, in mm, travels with the movement; the view's own corner does not matter."""
    array = np.zeros((48, 52, 40), np.float32)
    array[20:25, 30:35, 15:20] = 1000
    volume = Volume(array, np.diag([2.0, 1.5, 2.5, 1.0]))
    brain = array > 0
    rng = np.random.default_rng(1)
    scan = motion.Scan(volume, brain)
    movement = motion.draw_movement(rng, scan.centre)
    for slices_mm in (None, 5.0):
        seen = motion.taken(scan, movement, rng, slices_mm)
        weights = seen.array[seen.array > 0]
        index = np.argwhere(seen.array > 0)
        middle = (weights[:, None] * index).sum(axis=0) / weights.sum()
        there = (seen.affine @ [*middle, 1.0])[:3]
        np.testing.assert_allclose(there, (movement @ [*scan.centre, 1.0])[:3], atol=0.8)
        if slices_mm:
            assert seen.spacing == pytest.approx((2.0, 1.5, slices_mm))


def test_movements_keep_lengths_and_stay_in_their_range(motion: Any) -> None:
    centre = np.array([3.0, -20.0, 41.0])
    for seed in range(50):
        matrix = motion.draw_movement(np.random.default_rng(seed), centre)
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix[:3, :3]) > 0
        assert np.linalg.norm((matrix @ [*centre, 1.0])[:3] - centre) <= motion.MOST_MM
        cosine = (np.trace(matrix[:3, :3]) - 1) / 2
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) <= motion.MOST_DEGREES + 1e-6


def test_movement_between_thick_slices_across_sequences_is_found_again(
    motion: Any, heads: dict[Modality, Any]
) -> None:
    rng = np.random.default_rng(9)
    fixed, moving = heads[Modality.T1], heads[Modality.T2]
    movement = motion.draw_movement(rng, fixed.centre)
    found = register(motion.taken(fixed, np.eye(4), rng, 5.0), motion.taken(moving, movement, rng, 5.0))
    assert motion.target_error(np.eye(4), movement, fixed) > 15
    assert motion.target_error(found.matrix, movement, fixed) < 1.0


@pytest.mark.skipif(not REAL, reason="FEDGLIOMA_REAL_DATA names no folder of real cases")
def test_movement_of_a_real_brain_is_found_again(motion: Any) -> None:
    scans = []
    for modality in (Modality.T1CE, Modality.FLAIR):
        found = sorted(Path(str(REAL)).glob(f"glioma/BraTS2021_0147*/*_{modality}.nii.gz"))
        if not found:
            pytest.skip("FEDGLIOMA_REAL_DATA has no co-registered case")
        volume = to_ras(read_volume(found[0]))
        scans.append(motion.Scan(volume, volume.array != 0))
    rng = np.random.default_rng(9)
    movement = motion.draw_movement(rng, scans[0].centre)
    moved = register(motion.taken(scans[0], np.eye(4), rng), motion.taken(scans[1], movement, rng))
    assert motion.target_error(np.eye(4), movement, scans[0]) > 15
    assert motion.target_error(moved.matrix, movement, scans[0]) < 1.0


def test_row_tells_good_refused_and_silently_wrong_apart(geometry: Any) -> None:
    pair = (Modality.T1, Modality.T1)
    trials = [geometry.Trial(pair, error, 2.0) for error in (0.1, 0.2, 0.4, 7.0, None)]
    cells = [cell.strip() for cell in geometry.row(geometry.KINDS[0], trials).split("|")[1:-1]]
    assert cells[1:3] == ["0.3", "2 of 5 (40%)"]
    assert cells[5:] == ["7.00", "1", "1", "2.0"]
