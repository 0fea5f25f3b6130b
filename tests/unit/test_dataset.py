from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import UNKNOWN, Case, Genotype
from fedglioma.data.augment import Augmentation
from fedglioma.data.dataset import CaseDataset, crop_at
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError

PRESENT = (True, False, True, True)


def prepared(
    folder: Path, shape: tuple[int, int, int], number: int = 0, *, outlined: bool = False
) -> PreparedCase:
    volume = np.random.default_rng(number).normal(size=(4, *shape)).astype(np.float16)
    volume[1] = 0
    path = folder / f"{number}.npy"
    np.save(path, volume)
    case = Case(patient=f"p{number}", site="a", volumes={}, genotype=Genotype(idh=1, codel_1p19q=0))
    mask = None
    if outlined:  # where the first channel is above 1, labels 1 to 3
        mask = folder / f"{number}_mask.npy"
        np.save(mask, np.where(volume[0] > 1, 1 + np.arange(shape[2]) % 3, 0).astype(np.uint8))
    return PreparedCase(case=case, array=path, present=PRESENT, digest=str(number), percentiles={}, mask=mask)


def centred(volume: np.ndarray, crop: int) -> np.ndarray:
    """The centre cube, by padding generously first: another way round than the code."""
    wide = np.pad(volume, [(0, 0)] + [(crop, crop)] * 3).astype(np.float32)
    starts = [crop + (size - crop) // 2 for size in volume.shape[1:]]
    return wide[:, *(slice(start, start + crop) for start in starts)]


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 9), st.integers(0, 99))
def test_crop_is_the_same_window_of_the_padded_volume(shape: tuple[int, ...], crop: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    volume = generator.normal(size=(4, *shape)).astype(np.float16)
    starts = [int(generator.integers(-crop + 1, size)) for size in shape]
    wide = np.pad(volume, [(0, 0)] + [(crop, crop)] * 3).astype(np.float32)
    expected = wide[:, *(slice(crop + start, 2 * crop + start) for start in starts)]
    assert np.array_equal(crop_at(volume, starts, (crop,) * 3), expected)


@pytest.mark.parametrize("shape", [(8, 8, 8), (12, 9, 8), (5, 3, 4), (20, 3, 8)])
def test_evaluation_takes_the_centre_and_pads_evenly(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    case = prepared(tmp_path, shape)
    sample = CaseDataset([case], 8, Augmentation(), seed=1)[0]
    assert np.array_equal(sample.image.numpy(), centred(np.load(case.array), 8))


def test_sample_holds_image_presence_and_genotype(tmp_path: Path) -> None:
    sample = CaseDataset([prepared(tmp_path, (10, 10, 10))], 8)[0]
    assert (sample.image.dtype, sample.image.shape) == (torch.float32, (4, 8, 8, 8))
    assert sample.image.is_contiguous()
    assert (sample.present.dtype, sample.present.tolist()) == (torch.float32, [1, 0, 1, 1])
    assert (sample.genotype.dtype, sample.genotype.tolist()) == (torch.int64, [1, -1, 0])


def test_training_sample_is_decided_by_seed_epoch_and_index(tmp_path: Path) -> None:
    cases = [prepared(tmp_path, (40, 40, 40)), prepared(tmp_path, (40, 40, 40))]
    augment = Augmentation(scale=0.1, shift=0.1)

    def image(seed: int, index: int, epoch: int) -> torch.Tensor:
        return CaseDataset(cases, 8, augment, seed).training_sample(index, epoch).image

    assert torch.equal(image(1, 0, 5), image(1, 0, 5))
    others = [image(2, 0, 5), image(1, 1, 5), image(1, 0, 6)]
    assert not any(torch.equal(image(1, 0, 5), other) for other in others)


def test_training_crops_lie_anywhere_inside_the_volume(tmp_path: Path) -> None:
    case = prepared(tmp_path, (10, 8, 6))
    dataset = CaseDataset([case], 8)
    volume = np.load(case.array).astype(np.float32)
    seen = set()
    for epoch in range(30):
        image = dataset.training_sample(0, epoch).image.numpy()
        start = next(s for s in range(3) if np.array_equal(image[..., 1:7], volume[:, s : s + 8]))
        assert not image[..., [0, 7]].any()
        seen.add(start)
    assert seen == {0, 1, 2}


def test_mirroring_keeps_the_values(tmp_path: Path) -> None:
    case = prepared(tmp_path, (8, 8, 8))
    always = CaseDataset([case], 8, Augmentation(flip=1)).training_sample(0, 0).image
    assert torch.equal(always, CaseDataset([case], 8)[0].image.flip((1, 2, 3)))


def test_absent_modality_stays_zero_under_augmentation(tmp_path: Path) -> None:
    dataset = CaseDataset([prepared(tmp_path, (6, 12, 8))], 8, Augmentation(scale=0.5, shift=5))
    for epoch in range(5):
        image = dataset.training_sample(0, epoch).image
        assert not image[1].any()
        assert not image[:, [0, 7]].any()  # padding


def test_changing_a_sample_does_not_change_the_cache(tmp_path: Path) -> None:
    dataset = CaseDataset([prepared(tmp_path, (8, 8, 8))], 8)
    dataset[0].image.zero_()
    assert dataset[0].image.any()


def test_dataset_counts_its_cases(tmp_path: Path) -> None:
    assert len(CaseDataset([prepared(tmp_path, (8, 8, 8))] * 3, 8)) == 3
    assert len(CaseDataset([], 8)) == 0


@pytest.mark.parametrize(("crop", "seed"), [(0, 0), (8, -1)])
def test_impossible_settings_are_refused(crop: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="at least"):
        CaseDataset([], crop, None, seed)


def test_volume_that_is_gone_or_damaged_is_told_in_one_line(tmp_path: Path) -> None:
    case = prepared(tmp_path, (8, 8, 8))
    whole = case.array.read_bytes()
    np.save(tmp_path / "other.npy", np.zeros((3, 8, 8, 8), np.float16))
    np.savez(tmp_path / "zip.npz", whole=np.zeros(3))
    other, archive = ((tmp_path / name).read_bytes() for name in ("other.npy", "zip.npz"))
    for content in (whole[:-100], b"", b"junk", other, archive):
        case.array.write_bytes(content)
        with pytest.raises(DataError, match=r"0\.npy: .*prepare it again") as caught:
            CaseDataset([case], 8)[0]
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    case.array.unlink()
    with pytest.raises(DataError, match="FileNotFoundError"):
        CaseDataset([case], 8).training_sample(0, 0)


def test_mask_is_the_whole_tumour_where_the_image_is(tmp_path: Path) -> None:
    """Crops, padding, flips and translations: what was outlined stays on what it was outlined by."""
    case = prepared(tmp_path, (12, 6, 9), outlined=True)
    strong = Augmentation(shift_voxels=3, shift_p=0.8, one_flip_p=0.8)
    dataset = CaseDataset([case], 8, strong, seed=4, masks="whole")
    for sample in (dataset[0], *(dataset.training_sample(0, epoch) for epoch in range(20))):
        assert sample.mask is not None
        assert (sample.mask.dtype, sample.mask.shape) == (torch.int8, (8, 8, 8))
        assert torch.equal(sample.mask, (sample.image[0] > 1).to(torch.int8))


def test_case_that_nobody_outlined_has_an_unknown_mask(tmp_path: Path) -> None:
    dataset = CaseDataset([prepared(tmp_path, (6, 12, 8))], 8, Augmentation(shift_voxels=2), masks="whole")
    for sample in (dataset[0], dataset.training_sample(0, 0)):
        assert sample.mask is not None
        assert (sample.mask == UNKNOWN).all()


def test_masks_are_not_read_where_nobody_asks(tmp_path: Path) -> None:
    case = prepared(tmp_path, (8, 8, 8), outlined=True)
    assert case.mask is not None
    case.mask.unlink()
    dataset = CaseDataset([case], 8)
    assert dataset[0].mask is None
    assert dataset.training_sample(0, 0).mask is None


def test_random_masks_are_fair_coins_that_leave_crops_and_flips_alone(tmp_path: Path) -> None:
    cases = [prepared(tmp_path, (20, 20, 20), number, outlined=number == 0) for number in range(2)]
    real, random = (CaseDataset(cases, 16, Augmentation(), 3, masks=m) for m in ("whole", "random"))
    for index in range(2):
        one, again, other = (random.training_sample(index, epoch).mask for epoch in (0, 0, 1))
        assert one is not None
        assert again is not None
        assert other is not None
        assert set(one.unique().tolist()) == {0, 1}
        assert abs(one.float().mean().item() - 0.5) < 4 * 0.5 / 16**1.5  # four standard errors
        assert torch.equal(one, again)
        assert (one != other).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert torch.equal(random.training_sample(index, 1).image, real.training_sample(index, 1).image)
        shown, known = random[index].mask, real[index].mask
        assert shown is not None
        assert known is not None
        assert torch.equal(shown, known)


def test_mask_that_is_gone_or_of_another_shape_is_told_in_one_line(tmp_path: Path) -> None:
    case = prepared(tmp_path, (8, 8, 8), outlined=True)
    assert case.mask is not None
    dataset = CaseDataset([case], 8, masks="whole")
    np.save(case.mask, np.zeros((8, 8, 7), np.uint8))
    with pytest.raises(DataError, match=r"^0_mask\.npy: not a prepared mask .*prepare it again"):
        dataset[0]
    case.mask.unlink()
    with pytest.raises(DataError, match=r"^0_mask\.npy: the prepared mask cannot be read"):
        dataset.training_sample(0, 0)


def test_seeds_from_before_there_were_masks_give_the_same_crops_and_flips(tmp_path: Path) -> None:
    """Numbers of numpy's generator, drawn as that version drew them: starts, flips, scale, shift."""
    case = prepared(tmp_path, (20, 12, 8))
    dataset = CaseDataset([case], 8, Augmentation(scale=0.1, shift=0.2), seed=7)
    for epoch in range(5):
        generator = np.random.default_rng([1, 7, epoch, 0])
        starts = [int(generator.integers(13)), int(generator.integers(5)), 0]
        axes = [axis + 1 for axis in range(3) if generator.random() < 0.5]
        scale, shift = 1 + 0.1 * generator.uniform(-1, 1, 4), 0.2 * generator.uniform(-1, 1, 4)
        image = np.load(case.array)[:, *(slice(s, s + 8) for s in starts)].astype(np.float32)
        image = np.flip(image, axes)
        expected = image * scale[:, None, None, None] + shift[:, None, None, None] * (image != 0)
        np.testing.assert_allclose(dataset.training_sample(0, epoch).image, expected, atol=1e-5)
