"""One header: what is kept of it, what never is, and that nothing in it can do harm."""

import contextlib
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import keyword_for_tag

from fedglioma.data import dicom_file
from fedglioma.data.dicom import Limits, stack
from fedglioma.data.dicom_header import FileHeader, Frame, SeriesText, TechnicalHeader, read_header
from fedglioma.data.volume import VolumeError
from fedglioma.pseudonym import pseudonym
from tests.dicom_fixture import SECRET, edit, head, write_enhanced, write_t2

PLANTED = {
    "PatientName": "GEHEIM^ANNA",
    "PatientID": "ID-GEHEIM-77",
    "PatientBirthDate": "19551224",
    "OtherPatientIDs": "GEHEIM-ALT",
    "InstitutionName": "GEHEIM Klinik",
    "InstitutionAddress": "GEHEIM Gasse 5",
    "ReferringPhysicianName": "GEHEIM^DOKTOR",
    "StudyDate": "20240531",
    "SeriesDate": "20240531",
    "AcquisitionDate": "20240531",
    "AcquisitionTime": "235911",
    "AccessionNumber": "GEHEIM-A1",
    "StudyDescription": "Kopf GEHEIM ANNA",
    "SeriesDescription": "t2_tse_tra GEHEIM ANNA",
    "ProtocolName": "GEHEIM Protokoll",
    "Manufacturer": "GEHEIM & Soehne",
    "ManufacturerModelName": "Skyra GEHEIM 19551224",
    "StationName": "GEHEIMMR1",
    "ContrastBolusAgent": "GEHEIM-MITTEL",
    "ScanningSequence": ["SE", "GEHEIM"],
    "SequenceVariant": "GEHEIM",
    "PatientComments": "GEHEIM wohnt in der GEHEIM Gasse",
    "ImageComments": "GEHEIM",
    "SeriesInstanceUID": "1.2.19551224.77",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_t2(tmp_path)[0]


def test_only_technical_values_are_kept(path: Path) -> None:
    edit(path, **PLANTED, PatientAge="093Y", PatientSex="F")
    header = read_header(path, SECRET)
    shown = repr(header) + header.technical.model_dump_json()
    assert "GEHEIM" not in shown.upper()
    assert not any(text in shown for text in ("19551224", "20240531", "235911", "77"))
    assert header.patient == pseudonym(SECRET, "ID-GEHEIM-77")
    technical = header.technical
    assert (technical.manufacturer, technical.model) == ("other", "skyra")
    assert (technical.age, technical.sex, technical.contrast) == (90, "F", True)
    assert technical.scanning_sequence == ("SE",)


def test_names_do_not_leave_an_enhanced_file_either(tmp_path: Path) -> None:
    header = read_header(write_enhanced(tmp_path / "e.dcm", head()), SECRET)
    assert "PLANTED" not in repr(header)


@pytest.mark.parametrize(
    ("written", "vendor", "model"),
    [("GE MEDICAL SYSTEMS", "GE", "Signa HDxt"), ("Philips Healthcare", "Philips", "Ingenia"),
     ("UIH", "United Imaging", "uMR 790"), ("SIEMENS", "Siemens", "TrioTim")],
)  # fmt: skip
def test_vendors_and_models_are_known_by_name(path: Path, written: str, vendor: str, model: str) -> None:
    edit(path, Manufacturer=written, ManufacturerModelName=model)
    technical = read_header(path, SECRET).technical
    assert (technical.manufacturer, technical.model) == (vendor, model.lower())


@pytest.mark.parametrize(
    ("written", "years"), [("054Y", 54), ("42", 42), ("018M", 1), ("100Y", 90), ("x", None), ("", None)]
)
def test_age(path: Path, written: str, years: int | None) -> None:
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00101010, "LO", written)
    dataset.save_as(path)
    assert read_header(path, SECRET).technical.age == years


def test_field_strength_in_gauss_is_understood(path: Path) -> None:
    edit(path, MagneticFieldStrength=15000)
    assert read_header(path, SECRET).technical.field_strength_t == 1.5


@pytest.mark.parametrize("agent", ["", "NONE", "no", "N/A"])
def test_an_agent_that_is_none_is_none(path: Path, agent: str) -> None:
    edit(path, ContrastBolusAgent=agent)
    assert not read_header(path, SECRET).technical.contrast


def test_fillers_of_deidentification_are_nobody(path: Path) -> None:
    edit(path, PatientID="ANONYMOUS")
    assert read_header(path, SECRET).patient == ""


@pytest.mark.parametrize(
    ("charset", "codec"), [("GB18030", "gb18030"), ("ISO_IR 192", "utf-8"), ("", "utf-8")]
)
def test_chinese_descriptions_are_read(path: Path, charset: str, codec: str) -> None:
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet = charset
    dataset.save_as(path)
    marker = b"t2_tse_tra"
    content = path.read_bytes()
    text = "T1增强".encode(codec)
    path.write_bytes(content.replace(marker, text.ljust(len(marker))))
    assert read_header(path, SECRET).text.description == "T1增强"


@cache
def start(kind: str = "classic") -> bytes:
    """A good file's bytes."""
    with TemporaryDirectory() as name:
        if kind == "enhanced":
            return write_enhanced(Path(name, "e.dcm"), head()).read_bytes()
        return write_t2(Path(name))[0].read_bytes()


def judged(content: bytes, folder: Path) -> None:
    path = folder / "fuzz.dcm"
    path.write_bytes(content)
    refused = None
    try:
        header = read_header(path, SECRET)
    except VolumeError as error:
        refused = error
    if refused:
        assert refused.code.replace("_", "").isalpha()
        assert refused.reason.isprintable()
    else:
        assert TechnicalHeader.model_validate_json(header.technical.model_dump_json()) == header.technical
        assert all(len(frame.position) == 3 for frame in header.frames)


FUZZ = settings(max_examples=150, deadline=None)


@pytest.mark.parametrize(("kind", "last"), [("classic", 1400), ("enhanced", 6000)])
@FUZZ
@given(data=st.data())
def test_any_bytes_are_judged(tmp_path: Path, kind: str, last: int, data: st.DataObject) -> None:
    change = st.tuples(st.integers(132, last), st.integers(0, 255))
    content = bytearray(start(kind))
    for place, value in data.draw(st.lists(change, min_size=1, max_size=12)):
        content[place % len(content)] = value
    judged(bytes(content), tmp_path)


def test_a_group_of_an_unknown_kind_is_a_reason(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "e.dcm", head())
    content = path.read_bytes()
    place = content.index(b"\x00\x52\x29\x92SQ")
    path.write_bytes(content[: place + 4] + b"S\xa1" + content[place + 6 :])
    with pytest.raises(VolumeError):
        read_header(path, SECRET)


@FUZZ
@given(length=st.integers(0, 2500), tail=st.binary(max_size=64))
def test_any_end_is_judged(tmp_path: Path, length: int, tail: bytes) -> None:
    judged(start()[:length] + tail, tmp_path)


TAGS = [
    "ImageType", "SOPClassUID", "Modality", "Manufacturer", "SeriesDescription", "PatientID", "PatientAge",
    "ScanningSequence", "RepetitionTime", "EchoTime", "InversionTime", "ImagePositionPatient", "PixelSpacing",
    "ImageOrientationPatient", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "SpecificCharacterSet",
]  # fmt: skip


@FUZZ
@given(
    values=st.dictionaries(
        st.sampled_from(TAGS),
        st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode), st.just(b"nan\\1e400\\-0")),
        min_size=1,
        max_size=5,
    )
)
def test_any_values_are_judged(tmp_path: Path, values: dict[str, bytes]) -> None:
    content = start()
    for keyword, value in values.items():
        tag = pydicom.tag.Tag(keyword)
        head_bytes = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
        place = content.find(head_bytes)
        if place < 0:
            continue
        size = int.from_bytes(content[place + 6 : place + 8], "little")
        even = value + b" " * (len(value) % 2)
        content = content[: place + 6] + len(even).to_bytes(2, "little") + even + content[place + 8 + size :]
    judged(content, tmp_path)


NUMBERS = st.one_of(st.floats(-1e5, 1e5), st.sampled_from([0.0, 1.0, -1.0, 5.0, 1e-9]))


@FUZZ
@given(
    frames=st.lists(
        st.tuples(
            st.tuples(*[NUMBERS] * 3), st.sampled_from([(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, 1)]), NUMBERS
        ),
        min_size=1,
        max_size=20,
    ),
    rows=st.integers(16, 4096),
)
def test_any_places_of_slices_are_judged(
    frames: list[tuple[tuple[float, ...], tuple[int, ...], float]], rows: int
) -> None:
    headers = [
        FileHeader(
            path=Path(f"{number}"),
            uid="1",
            patient="",
            text=SeriesText("t2_tse"),
            technical=TechnicalHeader(),
            frames=(Frame(position, orientation, (abs(size) + 1e-6,) * 2),),
            columns=64,
            rows=rows,
            number=1,
            acquired="",
        )
        for number, (position, orientation, size) in enumerate(frames)
    ]
    with contextlib.suppress(VolumeError):
        ordered, geometry = stack(headers, Limits(min_slices=2, min_extent_mm=0))
        assert sorted(h.path for h in ordered) == sorted(h.path for h in headers)
        assert np.isfinite(np.linalg.inv(geometry.affine)).all()


def test_the_page_for_data_managers_lists_every_tag_that_is_read_and_no_other() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "data-manager.md"
    section = page.read_text(encoding="utf-8").partition("### What of a header is looked at")[2]
    lines = section.partition("## A dry run")[0].splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| ")]
    listed = {keyword for row in rows for keyword in re.findall(r"`(\w+)`", row)}
    read = {tag: keyword_for_tag(tag) for tag in dicom_file._READ} | {0x00020010: "TransferSyntaxUID"}
    assert {keyword for keyword, (tag, _) in dicom_file._TAGS.items() if read[tag] != keyword} == set()
    assert listed == set(read.values())
