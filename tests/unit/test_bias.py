"""A known smooth field is taken away; what is no field stays."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedglioma.case import Modality
from fedglioma.data.anatomy import Label
from fedglioma.data.bias import correct_bias
from fedglioma.data.fields import Grid
from fedglioma.data.phantom import Tissue, render_tissue
from fedglioma.data.scanner import shading, signal
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites

GRID = Grid.cube(88)
SITE = make_sites(["ningxia"])[0]
SPACING_MM = 2.0


@pytest.fixture(scope="module")
def tissue() -> Tissue:
    return render_tissue(Recipe(patients=1, sites=(SITE,), size=88).sample(0), GRID)


def variation(values: NDArray[np.float32]) -> float:
    """Return the coefficient of variation."""
    return float(values.std() / values.mean())


@pytest.mark.parametrize(("modality", "least"), [(Modality.T1, 0.8), (Modality.FLAIR, 0.7)])
def test_variation_of_a_known_field_in_white_matter_falls(
    tissue: Tissue, modality: Modality, least: float
) -> None:
    brain = tissue.brain_voxels()
    white = (tissue.voxels(tissue.labels == Label.WHITE) > 0.99) & brain & (tissue.mask_voxels() == 0)
    clean = tissue.voxels(signal(tissue, modality, SITE.scanner)) * 1000
    field = shading(np.random.default_rng(4), tissue.voxel_axes(), 0.4)
    corrected = correct_bias(clean * field, brain, SPACING_MM)
    left = corrected[white] / correct_bias(clean, brain, SPACING_MM)[white]
    assert variation(field[white]) > 0.05
    assert variation(left) < (1 - least) * variation(field[white])


def test_brightness_stays_and_so_does_what_is_missing(tissue: Tissue) -> None:
    brain = tissue.brain_voxels()
    image = tissue.voxels(signal(tissue, Modality.T1, SITE.scanner)) * 1000
    image[:, :, :3] = np.nan
    corrected = correct_bias(image, brain, SPACING_MM)
    np.testing.assert_array_equal(np.isnan(corrected), np.isnan(image))
    used = brain & np.isfinite(image)
    assert corrected[used].mean() == pytest.approx(image[used].mean(), rel=0.05)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_image_without_a_positive_voxel_is_left_as_it_is(value: float) -> None:
    image = np.full((8, 8, 8), value, np.float32)
    np.testing.assert_array_equal(correct_bias(image, np.ones(image.shape, bool), 1.0), image)
