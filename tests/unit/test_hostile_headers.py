"""Headers damaged in every way: reading ends in a volume or a reason, within a budget of memory."""

import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedglioma.data.dicom import find_series
from fedglioma.data.dicom_header import read_header
from fedglioma.data.dicom_volume import files_digest, read_files
from fedglioma.data.volume import Volume, VolumeError, check_volume, decode_volume, read_volume
from tests.dicom_fixture import SECRET, head, write_enhanced, write_t2
from tests.hostile_dicom import MIB, zeros_deflated

SHAPE = (5, 6, 7)
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=120,
)
SLOW = settings(FUZZ, max_examples=16)


@contextlib.contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    """Fail if more memory than this is taken at any moment; numpy's arrays count too."""
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert taken < mebibytes


def judged(error: VolumeError) -> None:
    assert error.code.replace("_", "").isalpha()
    assert error.reason.isprintable()
    assert len(error.reason) < 400


# NIfTI ---------------------------------------------------------------------------------------------------

EXTREME = [0, 1, -1, 2, 7, 8, 255, 32767, -32768]
REALS = [0.0, 1.0, -1.0, 0.2, 12.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), float("-inf")]
SMALL = st.sampled_from(EXTREME) | st.integers(-32768, 32767)
REAL = st.sampled_from(REALS) | st.floats(width=32)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "dim": st.lists(SMALL, min_size=8, max_size=8),
    "pixdim": st.lists(REAL, min_size=8, max_size=8),
    "datatype": st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2048]) | SMALL,
    "bitpix": SMALL,
    "vox_offset": REAL,
    "scl_slope": REAL,
    "scl_inter": REAL,
    "qform_code": SMALL,
    "sform_code": SMALL,
    "quatern_b": REAL,
    "quatern_c": REAL,
    "quatern_d": REAL,
    "qoffset_x": REAL,
    **{f"srow_{axis}": st.lists(REAL, min_size=4, max_size=4) for axis in "xyz"},
}


def nifti(**fields: Any) -> bytes:
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.header.set_sform(np.eye(4), code=1)
    image.header["vox_offset"] = 352
    for name, value in fields.items():
        with np.errstate(all="ignore"):
            image.header[name] = value
    return image.header.binaryblock + b"\0\0\0\0" + np.asarray(image.dataobj).tobytes(order="F")


@FUZZ
@given(data=st.data(), compressed=st.booleans())
def test_any_field_of_a_nifti_header_is_judged_in_little_memory(
    tmp_path: Path, data: st.DataObject, compressed: bool
) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4, unique=True))
    content = nifti(**{name: data.draw(FIELDS[name]) for name in names})
    path = tmp_path / ("a.nii.gz" if compressed else "a.nii")
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    refused = None
    with at_most(4):
        try:
            check_volume(path)
            volume = read_volume(path)
        except VolumeError as error:
            refused = error
    if refused:
        judged(refused)
    else:
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()
        assert volume.array.ndim == 3


@FUZZ
@given(content=st.binary(max_size=700), start=st.integers(0, 400), compressed=st.booleans())
def test_any_bytes_are_no_volume_or_one(tmp_path: Path, content: bytes, start: int, compressed: bool) -> None:
    whole = nifti()[:start] + content
    path = tmp_path / ("a.nii.gz" if compressed else "a.nii")
    path.write_bytes(gzip.compress(whole, 1) if compressed else whole)
    try:
        check_volume(path)
        read_volume(path)
    except VolumeError as error:
        judged(error)


FINE = {"pixdim": [1, 0.5, 0.5, 0.5, 1, 1, 1, 1]} | {
    f"srow_{axis}": [0.5 * (row == column) for column in range(4)] for row, axis in enumerate("xyz")
}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (gzip.compress(nifti()) + zeros_deflated(4096, 31), "too_large"),
        (gzip.compress(nifti()) + gzip.compress(bytes(MIB)) * 300, "too_large"),
        (gzip.compress(nifti()) + gzip.compress(b"") * 20_000, "volume"),
        (gzip.compress(nifti(dim=[3, 640, 640, 640, 1, 1, 1, 1], **FINE)), "truncated"),
        (gzip.compress(nifti(dim=[3, 800, 800, 800, 1, 1, 1, 1], **FINE)), "dimensions"),
        (zeros_deflated(4096, 31), "not_nifti"),
    ],
    ids=["one stream", "many streams", "empty streams", "claims 512 MB", "claims 1 GB", "zeros alone"],
)
def test_no_bomb_takes_more_memory_than_the_header_describes(content: bytes, code: str) -> None:
    found = "volume"
    with at_most(4):
        try:
            decode_volume(content, compressed=True)
        except VolumeError as error:
            found = error.code
    assert found == code


@FUZZ
@given(
    cuts=st.lists(st.integers(0, len(nifti())), max_size=4),
    padding=st.sampled_from([0, 1, 511, 70_000]),
    level=st.integers(0, 9),
)
def test_streams_in_parts_are_read_as_gzip_reads_them(cuts: list[int], padding: int, level: int) -> None:
    content = nifti()
    places = [0, *sorted(cuts), len(content)]
    parts = [content[a:b] for a, b in pairwise(places)]
    stream = b"".join(gzip.compress(part, level) for part in parts) + bytes(padding)
    assert gzip.decompress(stream) == content
    # Whether it is a volume is told from what the first member holds.
    assume(len(parts[0]) >= 352)
    volume = decode_volume(stream, compressed=True)
    np.testing.assert_array_equal(volume.array, decode_volume(content, compressed=False).array)


@FUZZ
@given(place=st.integers(0, 10_000), value=st.integers(1, 255))
def test_any_damage_to_a_stream_is_seen_where_gzip_sees_it(place: int, value: int) -> None:
    stream = bytearray(gzip.compress(nifti(), 1, mtime=0))
    stream[place % len(stream)] ^= value
    try:
        whole = gzip.decompress(bytes(stream))
    except (OSError, EOFError, ValueError, gzip.zlib.error):
        whole = None
    try:
        decode_volume(bytes(stream), compressed=True)
        read = True
    except VolumeError as error:
        judged(error)
        read = False
    assert read is (whole is not None)


# DICOM ---------------------------------------------------------------------------------------------------


@cache
def stack() -> tuple[bytes, ...]:
    """Return the files of a small good series."""
    with TemporaryDirectory() as name:
        return tuple(path.read_bytes() for path in write_t2(Path(name)))


@cache
def enhanced() -> bytes:
    with TemporaryDirectory() as name:
        return write_enhanced(Path(name, "e.dcm"), head()).read_bytes()


@cache
def elements(kind: str) -> tuple[int, ...]:
    """Return where the elements of a good file start, found by pydicom and not by the reader on trial."""
    content = stack()[0] if kind == "classic" else enhanced()
    with TemporaryDirectory() as name:
        path = Path(name, "a.dcm")
        path.write_bytes(content)
        dataset = pydicom.dcmread(path)
        tags = [element.tag for element in dataset]
    found = [content.find(struct.pack("<HH", tag.group, tag.element), 132) for tag in tags]
    return tuple(place for place in found if place > 0)


LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 255, 0x7FFF, 0xFFFE, 0xFFFF]) | st.integers(0, 0xFFFF)
KINDS = st.sampled_from(
    [b"SQ", b"OB", b"UN", b"UI", b"DS", b"US", b"FD", b"UT", b"PN", b"AT", b"??", b"\0\0"]
)


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
@FUZZ
@given(data=st.data())
def test_any_element_of_another_kind_or_length_is_judged_in_little_memory(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    content = bytearray(stack()[0] if kind == "classic" else enhanced())
    for place in data.draw(st.lists(st.sampled_from(elements(kind)), min_size=1, max_size=3)):
        what = data.draw(st.sampled_from(["kind", "length", "both", "long"]))
        if what in ("kind", "both"):
            content[place + 4 : place + 6] = data.draw(KINDS)
        if what in ("length", "both"):
            struct.pack_into("<H", content, place + 6, data.draw(LENGTHS))
        if what == "long":
            struct.pack_into("<I", content, place + 8, data.draw(st.integers(0, 0xFFFFFFFF)))
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(content))
    with at_most(48):
        try:
            read_header(path, SECRET)
        except VolumeError as error:
            judged(error)


@FUZZ
@given(data=st.data())
def test_any_part_that_is_gone_or_twice_is_judged(tmp_path: Path, data: st.DataObject) -> None:
    content, places = stack()[0], sorted(elements("classic"))
    first, last = sorted(data.draw(st.tuples(st.sampled_from(places), st.sampled_from(places))))
    part = content[first:last]
    times = data.draw(st.sampled_from([0, 2, 50]))
    path = tmp_path / "a.dcm"
    path.write_bytes(content[:first] + part * times + content[last:])
    with at_most(48):
        try:
            read_header(path, SECRET)
        except VolumeError as error:
            judged(error)


@SLOW
@given(data=st.data())
def test_any_damage_to_a_series_ends_in_volumes_or_reasons(data: st.DataObject) -> None:
    """Headers and pixels of several files are damaged, and whatever is still a series is converted."""
    files = [bytearray(content) for content in stack()]
    for _ in range(data.draw(st.integers(1, 4))):
        which = range(len(files)) if data.draw(st.booleans()) else [data.draw(st.integers(0, len(files) - 1))]
        place, value = data.draw(st.integers(132, len(files[0]) - 1)), data.draw(st.integers(0, 255))
        for number in which:
            files[number][place] = value
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number, content in enumerate(files):
            (folder / f"{number:02d}.dcm").write_bytes(bytes(content))
        with at_most(64):
            series, findings = find_series(folder, SECRET)
            for one in series:
                try:
                    volume = read_files(one.files, files_digest(one.files))
                except VolumeError as error:
                    judged(error)
                else:
                    assert usable(volume)
    assert series or findings
    assert all(finding.message.isprintable() and name not in finding.message for finding in findings)


def usable(volume: Volume) -> bool:
    return bool(
        volume.array.ndim == 3 and np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
    )
