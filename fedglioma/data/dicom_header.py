"""What of one DICOM file's header is needed to make a volume of it, and the little that may be kept.

What is free text in DICOM is kept as words of a closed list, or not at all, and the patient's id becomes a
keyed hash before the function that reads it returns. DICOM PS3.3 C.7.6, C.8.3 (MR), C.8.13 (Enhanced MR).
"""

import errno
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedglioma.case import Frozen
from fedglioma.data.dicom_file import Bounded, Values, parse, transfer_syntax
from fedglioma.data.dicom_picture import demand_image
from fedglioma.data.volume import MAX_FILE_BYTES, VolumeError
from fedglioma.pseudonym import patient_tag

_VENDORS: Final = (
    ("siemens", "Siemens"), ("philips", "Philips"), ("ge med", "GE"), ("general electric", "GE"),
    ("canon", "Canon"), ("toshiba", "Toshiba"), ("hitachi", "Hitachi"), ("fujifilm", "Hitachi"),
    ("united imaging", "United Imaging"), ("uih", "United Imaging"), ("neusoft", "Neusoft"),
    ("hyperfine", "Hyperfine"), ("bruker", "Bruker"), ("alltech", "Alltech"), ("anke", "Anke"),
)  # fmt: skip
_MODELS: Final = frozenset(
    """achieva aera altea ambition amira architect artist avanto biograph brivo cima connectom creator
    discovery echelon elan elition espree essenza excite explorer galan genesis harmony hdx hdxt ingenia
    intera lumina magnetom mmr mr multiva oasis optima orian panorama pioneer premier prisma prisma_fit
    prodiva sempra signa skyra skyra_fit sola sonata spectra swoop symphony terra tim titan trio triotim uhp
    umr vantage verio vida voyager x""".split()  # noqa: SIM905 - sixty quotes say no more
)
_MODEL_NUMBER: Final = re.compile(r"(mr)?\d{3}w?|[13](\.[05])?t|[13]\.[05]|7t")
_SEQUENCES: Final = frozenset({"SE", "IR", "GR", "EP", "RM"})
_VARIANTS: Final = frozenset({"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"})
_NO_AGENT: Final = frozenset({"", "NONE", "NO", "N", "0", "FALSE", "WITHOUT", "OHNE", "NIL", "NA", "N/A"})
_AGE: Final = re.compile(r"(\d{1,4})([DWMY]?)")
_DAYS: Final = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}


class TechnicalHeader(Frozen):
    """How an image was made: all of a DICOM header that may be stored. Times in ms, angles in degrees.

    ``manufacturer`` and ``model`` are words of a closed list; ``age`` is in years, 90 for whoever is older.
    ``spacing_mm`` is along columns, rows and slices.
    """

    manufacturer: str | None = None
    model: str | None = None
    field_strength_t: float | None = None
    multi_frame: bool = False
    scanning_sequence: tuple[str, ...] = ()
    sequence_variant: tuple[str, ...] = ()
    acquisition: str | None = None
    repetition_ms: float | None = None
    echo_ms: float | None = None
    inversion_ms: float | None = None
    echo_train: int | None = None
    flip_deg: float | None = None
    contrast: bool = False
    sex: str | None = None
    age: int | None = None
    spacing_mm: tuple[float, float, float] | None = None
    slices: int | None = None


@dataclass(frozen=True)
class SeriesText:
    """Free text that tells which sequence it is. It may hold names: it is looked at and never kept."""

    description: str = field(default="", repr=False)
    protocol: str = field(default="", repr=False)
    image_type: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Frame:
    """Where one slice lies in DICOM's patient coordinates (LPS, mm), and its row and column step."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    time_point: int = 1


@dataclass(frozen=True)
class FileHeader:
    """One file: its frames and the rest that series are made of. Lives only while a folder is read."""

    path: Path
    uid: str = field(repr=False)
    patient: str
    text: SeriesText = field(repr=False)
    technical: TechnicalHeader
    frames: tuple[Frame, ...]
    columns: int
    rows: int
    number: int
    acquired: str = field(repr=False)


def read_header(path: Path, secret: bytes) -> FileHeader:
    """Return what is needed of one file's header.

    Raises
    ------
    VolumeError
        ``not_dicom``, ``transfer_syntax``, ``sop_class``, ``burned_in``, ``dtype``, ``dimensions``,
        ``truncated``, ``header``, ``geometry``, ``header_too_large``, ``too_large``, ``not_a_file`` or
        ``unreadable``.
    """
    try:
        # Without waiting, so that a pipe of that name cannot stop the pass.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _not_a_file()
            if status.st_size > MAX_FILE_BYTES:
                raise VolumeError("too_large", "the file is larger than a head's; export the series again")
            syntax = transfer_syntax(file.read(4096))
            bounded = Bounded(file)
            values = Values(parse(bounded))
            matrix = demand_image(values, bounded, status.st_size, syntax)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _not_a_file() from None
        reason = f"cannot be read ({error.strerror or type(error).__name__}); check the file's permissions"
        raise VolumeError("unreadable", reason) from None
    return FileHeader(
        path=path,
        uid=values.text("SeriesInstanceUID"),
        patient=patient_tag(secret, values.text("PatientID")),
        text=SeriesText(
            values.text("SeriesDescription"),
            values.text("ProtocolName"),
            tuple(w.upper() for w in (*values.words("ImageType"), *values.words("FrameType"))),
        ),
        technical=_technical(values, multi_frame=matrix.frames is not None),
        frames=_frames(values, matrix.frames),
        columns=matrix.columns,
        rows=matrix.rows,
        number=int(values.number("SeriesNumber") or 0),
        acquired=values.text("AcquisitionDate")[:8] + values.text("AcquisitionTime")[:13],
    )


def _not_a_file() -> VolumeError:
    return VolumeError("not_a_file", "a device or a pipe where a file is expected; remove it")


def _frames(values: Values, count: int | None) -> tuple[Frame, ...]:
    if count is None:
        return (_frame(values),)
    if len(values.per_frame) != count:
        raise VolumeError("header", "the header describes another number of frames; export the series again")
    return tuple(_frame(values.of_frame(index)) for index in range(count))


def _frame(values: Values) -> Frame:
    position = values.numbers("ImagePositionPatient")
    orientation = values.numbers("ImageOrientationPatient")
    spacing = values.numbers("PixelSpacing")
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise VolumeError(
            "geometry", "position, orientation or pixel size is missing; export the series again"
        )
    if not all(math.isfinite(v) and abs(v) < 1e5 for v in (*position, *orientation, *spacing)):
        raise VolumeError("geometry", "position, orientation or pixel size is no number; export it again")
    if min(spacing) <= 0:
        raise VolumeError("spacing", "the pixel size is zero or negative; export the series again")
    across, down = orientation[:3], orientation[3:]
    lengths = [math.hypot(*axis) for axis in (across, down)]
    slant = abs(sum(a * b for a, b in zip(across, down, strict=True)))
    if max(abs(length - 1) for length in lengths) > 1e-2 or slant > 1e-2:
        raise VolumeError(
            "geometry", "the image axes are zero or not at right angles; export the series again"
        )
    return Frame(position, orientation, spacing, int(values.number("TemporalPositionIndex") or 1))


def _technical(values: Values, *, multi_frame: bool) -> TechnicalHeader:
    times = {
        "repetition_ms": _between(values.number("RepetitionTime"), 0, 60_000),
        "echo_ms": _between(values.number("EchoTime") or values.number("EffectiveEchoTime"), 0, 5_000),
        "inversion_ms": _between(
            values.number("InversionTime") or values.number("InversionTimes"), 1, 20_000
        ),
        "flip_deg": _between(values.number("FlipAngle"), 0, 360),
        "field_strength_t": _between(_tesla(values.number("MagneticFieldStrength")), 0.01, 20),
    }
    train = _between(values.number("EchoTrainLength"), 0, 2000)
    acquisition = values.text("MRAcquisitionType").upper()
    sex = values.text("PatientSex").upper()
    return TechnicalHeader(
        manufacturer=_vendor(values.text("Manufacturer")),
        model=_model(values.text("ManufacturerModelName")),
        multi_frame=multi_frame,
        scanning_sequence=_sequence(values),
        sequence_variant=_known(values.words("SequenceVariant"), _VARIANTS),
        acquisition=acquisition if acquisition in ("2D", "3D") else None,
        echo_train=None if train is None else int(train),
        contrast=values.agent_listed or values.text("ContrastBolusAgent").upper() not in _NO_AGENT,
        sex=sex if sex in ("F", "M", "O") else None,
        age=_age(values.text("PatientAge").upper()),
        **times,
    )


def _sequence(values: Values) -> tuple[str, ...]:
    """Return the scanning sequence, also from how Enhanced MR says it."""
    classic = _known(values.words("ScanningSequence"), _SEQUENCES)
    if classic:
        return classic
    pulse = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}
    found = pulse.get(values.text("EchoPulseSequence").upper(), ())
    return (*found, "IR") if values.text("InversionRecovery").upper() == "YES" else found


def _known(words: Sequence[str], allowed: frozenset[str]) -> tuple[str, ...]:
    return tuple(word for word in (w.upper() for w in words) if word in allowed)


def _between(value: float | None, low: float, high: float) -> float | None:
    return value if value is not None and low <= value <= high else None


def _tesla(value: float | None) -> float | None:
    # Some scanners write gauss.
    return value / 10_000 if value is not None and value > 100 else value


def _vendor(text: str) -> str | None:
    known = next((name for word, name in _VENDORS if text.lower().startswith(word)), None)
    return known or ("other" if text else None)


def _model(text: str) -> str | None:
    words = [w for w in text.lower().split() if w in _MODELS or _MODEL_NUMBER.fullmatch(w)]
    return " ".join(words[:4]) or None


def _age(text: str) -> int | None:
    match = _AGE.fullmatch(text)
    return min(int(int(match[1]) / _DAYS[match[2]]), 90) if match else None
