"""One DICOM file opened within bounds: which tags are ever read, and how their bytes become values.

Reading is by allow-list: only the tags named here are loaded, so that a name, a date of birth or an
address has no way into an object. The bytes read, the number of pieces and the items of a sequence are
bounded; pixels are never read and nothing is inflated. Tags: DICOM PS3.6.
"""

import io
import logging
import math
import struct
import threading
import unicodedata
import warnings
from collections.abc import Iterable
from typing import BinaryIO, Final

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from fedglioma.data.volume import VolumeError

HEADER_BYTES: Final = 16 << 20
"""Most bytes of one file's header: two thousand frames of Enhanced MR need less."""
_MAX_READS: Final = 300_000
_MAX_ITEMS: Final = 200_000
_ITEM: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")


IMPLICIT: Final = "1.2.840.10008.1.2"
UNCOMPRESSED: Final = (IMPLICIT, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_COMPRESSED: Final = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
)
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"

_TAGS: Final = {
    "ImageType": (0x00080008, "CS"),
    "SOPClassUID": (0x00080016, "UI"),
    "AcquisitionDate": (0x00080022, "DA"),
    "AcquisitionTime": (0x00080032, "TM"),
    "Modality": (0x00080060, "CS"),
    "Manufacturer": (0x00080070, "LO"),
    "SeriesDescription": (0x0008103E, "LO"),
    "ManufacturerModelName": (0x00081090, "LO"),
    "FrameType": (0x00089007, "CS"),
    "PatientID": (0x00100020, "LO"),
    "PatientSex": (0x00100040, "CS"),
    "PatientAge": (0x00101010, "AS"),
    "ContrastBolusAgent": (0x00180010, "LO"),
    "ScanningSequence": (0x00180020, "CS"),
    "SequenceVariant": (0x00180021, "CS"),
    "MRAcquisitionType": (0x00180023, "CS"),
    "RepetitionTime": (0x00180080, "DS"),
    "EchoTime": (0x00180081, "DS"),
    "InversionTime": (0x00180082, "DS"),
    "MagneticFieldStrength": (0x00180087, "DS"),
    "EchoTrainLength": (0x00180091, "IS"),
    "ProtocolName": (0x00181030, "LO"),
    "FlipAngle": (0x00181314, "DS"),
    "EchoPulseSequence": (0x00189008, "CS"),
    "InversionRecovery": (0x00189009, "CS"),
    "InversionTimes": (0x00189079, "FD"),
    "EffectiveEchoTime": (0x00189082, "FD"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "SeriesNumber": (0x00200011, "IS"),
    "ImagePositionPatient": (0x00200032, "DS"),
    "ImageOrientationPatient": (0x00200037, "DS"),
    "TemporalPositionIndex": (0x00209128, "UL"),
    "SamplesPerPixel": (0x00280002, "US"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
    "PixelSpacing": (0x00280030, "DS"),
    "BitsAllocated": (0x00280100, "US"),
    "BurnedInAnnotation": (0x00280301, "CS"),
    "RescaleIntercept": (0x00281052, "DS"),
    "RescaleSlope": (0x00281053, "DS"),
}
_CONTRAST_SEQUENCE: Final = 0x00180012
_SHARED: Final = 0x52009229
_PER_FRAME: Final = 0x52009230
_READ: Final = [*(tag for tag, _ in _TAGS.values()), _CONTRAST_SEQUENCE, _SHARED, _PER_FRAME]
_BINARY: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


# pydicom's warnings and log lines quote the values they are about.
_QUIET: Final = threading.RLock()
logging.getLogger("pydicom").propagate = False


def transfer_syntax(start: bytes) -> str:
    """Return the transfer syntax that a file announces, before anybody unpacks anything by it."""
    if start[128:132] != b"DICM":
        raise VolumeError("not_dicom", "not a DICOM file, whatever the name says; copy the file again")
    place, syntax = 132, ""
    while place + 8 <= len(start):
        group, element, kind, length = struct.unpack_from("<HH2sH", start, place)
        if group != 2:
            break
        place += 8
        if kind in (b"OB", b"UN", b"OW", b"SQ", b"UT"):
            if place + 4 > len(start):
                break
            (length,) = struct.unpack_from("<I", start, place)
            place += 4
        if element == 0x0010:
            syntax = start[place : place + length].rstrip(b"\0 ").decode("ascii", "replace")
        place += length
    if syntax not in (*UNCOMPRESSED, *_COMPRESSED):
        what = "deflated" if syntax == _DEFLATED else "of an unknown or unsupported transfer syntax"
        reason = f"the file is {what}; export the series again as Explicit VR Little Endian, uncompressed"
        raise VolumeError("transfer_syntax", reason)
    return syntax


class Bounded(io.BufferedIOBase):
    """A file from its start, of which only so much can be read, in only so many pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left, self._reads = file, HEADER_BYTES, _MAX_READS
        file.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes; raises ``VolumeError`` beyond the bounds."""
        self._reads -= 1
        piece: bytes = self._file.read(
            self._left + 1 if size is None or size < 0 else min(size, self._left + 1)
        )
        self._left -= len(piece)
        if self._left < 0 or self._reads < 0:
            limit = f"{HEADER_BYTES >> 20} MiB"
            raise VolumeError(
                "header_too_large", f"the header is larger than {limit}; export the series again"
            )
        return piece

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a place in the file."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the place in the file."""
        return int(self._file.tell())


def parse(bounded: Bounded) -> Dataset:
    """Return the allow-listed part of a header, the file then standing before its pixels."""
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(bounded, stop_before_pixels=True, specific_tags=list(_READ))
    except (VolumeError, OSError):
        raise
    except InvalidDicomError:
        raise VolumeError("not_dicom", "not a DICOM file, whatever the name says; copy it again") from None
    except Exception:  # pydicom raises whatever damaged bytes lead it to, and its text quotes them
        raise _damaged() from None


def _damaged() -> VolumeError:
    return VolumeError("header", "the DICOM header is damaged; export the series again")


class Values:
    """Values by name, out of the file's own level and of the functional groups below it.

    They are decoded here, from raw bytes, because pydicom's own conversion warns, fails or repairs,
    depending on its global settings.
    """

    def __init__(self, dataset: Dataset) -> None:
        shared = self._items(dataset, _SHARED)
        self.per_frame = self._items(dataset, _PER_FRAME)
        self._levels = [dataset, *self._below(shared[:1]), *self._below(self.per_frame[:1])]
        self.agent_listed = bool(self._items(dataset, _CONTRAST_SEQUENCE))

    def of_frame(self, index: int) -> "Values":
        """Return the values as one frame has them."""
        clone = object.__new__(Values)
        own = self._below(self.per_frame[index : index + 1])
        clone.per_frame, clone._levels, clone.agent_listed = [], [*own, *self._levels], False
        return clone

    def text(self, name: str) -> str:
        """Return the value as one clean line of at most 256 characters, empty when it is absent."""
        return _clean(self._bytes(name)[0])

    def words(self, name: str) -> tuple[str, ...]:
        """Return the parts of a value with several."""
        return tuple(word.strip() for word in self.text(name).split("\\")[:16] if word.strip())

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return the value's numbers, none when it is absent or no number."""
        raw, kind, little = self._bytes(name)
        try:
            if code := _BINARY.get(kind):
                count = min(len(raw) // struct.calcsize("=" + code), 64)
                return tuple(
                    float(v) for v in struct.unpack_from(f"{'<' if little else '>'}{count}{code}", raw)
                )
            parts = raw[:1024].decode("ascii").strip("\0 ").split("\\")
            return tuple(float(part.strip("\0 ")) for part in parts) if parts != [""] else ()
        except (UnicodeDecodeError, ValueError):
            return ()

    def number(self, name: str) -> float | None:
        """Return the first number, or None where it is absent or not finite."""
        first = next(iter(self.numbers(name)), math.nan)
        return first if math.isfinite(first) else None

    def _bytes(self, name: str) -> tuple[bytes, str, bool]:
        tag, kind = _TAGS[name]
        for level in self._levels:
            if tag not in level:
                continue
            element: object = level.get_item(tag, keep_deferred=True)
            if isinstance(element, RawDataElement):
                known = element.VR if element.VR in (*_BINARY, "DS", "IS") else kind
                return element.value or b"", known, element.is_little_endian
        return b"", kind, True

    @staticmethod
    def _items(dataset: Dataset, tag: int) -> list[Dataset]:
        """Return the items of a sequence, none where there is no such sequence."""
        if tag not in dataset:
            return []
        element: object = dataset.get_item(tag, keep_deferred=True)
        raw = element.value or b"" if isinstance(element, RawDataElement) else b""
        if sum(raw.count(item) for item in _ITEM) > _MAX_ITEMS:
            raise VolumeError("header_too_large", "the header lists too many items; export it again")
        try:
            with _QUIET, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = dataset[tag].value
        except Exception:  # as in parse
            raise _damaged() from None
        return list(value) if isinstance(value, pydicom.Sequence) else []

    @classmethod
    def _below(cls, groups: Iterable[Dataset]) -> list[Dataset]:
        """Return the single items of the functional groups that hold the values."""
        return [
            item for group in groups for tag in sorted(group.keys()) for item in cls._items(group, tag)[:1]
        ]


def _clean(raw: bytes) -> str:
    text = raw[:1024].decode("utf-8", "surrogateescape")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        # The character set of a header is wrong too often to be believed.
        try:
            text = raw[:1024].decode("gb18030")
        except UnicodeDecodeError:
            text = raw[:1024].decode("latin-1")
    shown = (" " if unicodedata.category(sign).startswith(("C", "Z")) else sign for sign in text)
    return " ".join("".join(shown).split())[:256]
