"""Hospitals whose every field of text holds something that says who the patients are, and the search for it.

What was planted is sorted by where: words of ``HEADERS`` and ``COLUMNS`` must be nowhere at all; those of
``NAMES``, ``CELLS`` and ``IDS`` may stand in the hospital's own reports and on its terminal, no further.
"""

import base64
import gzip
import hashlib
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pydicom

from tests.bad_cohorts import MODALITIES, affine, brain
from tests.hostile_dicom import write_hospital

ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1", "gb18030")
NAME, UMLAUT, BORN = "GEHEIMRAT", "KÖNIGSMÖRDER", "19551224"
HEADERS = (
    NAME,
    UMLAUT,
    "ANNELIESE",
    BORN,
    "1955-12-24",
    "PIDX774411",
    "ALTNUMMER88",
    "KLINIKUMNIMMERLAND",
    "TRIFTGASSE",
    "ACC7788991",
    "03715550199",
    "ONKELKURT",
    "PRIVATOSKAR",
    "SCHWESTERIRMGARD",
    "DOKTORMABUSE",
    "STATIONZEPPELIN",
    "20190413",
    "031742999",
    "774411990011",
    "STRASSENBAHNER",
)
COLUMNS = ("EXTRASPALTE", "19880808", "0371-999000")
NAMES = ("NAMENSGEBER", "19660606")
CELLS = ("ZELLENTEXT", "19770707")
MAP = ("KARTENNOTIZ",)
IDS = ("NORDPAT-7001", "NORDPAT-7002", "NORDPAT-7003", "SUEDPAT-8001", "SUEDPAT-8002", "SUEDPAT-8003")
NOWHERE = (*HEADERS, *COLUMNS, *MAP)
AT_HOME = (*NAMES, *CELLS, *IDS)

TABLE = "participant_id\tidh\tatrx\tcodel_1p19q\tage\tname\tborn\tphone\n"


def write_north(folder: Path) -> None:
    """DICOM, with findings: a file that is none, a series that is sheared, an age that is a text."""
    write_hospital(folder)
    for number, patient in enumerate(("P1", "P2", "P3")):
        place = folder / IDS[number]
        (folder / patient).rename(place)
        for series in sorted(place.iterdir()):
            _poison_series(series, number)
            series.rename(place / f"{NAMES[0]}_{NAMES[1]}_{series.name}")
    for path in (folder / IDS[1]).rglob("*.dcm"):
        path.rename(path.with_name(f"{NAMES[0]}^{NAMES[1]}_{path.name}"))
    (folder / IDS[1] / f"{NAMES[0]}_note.dcm").write_bytes(b"no DICOM")
    (folder / IDS[1] / f"{NAMES[0]}_s2").mkdir()
    moved = next((folder / IDS[1]).glob("*_s3"))
    for number, path in enumerate(sorted(moved.iterdir())):
        _edit(path, ImagePositionPatient=[0.9 * number, 0, 7 * number])
    text = "".join(
        f"{patient}\t{idh}\t{atrx}\t0\t{age}\t{COLUMNS[0]}\t{COLUMNS[1]}\t{COLUMNS[2]}\n"
        for patient, idh, atrx, age in zip(
            IDS[:3], "101", "001", ("41", f"{CELLS[0]} {CELLS[1]}", "38"), strict=True
        )
    )
    (folder / "participants.tsv").write_text(TABLE + text, encoding="utf-8")
    note = f"description,modality\n{MAP[0]} of {MAP[0]},ignore\n/^{MAP[0]}/,t2\n"
    (folder / "series_map.csv").write_text(note, encoding="utf-8")


def write_south(folder: Path) -> None:
    """NIfTI, with findings: one file cut off, one sequence twice in one patient."""
    for number, patient in enumerate(IDS[3:]):
        (folder / patient).mkdir(parents=True)
        for channel, modality in enumerate(MODALITIES):
            path = folder / patient / f"{patient}_{modality}.nii.gz"
            path.write_bytes(gzip.compress(_poisoned_nifti(brain(10 * number + channel)), 1))
    (folder / IDS[4] / f"{NAMES[0]}_{NAMES[1]}.nii.gz").write_bytes(b"of no layout")
    whole = folder / IDS[5] / f"{IDS[5]}_t1.nii.gz"
    whole.write_bytes(whole.read_bytes()[:-9])
    text = "".join(
        f"{patient}\t1\t0\t0\t{age}\t{COLUMNS[0]}\t{COLUMNS[1]}\t{COLUMNS[2]}\n"
        for patient, age in zip(IDS[3:], ("50", f"{CELLS[0]} {CELLS[1]}", "60"), strict=True)
    )
    (folder / "participants.tsv").write_text(TABLE + text, encoding="utf-8")


def write_ruin(folder: Path) -> None:
    """A hospital of which nothing can be used: no reason why may name anybody."""
    write_south(folder)
    for path in folder.rglob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:40])
    shutil.rmtree(folder / IDS[4])


def _edit(path: Path, **values: object) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def _poison_series(folder: Path, number: int) -> None:
    for path in sorted(folder.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        dataset.preamble = f"{NAME} {BORN} ".encode().ljust(128, b"\0")
        dataset.PatientName, dataset.PatientBirthDate = f"{NAME}^ANNELIESE^{UMLAUT}", BORN
        dataset.PatientID, dataset.OtherPatientIDs = f"PIDX774411-{number}", "ALTNUMMER88"
        dataset.PatientAddress, dataset.PatientTelephoneNumbers = "TRIFTGASSE 5", "03715550199"
        dataset.InstitutionName, dataset.InstitutionAddress = "KLINIKUMNIMMERLAND", "TRIFTGASSE 1"
        dataset.InstitutionalDepartmentName = "KLINIKUMNIMMERLAND Neuro"
        dataset.AccessionNumber, dataset.StudyID = "ACC7788991", "ACC7788991"
        dataset.ReferringPhysicianName, dataset.OperatorsName = "DOKTORMABUSE", "SCHWESTERIRMGARD"
        dataset.PerformingPhysicianName, dataset.Occupation = "DOKTORMABUSE", "STRASSENBAHNER"
        dataset.StationName = "STATIONZEPPELIN"
        for what in ("Study", "Series", "Acquisition", "Content"):
            setattr(dataset, f"{what}Date", "20190413")
            setattr(dataset, f"{what}Time", "031742.999999")
        dataset.PatientComments = dataset.ImageComments = f"{NAME} 031742999 ONKELKURT 1955-12-24"
        dataset.StudyDescription = f"Kopf ONKELKURT {NAME}"
        dataset.SeriesDescription = f"{dataset.SeriesDescription} ONKELKURT"
        dataset.ProtocolName = f"ONKELKURT {NAME}"
        dataset.Manufacturer, dataset.ManufacturerModelName = "KLINIKUMNIMMERLAND", f"Skyra {BORN}"
        dataset.ContrastBolusAgent = f"ONKELKURT {NAME}" if dataset.get("ContrastBolusAgent") else ""
        dataset.SequenceName = dataset.SequenceVariant = "ONKELKURT"
        dataset.DeviceSerialNumber, dataset.SoftwareVersions = "774411990011", "ONKELKURT"
        for what in ("Study", "Series"):
            uid = dataset[f"{what}InstanceUID"].value
            setattr(dataset, f"{what}InstanceUID", f"1.2.774411990011.{str(uid)[-20:].lstrip('0.')}")
        block = dataset.private_block(0x0029, "PRIVATOSKAR", create=True)
        block.add_new(0x01, "LO", f"PRIVATOSKAR {NAME}")
        block.add_new(0x02, "OB", f"PRIVATOSKAR {BORN}".encode())
        dataset.file_meta.SourceApplicationEntityTitle = "PRIVATOSKAR"
        dataset.save_as(path)


def _poisoned_nifti(array: np.ndarray) -> bytes:
    image = nib.Nifti1Image(array, affine())
    image.header["descrip"] = f"{NAME} {BORN} Time=031742999".encode()
    image.header["aux_file"], image.header["db_name"] = b"ANNELIESE PIDX774411", b"ACC7788991"
    image.header["intent_name"] = b"ONKELKURT"
    words = " ".join(HEADERS).encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", words))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", words))
    return image.to_bytes()


# The search ----------------------------------------------------------------------------------------------


def found_in(content: bytes, words: Iterable[str]) -> list[str]:
    """Return which words stand in some bytes, in any of the forms that text takes on its way."""
    folded = content.lower()
    return [
        word
        for word in words
        if any(form in folded for form in folded_forms(word))
        or any(form in content for form in exact_forms(word))
    ]


@cache
def folded_forms(word: str) -> frozenset[bytes]:
    """Return a word's bytes in the encodings that texts have, spelled out and escaped, in lower case."""
    forms = set()
    for text in {word, word.lower(), word.upper(), word.title()}:
        for shape in (text, unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text)):
            forms |= {shape.encode(code, "ignore") for code in ENCODINGS}
            forms |= {ascii(shape)[1:-1].encode(), quote(shape, safe="").encode()}
            raw = shape.encode()
            forms |= {raw.hex(sign).encode() for sign in (" ", ":")} | {raw.hex().encode()}
            forms.add("".join(f"%{byte:02x}" for byte in raw).encode())
    return frozenset(form.lower() for form in forms if len(form) >= 6)


@cache
def exact_forms(word: str) -> frozenset[bytes]:
    """Return what a word is in base64, whatever stands before it, and its hashes without a key."""
    forms: set[bytes] = set()
    for text in (word, word.lower(), word.title()):
        for code in ("utf-8", "utf-16-le"):
            forms |= set(_in_base64(text.encode(code)))
        for kind in ("md5", "sha1", "sha256"):
            digest = hashlib.new(kind, text.encode(), usedforsecurity=False)
            forms |= {digest.hexdigest().encode(), digest.hexdigest()[:16].encode(), digest.digest()[:12]}
    return frozenset(forms)


def _in_base64(raw: bytes) -> Iterator[bytes]:
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + raw)
        # The first and the last letters depend on the neighbours too.
        inner = whole[(0, 2, 3)[shift] : len(whole) - (4 if (shift + len(raw)) % 3 else 0)]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))


def files_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every file of a folder with its content, and its name in front of it; gzip also unpacked."""
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        unpacked = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else b""
        yield path, str(path.relative_to(folder)).encode() + b"\n" + content + unpacked
