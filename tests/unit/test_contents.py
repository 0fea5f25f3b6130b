"""Names held against what the images show, on made-up heads and on real gliomas."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fedglioma.case import Modality
from fedglioma.data.contents import check_contents
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.data.volume import FloatArray, read_volume

REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "glioma").is_dir(),
    reason="FEDGLIOMA_REAL_DATA names no folder of real cases",
)
SIZE = 64
SPACING_MM = 176 / SIZE
T1, T1CE, T2, FLAIR = Modality.T1, Modality.T1CE, Modality.T2, Modality.FLAIR


@cache
def complete(count: int = 4) -> tuple[tuple[Mapping[Modality, FloatArray], np.ndarray], ...]:
    """Made-up patients with all four sequences."""
    recipe = Recipe(24, make_sites(("ningxia", "zhengzhou", "henan")), size=SIZE)
    found = []
    for number in range(24):
        if len(recipe.site_of(number).draw_present(recipe.sample(number).seed)) == 4:
            one = recipe.draw(number)
            found.append(({m: a.astype(np.float32) for m, a in one.images.items()}, one.brain))
        if len(found) == count:
            break
    return tuple(found)


def codes(images: Mapping[Modality, FloatArray], brain: np.ndarray) -> list[tuple[str, bool]]:
    return [(doubt.code, doubt.certain) for doubt in check_contents(images, brain, SPACING_MM)]


def test_right_names_raise_no_doubt() -> None:
    assert len(complete()) == 4
    for images, brain in complete():
        assert codes(images, brain) == []
        for missing in Modality:
            assert codes({m: a for m, a in images.items() if m is not missing}, brain) == []


def test_exchanged_t2_and_flair_are_certain() -> None:
    for images, brain in complete():
        assert codes({**images, T2: images[FLAIR], FLAIR: images[T2]}, brain) == [("t2_flair", True)]


def test_two_flairs_or_two_t2_are_found() -> None:
    for images, brain in complete():
        assert ("same_contents", True) in codes({**images, T2: images[FLAIR]}, brain)
        assert ("same_contents", True) in codes({**images, FLAIR: images[T2] * 2 + 7}, brain)
        assert codes({T1: images[T1], FLAIR: images[T2]}, brain) == [("flair_like_t2", False)]
        assert codes({T1: images[T1], T2: images[FLAIR]}, brain) == [("t2_like_t1", False)]


def test_a_copy_of_t1_offered_as_t1ce_is_found() -> None:
    for images, brain in complete():
        assert ("same_contents", True) in codes({**images, T1CE: images[T1] * 1.3}, brain)


def test_t2_offered_as_t1ce_is_found() -> None:
    for images, brain in complete():
        assert ("not_t1", False) in codes({T1: images[T1], T1CE: images[T2]}, brain)


def test_exchanged_t1_and_t1ce_are_often_found_where_the_tumour_enhances() -> None:
    found = [codes({**i, T1: i[T1CE], T1CE: i[T1]}, brain) == [("t1_t1ce", False)] for i, brain in complete()]
    assert any(found)


def test_voxels_not_seen_are_left_out_and_too_few_say_nothing() -> None:
    images, brain = complete()[0]
    holes = {**images, T2: np.where(np.indices(brain.shape)[2] % 3 == 0, np.float32(np.nan), images[T2])}
    assert codes(holes, brain) == []
    assert codes({**images, T2: images[FLAIR]}, brain & (np.indices(brain.shape)[0] == 32)) == []
    assert codes({}, brain) == []


def test_a_constant_image_does_no_harm() -> None:
    images, brain = complete()[0]
    check_contents({**images, T2: np.ones_like(images[T2])}, brain, SPACING_MM)


def real(name: str, folder: str = "glioma") -> tuple[dict[Modality, FloatArray], np.ndarray, float]:
    files = {m: Path(REAL or "", folder, name, f"{name}_{m}.nii.gz") for m in Modality}
    volumes = {m: read_volume(path) for m, path in files.items() if path.is_file()}
    images = {m: volume.array for m, volume in volumes.items()}
    brain = np.all([array != array[0, 0, 0] for array in images.values()], axis=0)
    return images, brain, next(iter(volumes.values())).spacing[0]


@needs_real_data
@pytest.mark.parametrize("name", ["BraTS2021_01476", "BraTS2021_01480", "UPENN-GBM-00086"])
def test_real_gliomas_are_what_they_are_called(name: str) -> None:
    images, brain, spacing = real(name)
    assert check_contents(images, brain, spacing) == ()


@needs_real_data
def test_a_real_exchange_of_t2_and_flair_is_found() -> None:
    images, brain, spacing = real("BraTS2021_01480")
    exchanged = {**images, T2: images[FLAIR], FLAIR: images[T2]}
    assert [doubt.code for doubt in check_contents(exchanged, brain, spacing)] == ["t2_flair"]
