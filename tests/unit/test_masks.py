"""The expert's tumour mask stays on its tumour: through boxes, stretching and the registration of images."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import CHANNELS, Case, Modality
from fedglioma.config.run import RunConfig
from fedglioma.data import masks
from fedglioma.data.cache import Cache, Moved, Placed, Record
from fedglioma.data.cache_identity import check_cache
from fedglioma.data.cohort import read_cohort
from fedglioma.data.frame import stretched
from fedglioma.data.masks import labels_in
from fedglioma.data.plan import SimulationPlan
from fedglioma.data.prepare import Prepared, PrepareSettings, prepare_cases
from fedglioma.data.standardize import on_scale
from fedglioma.data.volume import Volume, VolumeError
from fedglioma.scale import Scale
from fedglioma_server.samerun import data_digest
from tests.bad_cohorts import SHAPE, affine, brain, write_cohort, write_volume
from tests.unit.test_register import GRID, head, motion, scanned_in

SETTINGS = PrepareSettings(spacing_mm=8.0, correct_bias=False)
IDENTITY = tuple(map(tuple, np.eye(4).tolist()))
REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "glioma").is_dir(),
    reason="FEDGLIOMA_REAL_DATA names no folder of real cases",
)
Array = np.ndarray


def rows(matrix: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, np.asarray(matrix, float).tolist()))


def record(
    target: Array, grids: dict[Modality, Volume], movements: dict[Modality, Array] | None = None
) -> Record:
    """A record of an array whose voxels lie as ``target`` says."""
    still = {"degrees": 0, "millimetres": 0, "information": 1, "overlap": 1}
    return Record(
        present=(True, True, False, False),
        spacing_mm=1.0,
        affine=rows(target),
        box=((0, 1), (0, 1), (0, 1)),
        inputs={},
        settings={},
        percentiles={},
        reference=Modality.T1CE,
        grids={modality: Placed.of(volume) for modality, volume in grids.items()},
        movements={m: Moved(matrix=rows(matrix), **still) for m, matrix in (movements or {}).items()},
    )


def moved_by(*millimetres: float) -> Array:
    matrix = np.eye(4)
    matrix[:3, 3] = millimetres
    return matrix


def dice(one: Array, other: Array) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def everywhere(*shape: int) -> Array:
    return np.ones(shape, bool)


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(-6, 6)] * 3), st.integers(0, 999))
def test_mask_is_cut_where_the_image_is(start: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 4, (9, 8, 7)).astype(np.float32)
    volume = Volume(drawn, moved_by(-3, 20, 7))
    wide = np.pad(drawn, 9)
    expected = wide[tuple(slice(9 + s, 9 + s + n) for s, n in zip(start, (8, 9, 6), strict=True))]
    brain_here = np.ones((8, 9, 6), bool)
    target = volume.affine @ moved_by(*start)
    inside = np.count_nonzero(expected) / np.count_nonzero(drawn)
    told = record(target, {Modality.FLAIR: volume})
    if abs(inside - masks.LEAST_INSIDE) < 1e-9:
        return
    if inside < masks.LEAST_INSIDE:
        with pytest.raises(VolumeError, match=f"{1 - inside:.0%} of the tumour lies outside the brain"):
            labels_in(volume, told, brain_here)
    else:
        found = labels_in(volume, told, brain_here)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=15)
@given(
    st.tuples(st.floats(14, 26), st.floats(18, 30), st.floats(14, 20)),
    st.floats(8, 12),
    st.integers(32, 64),
)
def test_stretched_mask_agrees_with_the_ball_that_was_outlined(
    centre: tuple[float, float, float], radius: float, edge: int
) -> None:
    """The truth is the ball itself, asked at the stretched voxels' places."""
    shape, own = (40, 50, 36), moved_by(-20, -25, 5)

    def ball(matrix: Array, size: tuple[int, ...]) -> Array:
        index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        points = index @ matrix[:3, :3].T + matrix[:3, 3] - own[:3, 3]
        return np.asarray(((points - centre) ** 2).sum(-1) < radius**2)

    drawn = Volume(ball(own, shape).astype(np.float32), own)
    _, target = stretched(np.random.default_rng(0).random((1, *shape)).astype(np.float16), own, edge)
    found = labels_in(drawn, record(target, {Modality.FLAIR: drawn}), everywhere(edge, edge, edge)) > 0
    assert dice(found, ball(target, (edge,) * 3)) > 0.9


def test_mask_moves_with_the_image_that_it_was_drawn_on() -> None:
    """FLAIR was moved by (2, -1, 3) mm against the reference: its points lie so much too far."""
    drawn = np.zeros((12, 12, 12), np.float32)
    drawn[5:8, 5:8, 5:8] = 2
    flair, t1ce = Volume(drawn, np.eye(4)), Volume(drawn, moved_by(0.5, 0, 0))
    told = record(
        np.eye(4),
        {Modality.FLAIR: flair, Modality.T1CE: t1ce},
        {Modality.FLAIR: moved_by(2, -1, 3)},
    )
    expected = np.zeros((12, 12, 12), np.uint8)
    expected[3:6, 6:9, 2:5] = 2
    np.testing.assert_array_equal(labels_in(flair, told, everywhere(12, 12, 12)), expected)


def test_image_that_was_not_moved_decides_between_two_on_the_masks_grid() -> None:
    drawn = np.zeros((12, 12, 12), np.float32)
    drawn[5:8, 5:8, 5:8] = 1
    volume = Volume(drawn, np.eye(4))
    told = record(
        np.eye(4),
        {Modality.FLAIR: volume, Modality.T1CE: volume},
        {Modality.FLAIR: moved_by(2, -1, 3)},
    )
    np.testing.assert_array_equal(labels_in(volume, told, everywhere(12, 12, 12)), drawn)


def test_grids_that_headers_round_differently_are_one() -> None:
    drawn = np.zeros((100, 100, 100), np.float32)
    drawn[50:60, 50:60, 50:60] = 1
    rounded = moved_by(0.04, -0.03, 0.02)
    told = record(np.eye(4), {Modality.FLAIR: Volume(drawn, np.eye(4))})
    found = labels_in(Volume(drawn, rounded), told, everywhere(100, 100, 100))
    np.testing.assert_array_equal(found, drawn)
    with pytest.raises(VolumeError, match="none of the patient's images"):
        labels_in(Volume(drawn, moved_by(0.5, 0, 0)), told, everywhere(100, 100, 100))


@pytest.mark.parametrize(
    ("drawn", "kept"),
    [
        ([0, 1, 2, 4], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 1], [0, 1]),
        ([0, 4.0002, 0.9998], [0, 3, 1]),
    ],
)
def test_labels_of_every_year_become_those_of_2023(drawn: list[float], kept: list[int]) -> None:
    values = np.resize(np.array(drawn, np.float32), (4, 4, 4))
    volume = Volume(values, np.eye(4))
    found = labels_in(volume, record(np.eye(4), {Modality.T1CE: volume}), everywhere(4, 4, 4))
    np.testing.assert_array_equal(found, np.resize(np.array(kept), (4, 4, 4)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort")
    for number in (1, 2):
        write_mask(tmp_path / "cohort", f"P{number}", tumour())
    return tmp_path / "cohort"


def tumour() -> Array:
    labels = np.zeros(SHAPE, np.uint8)
    labels[9:13, 12:17, 8:12] = 2
    labels[10:12, 13:16, 9:11] = 4
    return labels


def write_mask(folder: Path, patient: str, labels: Array, matrix: Array | None = None) -> None:
    write_volume(folder / patient / f"{patient}_seg.nii.gz", labels, matrix)


def prepare(folder: Path, settings: PrepareSettings = SETTINGS, workers: int = 1) -> Prepared:
    cache = Cache(folder.parent / "cache")
    return prepare_cases(read_cohort(folder).cases, settings, cache, workers=workers)


def test_mask_lies_on_the_prepared_array_voxel_by_voxel(folder: Path) -> None:
    done = prepare(folder)
    inside = brain(0) > 0
    box = tuple(slice(max(int(i.min()) - 1, 0), int(i.max()) + 2) for i in np.nonzero(inside))
    first, second, third = done.cases
    assert first.mask is not None
    labels = np.load(first.mask, allow_pickle=False)
    assert labels.shape == np.load(first.array).shape[1:]
    np.testing.assert_array_equal(labels, np.where(tumour() == 4, 3, tumour())[box])
    assert first.mask_digest == hashlib.sha256(first.mask.read_bytes()).hexdigest()
    assert second.mask is not None
    assert (third.mask, third.mask_digest, third.case.mask) == (None, None, None)
    assert not done.warnings


def test_mask_is_stored_as_a_hospital_stores_it_in_any_orientation(folder: Path) -> None:
    first = prepare(folder).cases[0]
    path = folder / "P1" / "P1_seg.nii.gz"
    turned = nib.Nifti1Image.from_filename(path).as_reoriented(nib.orientations.axcodes2ornt(("P", "S", "L")))
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    assert prepare(folder).cases[0].mask_digest == first.mask_digest


def test_second_time_masks_are_only_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(folder)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("voxels were read")

    monkeypatch.setattr(masks, "decode_volume", never)
    assert prepare(folder) == first
    assert prepare(folder, workers=2) == first


def test_edited_mask_is_another_entry_and_the_image_stays(folder: Path) -> None:
    first = prepare(folder).cases[0]
    write_mask(folder, "P1", np.roll(tumour(), 1, axis=0))
    again = prepare(folder).cases[0]
    assert (again.array, again.digest) == (first.array, first.digest)
    assert again.mask != first.mask
    assert again.mask_digest != first.mask_digest


def test_damaged_mask_in_the_cache_is_made_again(folder: Path) -> None:
    first = prepare(folder)
    assert first.cases[0].mask is not None
    first.cases[0].mask.write_bytes(b"half")
    assert prepare(folder) == first


def test_cache_with_masks_names_no_patient(folder: Path) -> None:
    prepare(folder)
    assert check_cache(folder.parent / "cache", ["P1_seg", "P001"]) == 10


def _fraction(labels: Array) -> Array:
    return labels * np.float32(0.25)


def _relabelled(old: int, new: int) -> Callable[[Array], Array]:
    return lambda labels: np.where(labels == old, np.int16(new), labels.astype(np.int16))


@pytest.mark.parametrize(
    ("change", "matrix", "words"),
    [
        (np.zeros_like, None, "no tumour is outlined; outline it or remove the file"),
        (np.ones_like, None, "no tumour is outlined"),
        (_fraction, None, r"0\.5: values between the labels"),
        (_relabelled(2, 7), None, "label 7: known are 0, 1 necrotic"),
        (_relabelled(2, -1), None, "label -1: known are"),
        (_relabelled(2, 3), None, "labels 3 and 4 both stand in it"),
        (lambda labels: labels[:-1], None, r"its grid of 23x27x21 voxels is that of none .*flair 24x27x21"),
        (np.copy, affine() @ moved_by(4, 0, 0), "or lies elsewhere"),
        (lambda labels: np.roll(labels, 11, axis=0), None, r"\d+% of the tumour lies outside the brain"),
        (lambda labels: np.where(brain(0) > 0, 0, 1).astype(np.uint8), None, "100% of the tumour lies"),
        (lambda labels: np.stack([labels, labels], axis=-1), None, None),
    ],
)
def test_mask_that_cannot_be_used_is_told_and_the_case_is_kept(
    folder: Path, change: Callable[[Array], Array], matrix: Array | None, words: str | None
) -> None:
    whole = prepare(folder)
    write_mask(folder, "P2", change(tumour()), matrix)
    cohort = read_cohort(folder)
    done = prepare_cases(cohort.cases, SETTINGS, Cache(folder.parent / "cache"))
    findings = [f for f in (*cohort.warnings, *done.warnings) if f.code == "mask"]
    assert [f.patient for f in findings] == ["P2"]
    assert str(folder.parent) not in findings[0].message
    assert "the mask is not used" in findings[0].message
    if words is not None:
        assert findings[0].stage == "prepare"
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(findings[0].message)
    assert [case.digest for case in done.cases] == [case.digest for case in whole.cases]
    assert [case.mask is None for case in done.cases] == [False, True, True]
    assert done.cases[1].case.mask is None
    assert not done.exclusions


@pytest.mark.parametrize("cut", [lambda b: b[:-9], lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:], None])
def test_mask_whose_file_is_broken_is_told(folder: Path, cut: Callable[[bytes], bytes] | None) -> None:
    cases = read_cohort(folder).cases
    path = folder / "P1" / "P1_seg.nii.gz"
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(cut(path.read_bytes()))
    done = prepare_cases(cases, SETTINGS, Cache(folder.parent / "cache"))
    assert [(f.patient, f.code, f.stage) for f in done.warnings] == [("P1", "mask", "prepare")]
    assert done.cases[0].case.mask is None


def test_tumour_smaller_than_a_voxel_here_is_told() -> None:
    drawn = np.zeros((8, 8, 8), np.float32)
    drawn[3, 3, 3] = 1
    volume = Volume(drawn, np.eye(4))
    coarse = np.diag([8.0, 8.0, 8.0, 1.0])
    coarse[:3, 3] = -4.4
    with pytest.raises(VolumeError, match="smaller than a voxel"):
        labels_in(volume, record(coarse, {Modality.FLAIR: volume}), everywhere(3, 3, 3))


def test_common_scale_keeps_the_mask(folder: Path) -> None:
    done = prepare(folder)
    scale = Scale(
        landmarks=dict.fromkeys(CHANNELS, (0.0, 40.0, 60.0, 80.0, 100.0)),
        cases=dict.fromkeys(CHANNELS, 5),
        sites=dict.fromkeys(CHANNELS, 1),
    )
    scaled = on_scale(done.cases, scale)
    assert [(c.mask, c.mask_digest) for c in scaled] == [(c.mask, c.mask_digest) for c in done.cases]
    assert scaled[0].digest != done.cases[0].digest


def test_plan_of_a_simulation_keeps_the_mask(folder: Path) -> None:
    done = prepare(folder)
    plan = SimulationPlan(
        run_folder=folder, settings=RunConfig(), sites=(), selection=done.cases[:1], report=done.cases[1:]
    )
    assert SimulationPlan.model_validate_json(plan.model_dump_json()) == plan


def test_digest_of_the_data_follows_masks_of_those_who_have_one(folder: Path) -> None:
    cases = prepare(folder).cases
    bare = [replace(case, mask=None, mask_digest=None) for case in cases]
    lines = sorted(f"{case.digest} {case.case.genotype.labels()} {case.case.site}" for case in cases)
    assert data_digest(bare) == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    write_mask(folder, "P1", np.roll(tumour(), 1, axis=0))
    edited = prepare(folder).cases
    assert len({data_digest(bare), data_digest(cases), data_digest(edited)}) == 3
    assert data_digest(cases[2:]) == data_digest(edited[2:]) == data_digest(bare[2:])


def test_mask_of_a_registered_image_stays_on_its_tumour(tmp_path: Path) -> None:
    """What is bright in the prepared FLAIR is what was outlined on the FLAIR as it was taken, turned."""
    flair, t1ce = (head(modality, skull=False) for modality in (Modality.FLAIR, Modality.T1CE))
    index = np.stack(np.meshgrid(*map(np.arange, flair.array.shape), indexing="ij"), -1)
    middle = np.argwhere(flair.array > 0).mean(axis=0) + np.array([7, 5, 4])
    ball = ((index - middle) ** 2).sum(-1) < 6**2
    level = float(flair.array.max())
    bright = Volume(np.where(ball, 3 * level, flair.array).astype(np.float32), flair.affine)
    turned = scanned_in(bright, motion(7, 10.0, 10.0))
    shown = np.argwhere((turned.array > level / 10) | (t1ce.array > t1ce.array.max() / 10))
    box = tuple(slice(low, high) for low, high in zip(shown.min(0), shown.max(0), strict=True))
    corner = moved_by(*shown.min(0))
    turned, t1ce = (Volume(v.array[box], v.affine @ corner) for v in (turned, t1ce))  # less to register
    outlined = turned.array > 2 * level
    files = {m: tmp_path / f"{m}.nii.gz" for m in (Modality.FLAIR, Modality.T1CE)}
    shifted = turned.affine @ moved_by(0, 0.5, 0)  # so that the headers tell the two grids apart
    write_volume(files[Modality.FLAIR], turned.array, shifted)
    write_volume(files[Modality.T1CE], t1ce.array, t1ce.affine)
    write_volume(tmp_path / "seg.nii.gz", outlined.astype(np.uint8), shifted)
    case = Case(patient="a", site="a", volumes=files, mask=tmp_path / "seg.nii.gz")
    wanted = PrepareSettings(spacing_mm=GRID.spacing[0], correct_bias=False)
    done = prepare_cases([case], wanted, Cache(tmp_path / "cache"))
    moved = done.records[0].movements[Modality.FLAIR]
    assert moved.degrees > 8
    assert done.cases[0].mask is not None
    image, labels = np.load(done.cases[0].array)[0].astype(np.float32), np.load(done.cases[0].mask)
    assert dice(image > 0.6 * image.max(), labels > 0) > 0.9
    assert (labels > 0).sum() == pytest.approx(outlined.sum(), rel=0.1)


@needs_real_data
def test_real_tumour_keeps_its_volume_and_is_bright_on_flair(tmp_path: Path) -> None:
    assert REAL
    case = next(c for c in read_cohort(Path(REAL) / "glioma").cases if c.patient == "BraTS2021_00000")
    assert case.mask is not None
    drawn = np.asarray(nib.Nifti1Image.from_filename(case.mask).dataobj)
    for treatment in (
        PrepareSettings(spacing_mm=3.0, correct_bias=False),
        PrepareSettings.of(RunConfig(preprocessing="sgpnet", crop=48, spacing_mm=3.0)),
    ):
        done = prepare_cases([case], treatment, Cache(tmp_path / "cache"))
        assert not [f for f in done.warnings if f.code == "mask"]
        prepared, voxel = done.cases[0], abs(np.linalg.det(np.array(done.records[0].affine)[:3, :3]))
        assert prepared.mask is not None
        labels, image = np.load(prepared.mask), np.load(prepared.array).astype(np.float32)
        for old, new in ((1, 1), (2, 2), (4, 3)):
            assert (labels == new).sum() * voxel == pytest.approx((drawn == old).sum(), rel=0.1)
        assert image[0][labels == 2].mean() > 1
        assert image[1][labels == 3].mean() > image[1][labels == 2].mean() + 1
