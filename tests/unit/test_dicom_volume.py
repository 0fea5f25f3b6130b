"""Voxels: what comes out is what the headers describe, from one converter and the other."""

import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from fedglioma.data import dicom_volume
from fedglioma.data.dicom_volume import files_digest, read_files
from fedglioma.data.volume import Volume, VolumeError
from tests.dicom_fixture import edit, head, places, values_at, write_enhanced, write_t2

REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
SLAB = Path(REAL or "", "dicom", "t1w_slab40.tar.gz")
needs_slab = pytest.mark.skipif(
    not REAL or not SLAB.is_file(), reason="FEDGLIOMA_REAL_DATA has no real DICOM"
)


@pytest.fixture(params=["dcm2niix", "SimpleITK"])
def converter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "SimpleITK":
        monkeypatch.setattr(dicom_volume, "PROGRAM", Path("/absent"))
    return str(request.param)


def agree(volume: Volume, other: Volume) -> None:
    points = places(other)
    np.testing.assert_array_equal(values_at(volume, points), values_at(other, points))


@pytest.mark.usefixtures("converter")
def test_every_voxel_is_where_it_was_written(tmp_path: Path) -> None:
    agree(read_files(write_t2(tmp_path)), head())


@pytest.mark.usefixtures("converter")
def test_order_and_names_of_the_files_make_no_difference(tmp_path: Path) -> None:
    files = write_t2(tmp_path)
    shuffled = [path.rename(tmp_path / f"{n * 5 % len(files)} ü.x") for n, path in enumerate(files)]
    agree(read_files(shuffled[::-1]), head())


@pytest.mark.usefixtures("converter")
def test_enhanced_multi_frame_is_read(tmp_path: Path) -> None:
    agree(read_files([write_enhanced(tmp_path / "e.dcm", head(3))]), head(3))


@pytest.mark.usefixtures("converter")
def test_values_are_rescaled(tmp_path: Path) -> None:
    files = write_t2(tmp_path, RescaleSlope=2, RescaleIntercept=-7)
    agree(read_files(files), Volume(head().array * 2 - 7, head().affine))


@pytest.mark.usefixtures("converter")
def test_run_length_coded_files_are_read(tmp_path: Path) -> None:
    files = write_t2(tmp_path)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    agree(read_files(files), head())


@pytest.mark.usefixtures("converter")
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_a_damaged_coded_stream_is_a_reason(tmp_path: Path, syntax: str) -> None:
    files = write_t2(tmp_path)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51noise that no decoder knows"])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    with pytest.raises(VolumeError) as caught:
        read_files(files)
    assert caught.value.code == "conversion"
    assert str(tmp_path) not in caught.value.reason


@pytest.mark.usefixtures("converter")
def test_an_empty_picture_is_a_reason(tmp_path: Path) -> None:
    files = write_t2(tmp_path)
    for path in files:
        edit(path, PixelData=bytes(len(pydicom.dcmread(path).PixelData)))
    with pytest.raises(VolumeError) as caught:
        read_files(files)
    assert caught.value.code == "constant"


def test_a_gap_is_never_converted(tmp_path: Path) -> None:
    files = write_t2(tmp_path)
    with pytest.raises(VolumeError) as caught:
        read_files(files[:9] + files[10:])
    assert caught.value.code == "missing_slices"


def test_a_program_that_writes_something_else_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_t2(tmp_path / "in")
    other = tmp_path / "other.nii"
    image = sitk.GetImageFromArray(head(9).array.T)
    image.SetSpacing((6.0, 5.5, 5.0))
    sitk.WriteImage(image, other)
    for body in (
        f'cp {other} "$o/volume.nii"',
        "exit 1",
        "true",
        f'cp {other} "$o/a.nii"; cp {other} "$o/b.nii"',
    ):
        program = tmp_path / "program"
        program.write_text(f'#!/bin/sh\nfor a; do [ "$last" = -o ] && o=$a; last=$a; done\n{body}\n')
        program.chmod(0o755)
        monkeypatch.setattr(dicom_volume, "PROGRAM", program)
        with pytest.raises(VolumeError) as caught:
            read_files(files)
        assert caught.value.code == "conversion"


def test_nothing_is_left_or_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = write_t2(tmp_path / "in", patient="GEHEIM")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    read_files(files)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_digest_follows_content_and_nothing_else(tmp_path: Path) -> None:
    files: Sequence[Path] = write_t2(tmp_path / "a")
    digest = files_digest(files)
    moved = [Path(shutil.copy(path, tmp_path / f"x{n}")) for n, path in enumerate(files)]
    assert files_digest(moved[::-1]) == digest
    assert files_digest(files[1:]) != digest
    edit(files[3], SeriesDescription="other")
    assert files_digest(files) != digest
    with pytest.raises(VolumeError) as caught:
        read_files(files, digest)
    assert caught.value.code == "changed"


@needs_slab
@pytest.mark.usefixtures("converter")
def test_real_slices_are_where_their_headers_say(tmp_path: Path) -> None:
    with tarfile.open(SLAB) as archive:
        archive.extractall(tmp_path, filter="data")
    files = sorted(tmp_path.rglob("*.dcm"))
    volume = read_files(files)
    assert sorted(volume.array.shape) == [40, 274, 384]
    assert sorted(volume.spacing) == pytest.approx([2 / 3, 2 / 3, 0.699988], abs=1e-5)
    # pydicom's pixels at the places that each header gives are the independent reference
    for path in files[::13]:
        dataset = pydicom.dcmread(path)
        row, column = np.mgrid[0:384:37, 0:274:31].reshape(2, -1)
        axes = np.array(dataset.ImageOrientationPatient).reshape(2, 3)
        down, across = dataset.PixelSpacing
        lps = (
            np.array(dataset.ImagePositionPatient)
            + np.outer(column * across, axes[0])
            + np.outer(row * down, axes[1])
        )
        expected = np.frombuffer(dataset.PixelData, np.int16).reshape(384, 274)[row, column]
        np.testing.assert_array_equal(values_at(volume, lps * [-1, -1, 1]), expected)
