"""The brain of a made-up head is found by shape; what is no head has none."""

import numpy as np
import pytest

from fedglioma.case import Modality
from fedglioma.data.fields import Grid
from fedglioma.data.harmonize import covering_grid, resample, to_ras
from fedglioma.data.phantom import render_tissue
from fedglioma.data.scanner import acquire
from fedglioma.data.strip import WORKING_MM, strip_skull
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.data.volume import Volume, VolumeError

GRID = Grid.cube(72)
SITE = make_sites(["zhengzhou"])[0]


@pytest.mark.parametrize("modalities", [(Modality.FLAIR, Modality.T2), (Modality.T2,)])
def test_brain_of_a_whole_head_is_found(modalities: tuple[Modality, ...]) -> None:
    """To a Dice coefficient of at least 0.93."""
    tissue = render_tissue(Recipe(patients=1, sites=(SITE,), size=72).sample(0), GRID, skull=True)

    def ras(array: np.ndarray) -> Volume:
        return to_ras(Volume(array.astype(np.float32), GRID.affine()))

    truth = ras(tissue.whole(tissue.brain_voxels()))
    working = covering_grid(truth, WORKING_MM)
    heads = {
        modality: resample(ras(acquire(tissue, modality, SITE.scanner, 1, prepared=False)), working)
        for modality in modalities
    }
    real, found = resample(truth, working) > 0.5, strip_skull(heads)
    assert 2 * (found & real).sum() / (found.sum() + real.sum()) > 0.93


@pytest.mark.parametrize("what", ["noise", "nothing", "not acquired"])
def test_what_is_no_head_has_no_brain(what: str) -> None:
    image = {
        "noise": np.random.default_rng(0).uniform(1, 9, (40, 40, 40)),
        "nothing": np.zeros((40, 40, 40)),
        "not acquired": np.full((40, 40, 40), np.nan),
    }[what]
    with pytest.raises(VolumeError, match="no brain of 800 to 2000 mL") as caught:
        strip_skull({Modality.T1: image.astype(np.float32)})
    assert caught.value.code == "no_brain"
