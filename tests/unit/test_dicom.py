"""Series found in a folder: what is refused, with which reason, and that the rest is still found."""

import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid

from fedglioma.case import Modality
from fedglioma.data.dicom import Limits, Series, find_series, stack
from fedglioma.data.dicom_header import read_header
from fedglioma.data.dicom_write import PROTOCOLS, Protocol, write_series
from fedglioma.data.volume import VolumeError
from tests.dicom_fixture import (
    SECRET,
    SLICES,
    edit,
    head,
    meta_bytes,
    oblique,
    patch,
    set_syntax,
    write_enhanced,
    write_t2,
)

IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
META_OF_NO_END = b"\2\0\1\0OB\0\0\xff\xff\xff\xff"
MAGIC = bytes(128) + b"DICM"
CT, CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"


def every(files: list[Path], **values: object) -> None:
    for path in files:
        edit(path, **values)


def tilt(files: list[Path]) -> None:
    for path in files[::2]:
        edit(path, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


def shift(files: list[Path]) -> None:
    for number, path in enumerate(files):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x + 0.4 * number, y, z])


def copy_slice(files: list[Path]) -> None:
    copy = files[0].with_name("copy.dcm")
    shutil.copy(files[3], copy)
    edit(copy, SOPInstanceUID=generate_uid())


def thick(files: list[Path]) -> None:
    for number, path in enumerate(files):
        edit(path, ImagePositionPatient=[0, 0, 9 * number], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])


def drop(files: list[Path], *gone: int) -> None:
    for number in gone:
        files[number].unlink()


STACKS: list[tuple[str, Callable[[list[Path]], object], str]] = [
    ("one slice missing", lambda files: drop(files, 9), "missing_slices"),
    ("one slice double", copy_slice, "duplicate_slices"),
    ("four slices", lambda files: drop(files, *range(4, SLICES)), "too_few_slices"),
    ("three directions", tilt, "mixed_orientation"),
    ("shifted sideways", shift, "sheared"),
    ("9 mm apart", thick, "too_thick"),
    ("a slab", lambda files: drop(files, *range(13, SLICES)), "slab"),
    ("two pixel sizes", lambda files: every(files[5:], PixelSpacing=[5, 5]), "mixed_matrix"),
    ("two patients", lambda files: every(files[7:], PatientID="P2"), "mixed_patients"),
    ("a localizer", lambda files: every(files, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    ("a derived map", lambda files: every(files, ImageType=["DERIVED", "PRIMARY", "ADC"]), "derived"),
    ("a reformatted one", lambda files: every(files, SeriesDescription="T2 MPR cor"), "not_structural"),
    ("CT", lambda files: every(files, SOPClassUID=CT, Modality="CT"), "sop_class"),
    ("CT that calls itself MR's class", lambda files: every(files, Modality="CT"), "sop_class"),
    ("a screen shot", lambda files: every(files, SOPClassUID=CAPTURE), "sop_class"),
    ("burned-in text", lambda files: every(files, BurnedInAnnotation="YES"), "burned_in"),
    ("colours", lambda files: every(files, PhotometricInterpretation="RGB"), "dtype"),
    ("three samples", lambda files: every(files, SamplesPerPixel=3), "dtype"),
    ("64 bits", lambda files: every(files, BitsAllocated=64), "dtype"),
    ("no position", lambda files: every(files, ImagePositionPatient=None), "geometry"),
    ("no series", lambda files: every(files, SeriesInstanceUID=None), "header"),
    ("no matrix", lambda files: every(files, Rows=None), "dimensions"),
    ("classic with frames", lambda files: every(files, NumberOfFrames=9), "dimensions"),
    ("zero axes", lambda files: every(files, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), "geometry"),
    (
        "slanted axes",
        lambda files: every(files, ImageOrientationPatient=[1, 0, 0, 0.5, 0.866, 0]),
        "geometry",
    ),
    ("negative spacing", lambda files: every(files, PixelSpacing=[-1, 1]), "spacing"),
    ("zero spacing", lambda files: every(files, PixelSpacing=[0, 1]), "spacing"),
    ("huge spacing", lambda files: every(files, PixelSpacing=[90, 90]), "spacing"),
    ("tiny spacing", lambda files: every(files, PixelSpacing=[0.01, 0.01]), "spacing"),
    (
        "raw pixels called JPEG 2000",
        lambda files: [set_syntax(p, JPEG_2000) for p in files],
        "transfer_syntax",
    ),
    ("deflated", lambda files: [set_syntax(path, DEFLATED) for path in files], "transfer_syntax"),
    ("unknown syntax", lambda files: [set_syntax(path, "1.2.3.4") for path in files], "transfer_syntax"),
    ("video", lambda files: [set_syntax(p, "1.2.840.10008.1.2.4.102") for p in files], "transfer_syntax"),
]


@pytest.mark.parametrize(("damage", "code"), [pytest.param(d, c, id=n) for n, d, c in STACKS])
def test_a_stack_that_cannot_be_used_is_left_out_with_its_reason(
    tmp_path: Path, damage: Callable[[list[Path]], object], code: str
) -> None:
    damage(write_t2(tmp_path / "bad"))
    good = write_series(tmp_path / "good", head(), PROTOCOLS[Modality.T1], patient="P1", number=2)
    series, findings = find_series(tmp_path, SECRET)
    assert [one.files for one in series] == [tuple(good)]
    assert {finding.code for finding in findings} == {code}
    assert all(finding.message.startswith("<bad/IM001") or "copy" in finding.message for finding in findings)
    assert all("\n" not in f.message and str(tmp_path) not in f.message for f in findings)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ((0x20, 0x37), b"nan"),
        ((0x20, 0x32), b"inf"),
        ((0x20, 0x32), b"1e9"),
        ((0x20, 0x32), b"x\0y"),
        ((0x20, 0x37), b"\xff\xfe"),
    ],
)
def test_numbers_that_are_none_are_found(tmp_path: Path, tag: tuple[int, int], text: bytes) -> None:
    def with_text(old: bytes) -> bytes:
        longest = max(old.split(b"\\"), key=len)
        return old.replace(longest, text.ljust(len(longest)), 1)

    for path in write_t2(tmp_path):
        patch(path, tag, b"DS", with_text)
    series, findings = find_series(tmp_path, SECRET)
    assert not series
    assert [finding.code for finding in findings] == ["geometry"]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def without_pixels(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-900])


def three_terabytes(path: Path) -> None:
    edit(path, Rows=4096, Columns=4096, NumberOfFrames=4096, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1")


def endless_value(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(b"\x08\x00\x60\x00CS")
    path.write_bytes(
        content[:place] + struct.pack("<HH2sHI", 8, 0x5A, b"OB", 0, 0xFFFFFFF0) + content[place:]
    )


def endless_items(path: Path) -> None:
    bad = struct.pack("<HH2sHI", 0x5200, 0x9229, b"SQ", 0, 0xFFFFFFFF)
    body = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    content = path.read_bytes()
    place = content.index(b"\x08\x00\x60\x00CS")
    path.write_bytes(content[:place] + bad + body)


def many_items(path: Path) -> None:
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 400_000
    bad = struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, len(items)) + items
    content = path.read_bytes()
    place = content.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[:place] + bad + content[place:])


def zip_bomb(path: Path) -> None:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(squeezer.compress(bytes(1 << 24)) for _ in range(4)) + squeezer.flush()
    path.write_bytes(bytes(128) + b"DICM" + meta_bytes(DEFLATED) + body)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FILES: list[tuple[str, Callable[[Path], object], set[str]]] = [
    ("cut short in the header", truncated, {"truncated", "header", "dimensions", "dtype", "sop_class"}),
    ("cut short in the pixels", without_pixels, {"truncated"}),
    ("empty", lambda path: path.write_bytes(b""), {"not_dicom"}),
    ("text called .dcm", lambda path: path.write_text("patient list"), {"not_dicom"}),
    ("noise behind the magic", lambda p: p.write_bytes(MAGIC + bytes(range(256)) * 40), {"transfer_syntax"}),
    ("meta of no end", lambda p: p.write_bytes(MAGIC + META_OF_NO_END), {"transfer_syntax"}),
    ("3 TB of pixels", three_terabytes, {"dimensions"}),
    ("a value of 4 GB", endless_value, {"truncated", "header", "sop_class", "dtype", "dimensions"}),
    ("items in items", endless_items, {"header", "header_too_large"}),
    ("items without end", many_items, {"header_too_large"}),
    ("zip bomb", zip_bomb, {"transfer_syntax"}),
    ("a pipe", pipe, {"not_a_file"}),
    ("says big endian", lambda path: set_syntax(path, BIG_ENDIAN), {"header", "sop_class", "truncated"}),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "codes"), [pytest.param(d, c, id=n) for n, d, c in FILES])
def test_one_hostile_file_is_named_quickly_and_stops_nothing(
    tmp_path: Path, damage: Callable[[Path], object], codes: set[str]
) -> None:
    good = write_t2(tmp_path / "good")
    bad = tmp_path / "bad.dcm"
    shutil.copy(good[4], bad)
    damage(bad)
    start = time.perf_counter()
    series, findings = find_series(tmp_path, SECRET)
    assert time.perf_counter() - start < 60  # a few tenths; what fell for a trap would take minutes
    assert [one.files for one in series] == [tuple(good)]
    assert len(findings) == 1
    assert findings[0].code in codes
    assert findings[0].message.startswith("<bad.dcm>: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    files = write_t2(tmp_path)
    files[0].chmod(0)
    assert "unreadable" in {finding.code for finding in find_series(tmp_path, SECRET)[1]}


def test_links_out_of_the_folder_are_refused_and_others_do_no_harm(tmp_path: Path) -> None:
    outside = write_t2(tmp_path / "other")
    good = write_t2(tmp_path / "P1")
    (tmp_path / "P1" / "to_file.dcm").symlink_to(outside[0])
    (tmp_path / "P1" / "to_folder").symlink_to(tmp_path / "other")
    (tmp_path / "P1" / "nowhere.dcm").symlink_to(tmp_path / "absent")
    (tmp_path / "P1" / "again.dcm").symlink_to(good[0])
    (tmp_path / "P1" / "circle").symlink_to(tmp_path / "P1")
    series, findings = find_series(tmp_path / "P1", SECRET)
    assert [one.files for one in series] == [tuple(good)]
    assert [(f.code, f.message.partition(":")[0]) for f in findings] == [
        ("link_outside", "<nowhere.dcm> and 2 more")
    ]
    assert str(outside[0].parent) not in findings[0].message


def test_the_patient_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    write_t2(tmp_path / "store")
    (tmp_path / "P1").symlink_to(tmp_path / "store")
    assert len(find_series(tmp_path / "P1", SECRET)[0]) == 1


def test_what_lies_beside_images_is_no_finding(tmp_path: Path) -> None:
    write_t2(tmp_path)
    for name in ("DICOMDIR", "README.txt", "VERSION", ".DS_Store", "notes.json", "t1.nii.gz", "LOCKFILE"):
        (tmp_path / name).write_bytes(b"beside")
    series, findings = find_series(tmp_path, SECRET)
    assert (len(series), findings) == (1, ())


@pytest.mark.parametrize("name", ["Ünïcode-中文-Ω", "with space", "dots..dots", "a;rm -rf $HOME", "-o"])
def test_any_name_is_read(tmp_path: Path, name: str) -> None:
    for number, path in enumerate(write_t2(tmp_path / name)):
        path.rename(path.with_name(f"{name}.{number}"))
    series, findings = find_series(tmp_path, SECRET)
    assert (len(series), findings) == (1, ())


def test_control_characters_and_broken_bytes_in_a_name_are_not_passed_on(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/evil\x1b[2J\n\xff.dcm")).write_bytes(b"no DICOM")
    (finding,) = find_series(tmp_path, SECRET)[1]
    assert finding.message.isprintable()


def test_a_thousand_bad_files_are_one_finding(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.dcm").write_bytes(b"x")
    (finding,) = find_series(tmp_path, SECRET)[1]
    assert finding.message.startswith("<0.dcm> and 999 more: ")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as caught:
        find_series(tmp_path / "absent", SECRET)
    assert caught.value.code == "unreadable"


def find_one(folder: Path, limits: Limits | None = None) -> Series:
    ((series,), findings) = find_series(folder, SECRET, limits=limits or Limits())
    assert findings == ()
    return series


def test_slices_are_ordered_by_place_whatever_the_files_are_called(tmp_path: Path) -> None:
    files = write_t2(tmp_path)
    for number, path in enumerate(files):
        path.rename(tmp_path / f"{(number * 7) % SLICES:03d}_renamed.dcm")
    series = find_one(tmp_path)
    places = [pydicom.dcmread(path).InstanceNumber for path in series.files]
    assert places in (list(range(1, SLICES + 1)), list(range(SLICES, 0, -1)))
    assert series.geometry.shape == (28, 32, 22)
    assert series.header.spacing_mm == (6.0, 5.5, 5.0)
    assert series.geometry.affine == pytest.approx(oblique(), abs=1e-5)


def test_two_echoes_of_one_series_are_two_stacks(tmp_path: Path) -> None:
    files = write_t2(tmp_path / "late")
    early = write_t2(tmp_path / "early")
    every(early, EchoTime=20, SeriesDescription="dual echo")
    series, findings = find_series(tmp_path, SECRET)
    assert [one.files for one in series] == [tuple(files)]
    assert [finding.code for finding in findings] == ["not_structural"]


def test_more_voxels_than_a_head_has_are_no_stack(tmp_path: Path) -> None:
    header = read_header(write_t2(tmp_path)[0], SECRET)
    slices = [
        replace(
            header, rows=4096, columns=4096, frames=(replace(header.frames[0], position=(0, 0, 7.0 * k)),)
        )
        for k in range(17)
    ]
    flat = [replace(one, frames=(replace(one.frames[0], orientation=(1, 0, 0, 0, 1, 0)),)) for one in slices]
    with pytest.raises(VolumeError, match="4096x4096x17 voxels") as caught:
        stack(flat)
    assert caught.value.code == "dimensions"


def test_jitter_of_the_echo_time_does_not_divide_a_series(tmp_path: Path) -> None:
    for number, path in enumerate(write_t2(tmp_path)):
        edit(path, EchoTime=99.6 + 0.2 * (number % 5))
    assert len(find_one(tmp_path).files) == SLICES


def test_enhanced_multi_frame_is_one_series(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "e.dcm", head())
    series = find_one(tmp_path)
    assert series.files == (path,)
    assert series.header.multi_frame
    assert (series.header.repetition_ms, series.header.echo_ms, series.header.slices) == (5000, 100, SLICES)
    assert series.geometry.affine == pytest.approx(oblique(), abs=1e-5)


def test_several_time_points_are_no_volume(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "e.dcm", head(), time_points=2)
    series, findings = find_series(tmp_path, SECRET)
    assert (series, [finding.code for finding in findings]) == ((), ["several_volumes"])


def test_series_come_in_order_of_acquisition(tmp_path: Path) -> None:
    base = PROTOCOLS[Modality.T2]
    for number, clock in ((1, "120000"), (2, "090000"), (3, "110000.5")):
        protocol = Protocol(base.description, base.repetition_ms, base.echo_ms, acquired=clock)
        write_series(tmp_path / str(number), head(), protocol, patient="P1", number=number)
    series, _ = find_series(tmp_path, SECRET)
    assert [(one.number, one.order) for one in series] == [(2, 0), (3, 1), (1, 2)]
