"""A hospital's DICOM cohort, and everything that can be wrong with it on purpose or by accident.

``HOSTILE`` is data, as ``bad_cohorts.BAD_COHORTS`` is for NIfTI and the table: each kind of damage is done to
patient P2, and says what ``prepare`` must tell of it. ``BOMBS`` are the same for NIfTI.
"""

import gzip
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid
from scipy import ndimage

from fedglioma.case import Modality
from fedglioma.data.dicom_write import PROTOCOLS, Protocol, write_series
from fedglioma.data.volume import Volume
from tests.bad_cohorts import affine, brain, volume
from tests.dicom_fixture import edit, meta_bytes, set_syntax, write_enhanced

SHAPE = (24, 27, 21)
SPACING_MM = 7.0
SEQUENCES = {
    "P1": (Modality.T1, Modality.T2),
    "P2": (Modality.T1, Modality.T1CE, Modality.T2),
    "P3": (Modality.T1, Modality.T2),
}
TABLE = "participant_id\tidh\tatrx\tcodel_1p19q\nP1\t1\t0\t0\nP2\t0\t0\t0\nP3\t1\t1\t0\n"
BAD = Path("P2", "s2")
"""The series that most damage is done to: the contrast-enhanced T1, which the patient can do without."""
EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, LOSSLESS, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.5"
VIDEO = "1.2.840.10008.1.2.4.102"
CT, CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
REPORT, DIRECTORY = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.1.3.10"
EVIL = "<img src=x onerror=alert(1)>"
ANSI = "\x1b[2J\x1b[31mred\nand a line"
UNDECODABLE = b"\xc0\xb6\xff\xfe"
TRAVERSAL = "../../../../outside/written"
MIB = 1 << 20

Damage = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    """One kind of damage to the cohort that ``write_hospital`` makes.

    ``excluded`` and ``warned`` are the codes that must be told, each once unless it stands there twice, and
    no other; a finding is about ``patient``. ``usable`` patients are prepared. ``code`` is the exit code.
    """

    name: str
    breaks: Damage
    excluded: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    patient: str = "P2"
    usable: int = 3
    code: int = 0
    layout: str = "dicom"


def write_hospital(folder: Path) -> None:
    """Write three whole patients; of the first the sequences lie apart, so that it is registered."""
    for number, (patient, sequences) in enumerate(SEQUENCES.items()):
        for count, modality in enumerate(sequences, 1):
            head = small_head(number, modality, apart_mm=3.0 * (count == 2 and patient == "P1"))
            write_series(
                folder / patient / f"s{count}", head, PROTOCOLS[modality], patient=patient, number=count
            )
    (folder / "participants.tsv").write_text(TABLE, encoding="utf-8")


@cache
def small_head(patient: int, modality: Modality, apart_mm: float = 0.0) -> Volume:
    """Return a stripped brain of smooth texture, shape (24, 27, 21); T2 has the others' contrast inverted."""
    axes = [(np.arange(n) - (n - 1) / 2) * SPACING_MM + apart_mm for n in SHAPE]
    inside = sum(np.ix_(*[(axis / radius) ** 2 for axis, radius in zip(axes, (66, 82, 64), strict=True)])) < 1
    points = np.stack(np.meshgrid(*[axis / 6 + 20 for axis in axes], indexing="ij"))

    def texture(seed: int) -> Any:
        rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 40, 40)), 1.6)
        return 100 + 800 * ndimage.map_coordinates((rough - rough.min()) / np.ptp(rough), points, order=1)

    shared, own = texture(1000 + patient), texture(10 * patient + tuple(Modality).index(modality))
    values = 0.8 * (1000 - shared if modality is Modality.T2 else shared) + 0.2 * own
    matrix = np.diag([SPACING_MM] * 3 + [1.0])
    matrix[:3, 3] = [axis[0] - apart_mm for axis in axes]
    return Volume(np.where(inside, np.rint(values), 0).astype(np.float32), matrix)


def bad(folder: Path) -> list[Path]:
    """Return the files of the series that is damaged, in order."""
    return sorted((folder / BAD).iterdir())


# Damage to files -----------------------------------------------------------------------------------------


def _one(change: Callable[[Path], object], folder: Path) -> None:
    change(bad(folder)[9])


def _each(change: Callable[[Path], object], folder: Path) -> None:
    for path in bad(folder):
        change(path)


def _set(folder: Path, **values: Any) -> None:
    for path in bad(folder):
        edit(path, **values)


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _put(tag: tuple[int, int], kind: bytes, text: bytes) -> Callable[[Path], object]:
    """Put a value of any length in an element's place."""
    even = text + b" " * (len(text) % 2)

    def change(content: bytes) -> bytes:
        place = content.index(struct.pack("<HH2s", *tag, kind))
        (length,) = struct.unpack_from("<H", content, place + 6)
        return content[: place + 6] + struct.pack("<H", len(even)) + even + content[place + 8 + length :]

    return _bytes(change)


def _insert(element: bytes, before: bytes = b"\x08\x00\x60\x00CS") -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        place = content.index(before)
        return content[:place] + element + content[place:]

    return change


PIXELS = b"\xe0\x7f\x10\x00OW"
OPEN_ITEM = struct.pack("<HH2sHI", 0x0029, 0x1010, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
CLOSE_ITEM = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"


def _nested(depth: int) -> bytes:
    """Return private sequences in each other, whose lengths are not told."""
    return OPEN_ITEM * depth + CLOSE_ITEM * depth


def _nested_with_lengths(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
        content = struct.pack("<HH2sHI", 0x0029, 0x1010, b"SQ", 0, len(item)) + item
    return content


def _many_items() -> bytes:
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 400_000
    return struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, len(items)) + items


def _endless_value() -> bytes:
    return struct.pack("<HH2sHI", 8, 0x5A, b"OB", 0, 0xFFFFFFF0)


@cache
def zeros_deflated(mebibytes: int, wbits: int) -> bytes:
    """Return a stream that unpacks to so many MiB of zeros, a thousandth as long."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    start = squeezer.compress(bytes(MIB)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush a block does not refer to anything before it, so it may be repeated.
    block = squeezer.compress(bytes(MIB)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (mebibytes - 1) + squeezer.flush()


def _gzip_bomb(path: Path) -> None:
    path.write_bytes(zeros_deflated(4096, 31))


def _deflated_bomb(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM" + meta_bytes(DEFLATED) + zeros_deflated(4096, -15))


def _jpeg_of_nothing(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = LOSSLESS
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xff" + bytes(400) + b"\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)


def _sparse(size: int, path: Path) -> None:
    os.truncate(path, size)


# Damage to the folder ------------------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    # The name of a socket has at most 108 bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _renamed(rename: Callable[[str], str | bytes], folder: Path) -> None:
    for path in bad(folder):
        name = os.fsencode(rename(path.name))
        os.rename(path, os.fsencode(path.parent) + b"/" + name)  # noqa: PTH104 - a name need not be text


def _noise_named(name: str | bytes, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder / BAD) + b"/" + os.fsencode(name))).write_bytes(b"no DICOM")


def _stranger(name: str | bytes, folder: Path) -> None:
    """A whole patient's folder that no row of the table speaks of."""
    shutil.copytree(folder / "P2", os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))


def _linked_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / BAD, outside / "series")
    (folder / BAD).symlink_to(outside / "series")


def _linked_files(folder: Path) -> None:
    outside = folder.parent / "outside"
    for path in bad(folder):
        shutil.move(path, outside / path.name)
        path.symlink_to(outside / path.name)


def _loop(folder: Path) -> None:
    (folder / "P2" / "again").symlink_to(folder / "P2")
    (folder / "P2" / "circle").symlink_to("circle")


def _deep(folder: Path) -> None:
    place = folder / "P2" / Path(*["deep"] * 20)
    place.parent.mkdir(parents=True)
    shutil.move(folder / BAD, place)


def _long(folder: Path) -> None:
    place = folder / "P2" / ("n" * 250) / ("m" * 250)
    place.parent.mkdir()
    shutil.move(folder / BAD, place)
    for path in place.iterdir():
        path.rename(place / f"{path.stem.ljust(240, 'x')}.dcm")


def _write(name: str, content: bytes | str, folder: Path) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _map_linked(folder: Path) -> None:
    (folder / "series_map.csv").symlink_to("/etc/passwd")


def _more_rows(row: str, folder: Path) -> None:
    with (folder / "participants.tsv").open("a", encoding="utf-8") as file:
        file.write(row + "\n")


def _row(old: str, new: str, folder: Path) -> None:
    path = folder / "participants.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def _html_patient(folder: Path) -> None:
    """P2 by another name: what a page would run if it were not escaped."""
    (folder / "P2").rename(folder / EVIL)
    _row("P2", EVIL, folder)
    for path in (folder / EVIL).rglob("*.dcm"):
        edit(path, PatientID=EVIL)


# Other images --------------------------------------------------------------------------------------------


def _protocol(modality: Modality, **changed: Any) -> Protocol:
    base = PROTOCOLS[modality]
    given = {name: getattr(base, name) for name in Protocol.__dataclass_fields__}
    return Protocol(**given | changed)


def _add(
    modality: Modality, folder: Path, *, head: Volume | None = None, patient: str = "P2", **changed: Any
) -> None:
    image = small_head(7, modality) if head is None else head
    write_series(folder / "P2" / "more", image, _protocol(modality, **changed), patient=patient, number=9)


def _two_flairs(folder: Path) -> None:
    for number in (8, 9):
        head = small_head(1, Modality.FLAIR, 0.0)
        varied = Volume(head.array * (1 + number), head.affine)
        place = folder / "P2" / f"flair{number}"
        write_series(place, varied, PROTOCOLS[Modality.FLAIR], patient="P2", number=number)


def _same_image(folder: Path) -> None:
    shutil.rmtree(folder / BAD)
    head = small_head(1, Modality.T1)
    write_series(folder / BAD, head, PROTOCOLS[Modality.T1CE], patient="P2", number=2)


def _short_stack(folder: Path) -> None:
    for path in bad(folder)[4:]:
        path.unlink()


def _gaps(folder: Path) -> None:
    bad(folder)[9].unlink()


def _double(folder: Path) -> None:
    copy = folder / BAD / "copy.dcm"
    shutil.copy(bad(folder)[3], copy)
    edit(copy, SOPInstanceUID=generate_uid())


def _one_identity(folder: Path) -> None:
    """Every slice says that it is the first one."""
    uid = pydicom.dcmread(bad(folder)[0]).SOPInstanceUID
    _set(folder, SOPInstanceUID=uid)


def _tilted(folder: Path) -> None:
    for number, path in enumerate(bad(folder)):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y + 0.9 * number, z])


def _three_ways(folder: Path) -> None:
    for path in bad(folder)[::2]:
        edit(path, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


def _two_in_series(folder: Path) -> None:
    for path in bad(folder)[7:]:
        edit(path, PatientID="P9")


def _two_in_folder(folder: Path) -> None:
    _set(folder, PatientID="P9")


def _of_another(folder: Path) -> None:
    """The study of X in Y's folder."""
    shutil.rmtree(folder / BAD)
    shutil.copytree(folder / "P3" / "s1", folder / BAD)


def _all_of_another(folder: Path) -> None:
    for path in (folder / "P2").rglob("*.dcm"):
        edit(path, PatientID="P3")


def _same_series(folder: Path) -> None:
    uid = pydicom.dcmread(
        folder / "P2" / "s1" / bad(folder)[0].name.replace("IM002", "IM001")
    ).SeriesInstanceUID
    _set(folder, SeriesInstanceUID=uid)


def _enhanced(folder: Path, **changed: Any) -> None:
    shutil.rmtree(folder / "P2" / "s3")
    path = write_enhanced(
        folder / "P2" / "s3" / "whole.dcm", small_head(1, Modality.T2), patient="P2", **changed
    )
    assert path.is_file()


def _constant(path: Path) -> None:
    edit(path, PixelData=bytes(len(pydicom.dcmread(path).PixelData)))


def _private_texts(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x0029, "EVIL", create=True)
    item = Dataset()
    item.PatientName = "X" * 300
    block.add_new(0x01, "UN", b"\xff" * 5000)
    block.add_new(0x02, "SQ", [item])
    dataset.save_as(path)


def _frames(path: Path, count: int | str, **more: Any) -> None:
    edit(path, **more)
    dataset = pydicom.dcmread(path)
    text = str(count).encode()
    element = struct.pack("<HH2sH", 0x28, 8, b"IS", len(text) + len(text) % 2) + text + b" " * (len(text) % 2)
    del dataset
    path.write_bytes(_insert(element, b"\x28\x00\x10\x00US")(path.read_bytes()))


MR_ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"

HOSTILE: tuple[Hostile, ...] = (
    Hostile("nothing", lambda _: None),
    # one file of a series
    Hostile(
        "a file cut in its header",
        partial(_one, _bytes(lambda old: old[:600])),
        (),
        ("truncated", "missing_slices"),
    ),
    Hostile(
        "a file cut in its pixels",
        partial(_one, _bytes(lambda old: old[:-700])),
        (),
        ("truncated", "missing_slices"),
    ),
    Hostile("every file cut", partial(_each, _bytes(lambda old: old[:-1])), (), ("truncated",)),
    Hostile(
        "an empty file",
        partial(_one, lambda path: path.write_bytes(b"")),
        (),
        ("not_dicom", "missing_slices"),
    ),
    Hostile(
        "a preamble only",
        partial(_one, _bytes(lambda old: old[:132])),
        (),
        ("transfer_syntax", "missing_slices"),
    ),
    Hostile(
        "a text named .dcm",
        partial(_one, lambda path: path.write_text("list of patients")),
        (),
        ("not_dicom", "missing_slices"),
    ),
    Hostile("gzip bomb named .dcm", partial(_one, _gzip_bomb), (), ("not_dicom", "missing_slices")),
    Hostile("deflated bomb", partial(_one, _deflated_bomb), (), ("transfer_syntax", "missing_slices")),
    Hostile(
        "a terabyte of holes", partial(_one, partial(_sparse, 1 << 40)), (), ("too_large", "missing_slices")
    ),
    # transfer syntax
    Hostile(
        "raw pixels called JPEG", partial(_each, lambda p: set_syntax(p, LOSSLESS)), (), ("transfer_syntax",)
    ),
    Hostile("raw pixels called RLE", partial(_each, lambda p: set_syntax(p, RLE)), (), ("transfer_syntax",)),
    Hostile("deflated", partial(_each, lambda p: set_syntax(p, DEFLATED)), (), ("transfer_syntax",)),
    Hostile("video", partial(_each, lambda p: set_syntax(p, VIDEO)), (), ("transfer_syntax",)),
    Hostile(
        "no syntax of DICOM", partial(_each, lambda p: set_syntax(p, "../../etc")), (), ("transfer_syntax",)
    ),
    Hostile("says big endian", partial(_each, lambda p: set_syntax(p, BIG_ENDIAN)), (), ("header",)),
    Hostile("a JPEG of nothing", partial(_each, _jpeg_of_nothing), ("conversion",), usable=2),
    # what the header claims
    Hostile("65535 x 65535", partial(_set, Rows=65535, Columns=65535), (), ("dimensions",)),
    Hostile(
        "3 TB",
        partial(_each, partial(_frames, count=4096, Rows=32768, Columns=16384, SOPClassUID=MR_ENHANCED)),
        (),
        ("dimensions",),
    ),
    Hostile("two milliard frames", partial(_each, partial(_frames, count=2147483647)), (), ("dimensions",)),
    Hostile("less than no frames", partial(_each, partial(_frames, count=-5)), (), ("dimensions",)),
    Hostile("frames that are no number", partial(_each, partial(_frames, count="nan"))),
    Hostile("no rows", partial(_set, Rows=0), (), ("dimensions",)),
    Hostile(
        "private sequences 1000 deep", partial(_each, _bytes(_insert(_nested(1000), PIXELS))), (), ("header",)
    ),
    Hostile("private sequences 60 deep", partial(_each, _bytes(_insert(_nested(60), PIXELS)))),
    Hostile(
        "private sequences 1000 deep, with lengths",
        partial(_each, _bytes(_insert(_nested_with_lengths(1000), PIXELS))),
    ),
    Hostile(
        "items without end",
        partial(_one, _bytes(_insert(_many_items(), PIXELS))),
        (),
        ("header_too_large", "missing_slices"),
    ),
    Hostile(
        "a value of 4 GB",
        partial(_one, _bytes(_insert(_endless_value()))),
        (),
        ("truncated", "missing_slices"),
    ),
    Hostile("private texts", partial(_each, _private_texts)),
    Hostile(
        "place that is no number", partial(_each, _put((0x20, 0x32), b"DS", rb"nan\0\0")), (), ("geometry",)
    ),
    Hostile("place at infinity", partial(_each, _put((0x20, 0x32), b"DS", rb"0\-inf\0")), (), ("geometry",)),
    Hostile(
        "axes that are no number",
        partial(_each, _put((0x20, 0x37), b"DS", rb"1\0\0\0\nan\0")),
        (),
        ("geometry",),
    ),
    Hostile("axes of nothing", partial(_set, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), (), ("geometry",)),
    Hostile("no place", partial(_set, ImagePositionPatient=None), (), ("geometry",)),
    Hostile("pixels of no size", partial(_set, PixelSpacing=[0, 0]), (), ("spacing",)),
    Hostile("pixels of negative size", partial(_set, PixelSpacing=[-7, 7]), (), ("spacing",)),
    Hostile("pixels of 90 mm", partial(_set, PixelSpacing=[90, 90]), (), ("spacing",)),
    Hostile("pixels of a micrometre", partial(_set, PixelSpacing=[0.001, 0.001]), (), ("spacing",)),
    Hostile("scale that is no number", partial(_each, _put((0x28, 0x1053), b"DS", b"nan")), (), ("header",)),
    # what kind of picture
    Hostile("RGB", partial(_set, PhotometricInterpretation="RGB", SamplesPerPixel=3), (), ("dtype",)),
    Hostile("palette", partial(_set, PhotometricInterpretation="PALETTE COLOR"), (), ("dtype",)),
    Hostile("inverted", partial(_set, PhotometricInterpretation="MONOCHROME1"), (), ("dtype",)),
    Hostile("1 bit", partial(_set, BitsAllocated=1), (), ("dtype",)),
    Hostile("12 bits", partial(_set, BitsAllocated=12), (), ("dtype",)),
    Hostile("64 bits", partial(_set, BitsAllocated=64), (), ("dtype",)),
    Hostile("a CT", partial(_set, SOPClassUID=CT, Modality="CT"), (), ("sop_class",)),
    Hostile("a report", partial(_set, SOPClassUID=REPORT, Modality="SR"), (), ("sop_class",)),
    Hostile("a secondary capture", partial(_set, SOPClassUID=CAPTURE, Modality="OT"), (), ("sop_class",)),
    Hostile("a DICOMDIR by another name", partial(_set, SOPClassUID=DIRECTORY), (), ("sop_class",)),
    Hostile("a DICOMDIR", partial(_write, "P2/DICOMDIR", bytes(128) + b"DICM")),
    Hostile("text burned in", partial(_set, BurnedInAnnotation="YES"), (), ("burned_in",)),
    Hostile("every voxel alike", partial(_each, _constant), ("constant",), usable=2),
    # the stack
    Hostile("a slice missing", _gaps, (), ("missing_slices",)),
    Hostile("a slice twice", _double, (), ("duplicate_slices",)),
    Hostile("one identity for all slices", _one_identity),
    Hostile("gantry tilted", _tilted, (), ("sheared",)),
    Hostile("three directions", _three_ways, (), ("mixed_orientation",)),
    Hostile("4 slices", _short_stack, (), ("too_few_slices",)),
    Hostile("two series of one identity", _same_series, (), ("duplicate_slices",)),
    Hostile("matrix changes", lambda f: [edit(p, Rows=20) for p in bad(f)[:5]], (), ("mixed_matrix",)),
    Hostile("several time points", partial(_enhanced, time_points=2), (), ("several_volumes",)),
    Hostile("enhanced, whole", _enhanced),
    # which sequence
    Hostile("a localizer", partial(_add, Modality.FLAIR, description="localizer"), (), ("localizer",)),
    Hostile(
        "a derived map",
        partial(_add, Modality.FLAIR, image_type=("DERIVED", "PRIMARY", "ADC")),
        (),
        ("derived",),
    ),
    Hostile("two FLAIRs", _two_flairs, (), ("not_chosen",)),
    Hostile("T1 offered as T1ce", _same_image, ("same_contents",), usable=2),
    Hostile(
        "a name that is a path",
        partial(_set, SeriesDescription=TRAVERSAL, ProtocolName="/etc/passwd"),
        (),
        ("sequence_doubt",),
    ),
    Hostile(
        "a name with HTML and escapes",
        partial(_set, SeriesDescription=EVIL, ProtocolName=ANSI),
        (),
        ("sequence_doubt",),
    ),
    Hostile("a name of 300 characters", partial(_set, SeriesDescription="t1 " + "x" * 297), (), ()),
    Hostile("no character set", partial(_set, SpecificCharacterSet=["ISO 2022 IR 999", "../GB"])),
    # whose
    Hostile("id that is a path", lambda f: [edit(p, PatientID=TRAVERSAL) for p in (f / "P2").rglob("*.dcm")]),
    Hostile("two patients in a series", _two_in_series, (), ("mixed_patients",)),
    Hostile("two patients in a folder", _two_in_folder, (), ("other_patient",)),
    Hostile("X in Y's folder", _of_another, (), ("other_patient", "other_patient")),
    Hostile("all of X in Y's folder", _all_of_another, ("other_patient",), usable=2),
    # the folder
    Hostile("a folder linked out", _linked_out, (), ("link_outside",)),
    Hostile("files linked out", _linked_files, (), ("link_outside",)),
    Hostile("links in a circle", _loop, (), ("link_outside",)),
    Hostile("a pipe", partial(_one, _pipe), (), ("not_a_file", "missing_slices")),
    Hostile("a socket", partial(_one, _socket), (), ("not_a_file", "missing_slices")),
    Hostile("20 folders deep", _deep, (), ("too_deep",)),
    Hostile("names of 250 letters", _long),
    Hostile("names in another script", partial(_renamed, lambda n: f"头颅 Ünïcode {n}")),
    Hostile("names that are no text", partial(_renamed, lambda n: UNDECODABLE + n.encode())),
    Hostile("names with escapes", partial(_renamed, lambda n: ANSI + n)),
    Hostile("names that are commands", partial(_renamed, lambda n: f"-o $(touch outside);`id`|{n}")),
    Hostile("noise named in no text", partial(_noise_named, UNDECODABLE + b".dcm"), (), ("not_dicom",)),
    Hostile("noise named with escapes", partial(_noise_named, ANSI + ".dcm"), (), ("not_dicom",)),
    Hostile("noise named as HTML", partial(_noise_named, EVIL + ".dcm"), (), ("not_dicom",)),
    Hostile("noise named as a path", partial(_noise_named, "x..%2f..%2f..\\..\\etc.dcm"), (), ("not_dicom",)),
    Hostile(
        "a stranger with escapes",
        partial(_stranger, ANSI),
        ("not_in_table",),
        patient="?[2J?[31mred?and a line",
    ),
    Hostile("a stranger in no text", partial(_stranger, UNDECODABLE), ("not_in_table",), patient="????"),
    Hostile("a patient named as HTML", _html_patient, patient=EVIL),
    # beside the images
    Hostile("a row that is a path", partial(_more_rows, "../P2\t1\t0\t0"), ("patient_id",), patient=""),
    Hostile(
        "a map of paths",
        partial(_write, "series_map.csv", f"description,modality\n{TRAVERSAL},t1\n/etc/passwd,ignore\n"),
    ),
    Hostile(
        "a map to no sequence",
        partial(_write, "series_map.csv", "description,modality\nt1,../../etc\n"),
        code=2,
        usable=0,
    ),
    Hostile(
        "a map of a broken pattern",
        partial(_write, "series_map.csv", "description,modality\n/(((/,t1\n"),
        code=2,
        usable=0,
    ),
    Hostile("a map linked to another file", _map_linked, code=2, usable=0),
    Hostile("a map that is a pipe", lambda f: _pipe(f / "series_map.csv"), code=2, usable=0),
    Hostile("a table that is a pipe", lambda f: _pipe(f / "participants.tsv"), code=4, usable=0),
    Hostile("a table of a terabyte", lambda f: _sparse(1 << 40, f / "participants.tsv"), code=4, usable=0),
    Hostile(
        "a description that is a pipe",
        lambda f: _pipe(f / "dataset_description.json"),
        (),
        ("description",),
        patient="",
    ),
    Hostile(
        "a description nested without end",
        partial(_write, "dataset_description.json", "[" * 100_000),
        (),
        ("description",),
        patient="",
    ),
    Hostile(
        "a pipe, layout to be found",
        partial(_one, _pipe),
        (),
        ("not_a_file", "missing_slices"),
        layout="auto",
    ),
)


# The same for NIfTI, on the cohort of ``bad_cohorts.write_cohort`` ------------------------------------------


def _header(**fields: Any) -> bytes:
    """Return a good header of int16 voxels, some of its fields changed, up to the first voxel."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((24, 27, 21))
    header.set_zooms((8.0, 8.0, 8.0))
    header.set_sform(affine(), code=1)
    for name, value in fields.items():
        header[name] = value
    header["magic"], header["vox_offset"] = b"n+1", fields.get("vox_offset", 352)
    return header.binaryblock + b"\0\0\0\0"


def _nifti(content: bytes, folder: Path) -> None:
    volume(folder).write_bytes(content)


def _inflating(mebibytes: int, folder: Path, **fields: Any) -> None:
    """A header, and then a second member of the gzip stream: zeros without end."""
    _nifti(gzip.compress(_header(**fields)) + zeros_deflated(mebibytes, 31), folder)


def _in_members(folder: Path) -> None:
    """The zeros in as many streams of their own."""
    _nifti(gzip.compress(_header()) + gzip.compress(bytes(MIB)) * 4096, folder)


def _plain(change: Damage, folder: Path) -> None:
    """The damaged file without gzip, in place of the good one."""
    path = volume(folder).with_suffix("")
    path.write_bytes(_header() + brain(11).astype(np.int16).tobytes(order="F"))
    volume(folder).unlink()
    change(path)


def _mask_bomb(folder: Path) -> None:
    volume(folder, "seg").write_bytes(gzip.compress(_header()) + zeros_deflated(4096, 31))


DIM = np.array([3, 32767, 32767, 32767, 1, 1, 1, 1], np.int16)
LARGE = np.array([3, 1290, 1290, 1290, 1, 1, 1, 1], np.int16)
FINE = np.array([1, 0.4, 0.4, 0.4, 1, 1, 1, 1], np.float32)
FINE_ROWS: dict[str, Any] = {f"srow_{name}": np.eye(4)[row] * 0.4 for row, name in enumerate("xyz")}
FOUR_D = np.array([4, 24, 27, 21, 32767, 1, 1, 1], np.int16)

BOMBS: tuple[Hostile, ...] = (
    Hostile("4 GiB of zeros behind a small header", partial(_inflating, 4096), ("too_large",), usable=2),
    Hostile("4 GiB of zeros in 4096 streams", _in_members, ("too_large",), usable=2),
    Hostile(
        "4 GiB of zeros, as the header says",
        partial(_inflating, 4096, dim=LARGE, pixdim=FINE, **FINE_ROWS),
        ("dimensions",),
        usable=2,
    ),
    Hostile("70 TB", lambda f: _nifti(gzip.compress(_header(dim=DIM)), f), ("dimensions",), usable=2),
    Hostile(
        "32767 time points",
        lambda f: _nifti(gzip.compress(_header(dim=FOUR_D)), f),
        ("dimensions",),
        usable=2,
    ),
    Hostile(
        "voxels behind the end of the world",
        lambda f: _nifti(gzip.compress(_header(vox_offset=3e38)), f),
        ("header",),
        usable=2,
    ),
    Hostile("a terabyte of holes", partial(_plain, partial(_sparse, 1 << 40)), ("too_large",), usable=2),
    Hostile("a pipe", lambda f: _pipe(volume(f)), ("not_a_file",), usable=2),
    Hostile("a socket", lambda f: _socket(volume(f)), ("not_a_file",), usable=2),
    Hostile(
        "a link to a device",
        lambda f: (volume(f).unlink(), volume(f).symlink_to("/dev/zero")),
        ("not_a_file",),
        usable=2,
    ),
    Hostile("a mask that is a bomb", _mask_bomb, warned=("mask",)),
    Hostile("a table that is a pipe", lambda f: _pipe(f / "participants.tsv"), code=4, usable=0),
)
