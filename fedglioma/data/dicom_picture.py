"""Whether a DICOM file is one MR picture, or one volume, in grey values, and is there to its last voxel.

Nothing is unpacked: sizes are held against the file's own, coding against what the transfer syntax says.
"""

from dataclasses import dataclass
from typing import Final

from fedglioma.data.dicom_file import IMPLICIT, UNCOMPRESSED, Bounded, Values
from fedglioma.data.volume import VolumeError

MAX_FRAMES: Final = 4096
MAX_SIDE: Final = 4096
MAX_VOLUME_BYTES: Final = 2 << 30
_EXPLICIT_BYTES: Final = 12
_IMPLICIT_BYTES: Final = 8
CLASSIC: Final = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED: Final = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_OTHER_CLASSES: Final = {
    "1.2.840.10008.1.3.10": "a DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4.2": "spectroscopy",
    "1.2.840.10008.5.1.4.1.1.4.3": "a colour MR picture",
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.481.3": "contours",
}


@dataclass(frozen=True)
class Matrix:
    """Rows, columns and frames of a file; ``frames`` is None for a classic one, which has a single slice."""

    rows: int
    columns: int
    frames: int | None


def demand_image(values: Values, bounded: Bounded, size: int, syntax: str) -> Matrix:
    """Return a file's matrix, once its picture was found to be usable.

    Parameters
    ----------
    bounded : Bounded
        The file, standing behind its header.
    size : int
        Bytes of the whole file.

    Raises
    ------
    VolumeError
        ``sop_class``, ``burned_in``, ``dtype``, ``dimensions``, ``truncated``, ``header`` or
        ``transfer_syntax``.
    """
    _demand_class(values)
    start, head = _pixels_start(bounded)
    _demand_grey(values)
    matrix, needed = _matrix(values)
    raw = syntax in UNCOMPRESSED
    behind = size - start - (_IMPLICIT_BYTES if syntax == IMPLICIT else _EXPLICIT_BYTES)
    if behind < (needed if raw else 1):
        raise _cut_off()
    _demand_coding(head, raw=raw)
    return matrix


def _cut_off() -> VolumeError:
    return VolumeError("truncated", "the file ends before its pixels do; copy the file again")


def _demand_class(values: Values) -> None:
    """Raise ``VolumeError`` for what is no MR image by its class, or does not say what it is."""
    sop = values.text("SOPClassUID")
    if not sop:
        raise VolumeError("header", "the header is damaged or cut off; export the series again")
    if sop not in (CLASSIC, *ENHANCED):
        what = _OTHER_CLASSES.get(sop, "another kind of object")
        raise VolumeError("sop_class", f"{what}, not an MR image; nothing to do")


def _pixels_start(bounded: Bounded) -> tuple[int, bytes]:
    """Return where the pixels' element starts and its first 12 bytes; raises ``VolumeError`` without one."""
    start = bounded.tell()
    head = bounded.read(_EXPLICIT_BYTES)
    if head[:4] not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10") or len(head) < _EXPLICIT_BYTES:
        raise _cut_off()
    return start, head


def _demand_grey(values: Values) -> None:
    """Raise ``VolumeError`` for what is not MR in grey values, of which it is known how to read them."""
    modality = values.text("Modality").upper()
    if modality != "MR":
        what = modality if modality in ("CT", "PT", "OT", "SC", "US", "CR", "DX") else "something else"
        raise VolumeError("sop_class", f"the header calls it {what}, not MR; nothing to do unless it is MR")
    if values.text("BurnedInAnnotation").upper() == "YES":
        raise VolumeError("burned_in", "text is burned into the picture; export the original series")
    colours = values.number("SamplesPerPixel")
    if colours != 1 or values.text("PhotometricInterpretation").upper() != "MONOCHROME2":
        raise VolumeError(
            "dtype", "voxels are colours or inverted, not grey values; export the original series"
        )
    if any(
        values.text(name) and values.number(name) is None for name in ("RescaleSlope", "RescaleIntercept")
    ):
        raise VolumeError("header", "the scale of the grey values is no number; export the series again")
    if not values.text("SeriesInstanceUID"):
        raise VolumeError("header", "the file belongs to no series; export the series again")


def _matrix(values: Values) -> tuple[Matrix, int]:
    """Return the matrix and the bytes of uncompressed pixels."""
    rows, columns = values.number("Rows") or 0, values.number("Columns") or 0
    bits = values.number("BitsAllocated") or 0
    frames = values.number("NumberOfFrames")
    multi_frame = values.text("SOPClassUID") in ENHANCED
    count = frames if frames is not None else 1.0
    if not (16 <= rows <= MAX_SIDE and 16 <= columns <= MAX_SIDE) or not 1 <= count <= MAX_FRAMES:
        raise VolumeError("dimensions", "the header's matrix is no head's; export the series again")
    if bits not in (8, 16, 32):
        raise VolumeError("dtype", "voxels are not of 8, 16 or 32 bits; export the series again")
    if not multi_frame and count > 1:
        raise VolumeError("dimensions", "several frames in a classic MR file; export the series again")
    needed = int(rows) * int(columns) * int(count) * int(bits) // 8
    if needed > MAX_VOLUME_BYTES:
        raise VolumeError("dimensions", "the header claims more voxels than a head has; export it again")
    return Matrix(int(rows), int(columns), int(count) if multi_frame else None), needed


def _demand_coding(head: bytes, *, raw: bool) -> None:
    """Raise ``VolumeError`` unless the pixels are as the transfer syntax says: as they are, or a stream."""
    coded = head[4:6] in (b"OB", b"OW") and head[8:12] == b"\xff\xff\xff\xff"
    if coded == raw:
        reason = "the pixels are not coded as the transfer syntax says; export the series again, uncompressed"
        raise VolumeError("transfer_syntax", reason)
