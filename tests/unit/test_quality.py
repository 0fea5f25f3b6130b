import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from fedglioma.case import Modality
from fedglioma.data.harmonize import Grid
from fedglioma.data.quality import (
    Measures,
    Quality,
    Region,
    Sampled,
    contrast,
    deep_points,
    judge,
    mask_agreement,
    measure,
    shared_information,
    signal_to_noise,
    standing,
)
from fedglioma.data.volume import Volume, VolumeError


def ball(side: int, radius: float) -> np.ndarray:
    axes = np.arange(side) - (side - 1) / 2
    x, y, z = np.meshgrid(axes, axes, axes, indexing="ij", sparse=True)
    return np.asarray(x**2 + y**2 + z**2 < radius**2)


def points_in(brain: np.ndarray, spacing_mm: float = 2.0) -> np.ndarray:
    return deep_points(brain, Grid(brain.shape, (0.0, 0.0, 0.0), spacing_mm))  # type: ignore[arg-type]


def good(**changed: float | None) -> Measures:
    figures: dict[str, float | None] = {
        "snr": 30.0, "cnr": 2.0, "cjv": 0.5, "coverage": 1.0, "information": 1.05, "peak": 3.0,
        "raw": 100.0, "raw_span": 50.0, "white_raw": 120.0, "white": 0.5,
    }  # fmt: skip
    return Measures.model_validate(figures | changed)


def whole(brain_ml: float = 1400.0, agreement: float | None = None, **changed: float | None) -> Quality:
    return Quality(
        brain_ml=brain_ml,
        mask_agreement=agreement,
        modalities={Modality.T1: good(), Modality.T2: good(**changed)},
    )


@pytest.mark.parametrize("noise", [2.0, 10.0, 40.0])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.0, 5.0)])
def test_signal_to_noise_is_that_of_known_noise(noise: float, spacing: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(1)
    shape = tuple(round(120 / size) for size in spacing)
    slope = np.linspace(-20, 20, shape[0])[:, None, None]
    array = (100 + slope + generator.normal(0, noise, shape)).astype(np.float32)
    volume = Volume(array, np.diag([*spacing, 1.0]))
    assert signal_to_noise(volume, points_in(ball(60, 28))) == pytest.approx(100 / noise, rel=0.15)


def test_signal_to_noise_does_not_change_with_the_unit_of_brightness_or_the_axes() -> None:
    array = np.random.default_rng(0).normal(100, 5, (60, 60, 60)).astype(np.float32)
    points = points_in(ball(60, 28))
    turned = np.array([[0, 2.0, 0, 0], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    plain = signal_to_noise(Volume(array, np.diag([2.0, 2, 2, 1])), points)
    assert plain is not None
    assert signal_to_noise(Volume(array * 7, np.diag([2.0, 2, 2, 1])), points) == pytest.approx(
        plain, rel=1e-4
    )
    assert signal_to_noise(Volume(array, turned), points) == pytest.approx(plain, rel=0.05)


def test_images_that_were_centred_before_have_no_signal_to_count() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (40, 40, 40)).astype(np.float32)
    points = np.stack(np.meshgrid(*[np.arange(5.0, 35.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    assert signal_to_noise(Volume(image, np.eye(4)), points) is None
    assert signal_to_noise(Volume(image + 50, np.eye(4)), points) == pytest.approx(50, rel=0.05)


def test_where_there_is_too_little_to_tell_nothing_is_told() -> None:
    noisy = np.random.default_rng(0).normal(100, 5, (60, 60, 60)).astype(np.float32)
    points = points_in(ball(60, 28))
    assert signal_to_noise(Volume(noisy, np.diag([8.0, 8, 8, 1])), points) is None
    assert signal_to_noise(Volume(noisy, np.diag([2.0, 2, 2, 1])), points[:50]) is None
    assert signal_to_noise(Volume(noisy * 0 + 7, np.diag([2.0, 2, 2, 1])), points) is None
    assert contrast(np.ones(100)) is None
    assert contrast(np.array([])) is None
    region = Region.of(ball(20, 8), Grid((20, 20, 20), (0.0, 0.0, 0.0), 8.0))
    assert standing(noisy[:20, :20, :20], noisy[:20, :20, :20], region) is None


@pytest.mark.parametrize(("apart", "spread", "other"), [(40.0, 4.0, 3.0), (30.0, 4.0, 5.0), (60.0, 2.0, 9.0)])
def test_contrast_is_that_of_a_mixture(apart: float, spread: float, other: float) -> None:
    generator = np.random.default_rng(2)
    values = np.concatenate(
        [
            generator.normal(20, 3, 8_000),  # fluid: fewest
            generator.normal(100, spread, 40_000),
            generator.normal(100 + apart, other, 50_000),
        ]
    )
    found = contrast(generator.permutation(values))
    assert found is not None
    assert found[0] == pytest.approx(apart / np.hypot(spread, other), rel=0.05)
    assert found[1] == pytest.approx((spread + other) / apart, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), gain=st.floats(0.01, 1000), offset=st.floats(-100, 100))
def test_contrast_and_information_do_not_depend_on_gain_and_offset(
    seed: int, gain: float, offset: float
) -> None:
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(m, 2, 300) for m in (10, 50, 90)])
    plain, moved = contrast(values), contrast(values * gain + offset)
    assert plain is not None
    assert moved == pytest.approx(plain, rel=1e-3)
    other = values + generator.normal(0, 20, values.size)
    assert shared_information(values, other) == pytest.approx(
        shared_information(values * gain + offset, other), abs=5e-3
    )


def test_information_is_that_of_scikit_learn_on_the_same_bins() -> None:
    generator = np.random.default_rng(3)
    first = generator.integers(0, 48, 30_000)
    second = (first + generator.integers(0, 9, 30_000)) % 48
    # With as many values in every bin the percentiles cut nothing off, so that bins are the values.
    mutual, entropy = mutual_info_score(first, second), [mutual_info_score(v, v) for v in (first, second)]
    expected = sum(entropy) / (sum(entropy) - mutual)
    assert shared_information(first, second) == pytest.approx(expected, rel=0.01)
    assert shared_information(first, first) == pytest.approx(2)
    assert shared_information(first, generator.permutation(second)) == pytest.approx(1, abs=0.02)


def smooth(seed: int, brain: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, brain.shape), 2.0)
    return np.where(brain, field / field.std(), np.nan).astype(np.float32)


def test_a_sequence_in_its_place_stands_out_and_one_beside_it_does_not() -> None:
    brain = ball(60, 27)
    region = Region.of(brain, Grid((60, 60, 60), (0.0, 0.0, 0.0), 2.0))
    first = smooth(0, brain)
    in_place = standing(first, -first + 0.3 * smooth(9, brain), region)
    other = standing(first, smooth(1, brain), region)
    shifted = standing(first, np.roll(-first, 4, axis=0), region)
    assert in_place is not None
    assert other is not None
    assert shifted is not None
    assert in_place[1] > 5 > 1.3 > other[1]
    assert shifted[1] < 1


def test_agreement_of_masks_is_the_least_overlap() -> None:
    values = np.zeros(100, np.float32)
    masks = [np.arange(100) < n for n in (100, 80, 50)]
    samples = {
        m: Sampled(values, values, values, own) for m, own in zip(Modality, [*masks, None], strict=True)
    }
    assert mask_agreement(samples) == pytest.approx(2 * 50 / 150)
    assert mask_agreement({Modality.T2: samples[Modality.T2]}) is None


def test_all_figures_of_a_case() -> None:
    brain = ball(60, 27)
    grid = Grid((60, 60, 60), (0.0, 0.0, 0.0), 2.0)
    region = Region.of(brain, grid)
    images, samples, volumes = {}, {}, {}
    for seed, modality in enumerate((Modality.T1, Modality.T2)):
        image = 100 + 10 * smooth(seed, brain)
        image[:, :, :20] = np.nan if modality == Modality.T2 else image[:, :, :20]
        images[modality] = image
        volumes[modality] = Volume(np.nan_to_num(image), grid.affine)
        at = image.ravel()[region.sampled]
        samples[modality] = Sampled(at, at, (at - 100) / 10)
    found = measure(volumes, images, samples, Modality.T1, region)
    assert found.brain_ml == pytest.approx(4 / 3 * np.pi * 54**3 / 1000, rel=0.02)
    first, second = found.modalities[Modality.T1], found.modalities[Modality.T2]
    assert (first.coverage, first.information, first.peak) == (1, None, None)
    seen = np.isfinite(images[Modality.T2])[brain].mean()
    assert second.coverage == pytest.approx(seen, abs=0.01)
    assert first.raw == pytest.approx(np.median(images[Modality.T1][brain]), rel=0.01)
    assert first.white_raw is not None
    assert first.white == pytest.approx((first.white_raw - 100) / 10, abs=1e-3)
    assert first.white_raw > first.raw
    nothing = np.full_like(samples[Modality.T2].raw, np.nan)
    samples[Modality.T2] = Sampled(nothing, nothing, nothing)
    with pytest.raises(VolumeError, match="t2: hardly a voxel"):
        measure(volumes, images, samples, Modality.T1, region)


@pytest.mark.parametrize(
    ("quality", "code", "certain"),
    [
        (whole(snr=6.0), "noise", False),
        (whole(snr=3.9), "noise", True),
        (whole(peak=1.5), "misaligned", False),
        (whole(peak=1.0), "misaligned", True),
        (whole(brain_ml=850), "brain_volume", False),
        (whole(brain_ml=650), "brain_volume", True),
        (whole(brain_ml=2300), "brain_volume", True),
        (whole(agreement=0.8), "masks_differ", False),
    ],
)
def test_a_figure_beyond_its_limit_is_told(quality: Quality, code: str, certain: bool) -> None:
    (doubt,) = judge(quality, whole_head=False)
    assert (doubt.code, doubt.certain) == (code, certain)


def test_good_figures_and_unmeasured_ones_raise_no_doubt() -> None:
    assert judge(whole(), whole_head=False) == ()
    nothing = good(snr=None, cnr=None, cjv=None, information=None, peak=None, white_raw=None, white=None)
    assert (
        judge(Quality(brain_ml=1400, mask_agreement=None, modalities={Modality.T1: nothing}), whole_head=True)
        == ()
    )


def test_of_a_head_with_its_skull_the_volume_excludes_nobody() -> None:
    (doubt,) = judge(whole(brain_ml=2600), whole_head=True)
    assert not doubt.certain


def test_the_worst_is_told_first() -> None:
    doubts = judge(whole(brain_ml=850, peak=1.0), whole_head=False)
    assert [doubt.certain for doubt in doubts] == [True, False]
