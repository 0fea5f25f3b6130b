import errno
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedglioma.case import CHANNELS, Case, Modality
from fedglioma.config.run import Preprocessing, RunConfig
from fedglioma.data import source
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import read_cohort
from fedglioma.data.prepare import PRESETS, Prepared, PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError
from tests.bad_cohorts import SHAPE, affine, brain, volume, write_cohort, write_volume

SETTINGS = PrepareSettings(spacing_mm=8.0, correct_bias=False)
REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "glioma").is_dir(),
    reason="FEDGLIOMA_REAL_DATA names no folder of real cases",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort")
    return tmp_path / "cohort"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def _prepare(folder: Path, cache: Cache, settings: PrepareSettings = SETTINGS, workers: int = 1) -> Prepared:
    return prepare_cases(read_cohort(folder).cases, settings, cache, workers=workers)


def _image(prepared: PreparedCase) -> np.ndarray:
    image: np.ndarray = np.load(prepared.array, allow_pickle=False).astype(np.float32)
    return image


def test_case_becomes_standardised_channels_around_its_brain(folder: Path, cache: Cache) -> None:
    done = _prepare(folder, cache).cases[0]
    image = _image(done)
    inside = brain(0) > 0
    box = tuple(slice(max(int(i.min()) - 1, 0), int(i.max()) + 2) for i in np.nonzero(inside))
    assert np.load(done.array).dtype == np.float16
    assert done.present == (True, True, True, True)
    for channel in range(4):  # as the test cohort was written: flair, t1ce, t1, t2
        raw = brain(channel)
        expected = np.where(inside, (raw - raw[inside].mean()) / raw[inside].std(), 0)[box]
        np.testing.assert_allclose(image[channel], expected, atol=2e-3)


def test_absent_modality_is_zeros_and_not_present(folder: Path, cache: Cache) -> None:
    volume(folder, "t2").unlink()
    done = _prepare(folder, cache).cases[1]
    image = _image(done)
    assert done.present == (True, True, True, False)
    assert [bool(channel.any()) for channel in image] == [True, True, True, False]


def test_second_time_nothing_is_prepared_and_all_is_the_same(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(volume(folder), brain(11)[:-4])
    settings = SETTINGS.model_copy(update={"register_modalities": False})
    first = _prepare(folder, cache, settings)
    assert [finding.code for finding in first.warnings] == ["not_registered"]

    def never(*_: object) -> None:
        raise AssertionError("voxels were read")

    monkeypatch.setattr(source, "decode_volume", never)
    assert _prepare(folder, cache, settings) == first


@pytest.mark.parametrize("kind", ["npy", "json"])
def test_damaged_entry_is_prepared_again(folder: Path, cache: Cache, kind: str) -> None:
    first = _prepare(folder, cache)
    path = first.cases[1].array.with_suffix(f".{kind}")
    path.write_bytes(path.read_bytes()[:-100])
    assert _prepare(folder, cache) == first


def test_entry_is_found_by_content_whatever_the_patient_is_called(folder: Path, cache: Cache) -> None:
    cases = read_cohort(folder).cases
    first = prepare_cases(cases, SETTINGS, cache)
    (folder / "P1").rename(folder / "elsewhere")
    moved = Case(
        patient="Z",
        site="west",
        volumes={m: folder / "elsewhere" / p.name for m, p in cases[0].volumes.items()},
    )
    again = prepare_cases([moved], SETTINGS, cache)
    assert again.cases[0].array == first.cases[0].array
    assert again.cases[0].digest == first.cases[0].digest


def test_other_settings_are_another_entry(folder: Path, cache: Cache) -> None:
    case = read_cohort(folder).cases[:1]
    arrays = {
        prepare_cases(case, settings, cache).cases[0].array
        for settings in (
            SETTINGS,
            PrepareSettings(spacing_mm=8.0, margin_mm=16.0),
            PrepareSettings(spacing_mm=8.0),
            PrepareSettings(spacing_mm=10.0),
        )
    }
    assert len(arrays) == 4


def test_stored_orientation_does_not_change_the_result(folder: Path, cache: Cache) -> None:
    first = _image(_prepare(folder, cache).cases[1])
    for channel, modality in enumerate(("flair", "t1ce", "t1", "t2")):
        image = nib.Nifti1Image(brain(10 + channel), affine())
        order = nib.orientations.axcodes2ornt(("P", "S", "L"))
        nib.save(image.as_reoriented(order), volume(folder, modality))
    assert nib.aff2axcodes(nib.Nifti1Image.from_filename(volume(folder)).affine) != ("R", "A", "S")
    np.testing.assert_array_equal(_image(_prepare(folder, cache).cases[1]), first)


def test_modality_on_a_finer_grid_lands_where_it_belongs(folder: Path, cache: Cache) -> None:
    first = _image(_prepare(folder, cache).cases[1])
    fine = affine()
    fine[:3, :3] /= 2
    fine[:3, 3] -= 2.0
    write_volume(volume(folder, "flair"), brain(10).repeat(2, 0).repeat(2, 1).repeat(2, 2), fine)
    apart = SETTINGS.model_copy(update={"register_modalities": False})
    np.testing.assert_allclose(_image(_prepare(folder, cache, apart).cases[1]), first, atol=2e-3)


def test_workers_change_nothing_but_the_time(folder: Path, tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    copy = Case(patient="P9", site="north", volumes={Modality.T1: volume(folder, "t1", "P1")})
    cases = [*read_cohort(folder).cases, copy]
    volume(folder, "t2").write_bytes(volume(folder, "t2").read_bytes()[:-9])
    alone = prepare_cases(cases, SETTINGS, Cache(tmp_path / "one"))
    both = prepare_cases(
        cases, SETTINGS, Cache(tmp_path / "two"), workers=2, progress=lambda *at: counted.append(at)
    )
    assert [(done.case, done.digest) for done in both.cases] == [
        (done.case, done.digest) for done in alone.cases
    ]
    assert both.exclusions == alone.exclusions
    assert [(f.patient, f.code) for f in both.exclusions] == [("P2", "truncated"), ("P9", "duplicate_image")]
    assert counted == [(n + 1, len(cases)) for n in range(len(cases))]


def test_full_disk_goes_on_as_such_and_leaves_no_half_file(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        _prepare(folder, cache)
    assert not list(cache.folder.iterdir())


def test_file_that_changes_while_it_is_read_is_never_kept_under_the_old_key(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "read_bytes", lambda path: path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"none of 3 cases can be prepared; the first, P1: flair .* changed"):
        _prepare(folder, cache)


def test_nothing_to_prepare_is_nothing_prepared(cache: Cache) -> None:
    assert prepare_cases([], SETTINGS, cache) == Prepared((), (), ())


def test_record_says_where_the_voxels_lie(folder: Path, cache: Cache) -> None:
    done = _prepare(folder, cache).cases[0]
    stored = cache.get(done.array.stem)
    assert stored is not None
    record = stored.record
    assert record.channels == CHANNELS
    assert record.settings == SETTINGS.model_dump(mode="json")
    low = [limits[0] for limits in record.box]
    np.testing.assert_allclose(np.array(record.affine)[:3, 3], affine()[:3, 3] + 8.0 * np.array(low))
    assert tuple(high - low for low, high in record.box) == stored.open().shape[1:]


@pytest.mark.parametrize(
    ("preprocessing", "shape", "reference"),
    [
        ("mdpnet", (4, 30, 30, 19), Modality.T1CE),
        ("sgpnet", (4, 48, 48, 48), Modality.T1CE),
        ("fusion", None, Modality.T2),
        ("standard", None, Modality.T1CE),
    ],
)
def test_preprocessing_of_a_paper_gives_its_shape(
    folder: Path,
    cache: Cache,
    preprocessing: Preprocessing,
    shape: tuple[int, ...] | None,
    reference: Modality,
) -> None:
    settings = PrepareSettings.of(RunConfig(spacing_mm=8.0, preprocessing=preprocessing, crop=48))
    done = prepare_cases(read_cohort(folder).cases[:1], settings, cache).cases[0]
    stored = cache.get(done.array.stem)
    assert stored is not None
    assert stored.record.reference is reference
    image = _image(done)
    assert shape is None or image.shape == shape
    for channel in image:
        values = channel[channel != 0]
        assert abs(values.mean()) < 0.1
        assert values.std() == pytest.approx(1, abs=0.15)


def test_stretched_cube_is_the_papers_unless_a_run_has_another_crop() -> None:
    assert PRESETS["sgpnet"]["resized"] == 144
    assert PrepareSettings.of(RunConfig(preprocessing="sgpnet", crop=144)).resized == 144
    assert PrepareSettings.of(RunConfig(preprocessing="sgpnet", crop=64)).resized == 64
    for other in ("standard", "mdpnet", "fusion"):
        assert PrepareSettings.of(RunConfig(preprocessing=other, crop=64)).resized == 0


def test_record_says_where_each_image_lay_before_it_was_moved(folder: Path, cache: Cache) -> None:
    fine = affine()
    fine[:3, :3] /= 2
    fine[:3, 3] += 3.0
    volume(folder, "t1").unlink()
    volume(folder, "t2").unlink()
    write_volume(volume(folder, "flair"), brain(10).repeat(2, 0).repeat(2, 1).repeat(2, 2), fine)
    record = prepare_cases(read_cohort(folder).cases[1:2], SETTINGS, cache).records[0]
    np.testing.assert_array_equal(record.grids[Modality.FLAIR].affine, fine)
    np.testing.assert_array_equal(record.grids[Modality.T1CE].affine, affine())
    assert record.grids[Modality.FLAIR].shape == tuple(2 * n for n in SHAPE)
    assert set(record.movements) == {Modality.T1CE}
    matrix = np.array(record.movements[Modality.T1CE].matrix)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-5)
    assert abs(matrix[:3, 3]).max() == pytest.approx(5, abs=3)  # FLAIR lies 5 mm off along each axis


@needs_real_data
def test_real_patient_looks_the_same_from_the_scanners_grid_and_from_the_atlas(cache: Cache) -> None:
    """The same patient twice: as scanned, and as BraTS moved it; mirrored, they do not fit."""
    assert REAL
    settings = PrepareSettings(spacing_mm=4.0)
    images = []
    for name in ("native_grid", "glioma"):
        cases = [case for case in read_cohort(Path(REAL) / name).cases if case.patient == "TCGA-DU-7294"]
        prepared = prepare_cases(cases, settings, cache)
        images.append(_image(prepared.cases[0]))
    shape = np.min([image.shape for image in images], axis=0)[1:]
    native, atlas = (
        image[
            tuple(
                slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(image.shape, (4, *shape), strict=True)
            )
        ]
        for image in images
    )
    for channel in range(4):
        fit = np.corrcoef(native[channel].ravel(), atlas[channel].ravel())[0, 1]
        mirrored = np.corrcoef(native[channel][::-1].ravel(), atlas[channel].ravel())[0, 1]
        upside_down = np.corrcoef(native[channel][:, :, ::-1].ravel(), atlas[channel].ravel())[0, 1]
        assert fit > max(mirrored, upside_down)
        assert fit > 0.4
