import gzip
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.data.volume import VolumeError, check_volume, content_digest, decode_volume, read_volume

SHAPE = (5, 6, 7)
DTYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.int64)


def _ramp(dtype: type = np.int16) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_volume_reads_as_nibabel_reads_it(tmp_path: Path, dtype: type, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    nib.save(nib.Nifti1Image(_ramp(dtype), np.diag([1.0, 2.0, 3.0, 1.0]), dtype=dtype), path)
    check_volume(path)
    volume = read_volume(path)
    reference = nib.Nifti1Image.from_filename(path)
    np.testing.assert_array_equal(volume.array, reference.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(volume.affine, reference.affine)
    assert volume.array.dtype == np.float32
    assert volume.spacing == (1.0, 2.0, 3.0)


def test_scaled_big_endian_and_second_version_headers_are_understood(tmp_path: Path) -> None:
    scaled = nib.Nifti1Image(_ramp(np.float32) / 7, np.eye(4), dtype=np.int16)
    nib.save(scaled, tmp_path / "scaled.nii")
    big = nib.Nifti1Header(endianness=">")
    big.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(_ramp(), np.eye(4), big), tmp_path / "big.nii.gz")
    nib.save(nib.Nifti2Image(_ramp(), np.eye(4)), tmp_path / "second.nii.gz")
    for path in tmp_path.iterdir():
        reference: Any = nib.load(path)
        np.testing.assert_allclose(read_volume(path).array, reference.get_fdata(dtype=np.float32), rtol=1e-6)


def test_text_after_the_header_is_skipped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_ramp(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"exported" * 20))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, _ramp())


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(_ramp()[..., None, None], np.eye(4)), tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").array.shape == SHAPE


def test_qform_alone_gives_the_orientation(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image = nib.Nifti1Image(_ramp(), None)
    image.set_qform(turned, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").affine, turned, atol=1e-6)


def test_values_beyond_float32_are_not_finite(tmp_path: Path) -> None:
    huge = _ramp(np.float64)
    huge[0, 0, 0] = 1e300
    nib.save(nib.Nifti1Image(huge, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError, match="1 of 210 voxels are not finite"):
        read_volume(tmp_path / "a.nii.gz")


def test_header_check_reads_no_voxels(tmp_path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=(64, 64, 64)), np.eye(4)), tmp_path / "a.nii.gz"
    )
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    check_volume(tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError, match="ends too early"):
        read_volume(tmp_path / "a.nii.gz")


def test_error_survives_the_way_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(VolumeError("constant", "every voxel is 7")))  # noqa: S301 - our own bytes
    assert (error.code, str(error), error.exit_code) == ("constant", "every voxel is 7", 4)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        content_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_damage_to_a_header_is_a_reason_and_never_another_exception(data: st.DataObject) -> None:
    content = bytearray(nib.Nifti1Image(_ramp(), np.eye(4)).to_bytes())
    for place in data.draw(st.lists(st.integers(0, 351), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    reason = ""
    try:
        volume = decode_volume(gzip.compress(bytes(content), 1), compressed=True)
    except VolumeError as error:
        reason = str(error)
    assert "\n" not in reason
    assert reason or (np.isfinite(volume.array).all() and np.isfinite(volume.affine).all())
