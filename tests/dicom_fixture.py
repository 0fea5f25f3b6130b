"""Folders of DICOM for tests: a made-up head, written well and in every bad way."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fedglioma.case import Modality
from fedglioma.data.dicom_write import PROTOCOLS, Protocol, write_series
from fedglioma.data.volume import Affine, Volume

SECRET = bytes(range(32))
SHAPE = (28, 32, 22)
SPACING = (6.0, 5.5, 5.0)
SLICES = SHAPE[2]
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def oblique(spacing: tuple[float, float, float] = SPACING) -> Affine:
    """A grid turned about all three axes, its slices running downward: no axis is special."""
    a, b, c = np.radians([8.0, 5.0, 3.0])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag(spacing)
    affine[:3, 3] = (-80.0, -85.0, -50.0)
    return affine


def head(
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
) -> Volume:
    """Noise in an ellipsoid: every voxel is different, so that a flip or a shift shows."""
    rng = np.random.default_rng(seed)
    steps = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(step**2 for step in steps) < 0.9
    return Volume(np.where(inside, rng.integers(50, 4000, shape), 0).astype(np.float32), oblique(spacing))


def write_patient(folder: Path, patient: str = "P1", *modalities: Modality) -> dict[Modality, list[Path]]:
    """One series per sequence, each in a folder of its own."""
    return {
        modality: write_series(
            folder / f"s{number}", head(number), PROTOCOLS[modality], patient=patient, number=number
        )
        for number, modality in enumerate(modalities or tuple(Modality), 1)
    }


def write_t2(folder: Path, *, patient: str = "P1", number: int = 1, **extra: Any) -> list[Path]:
    """The plain T2 that most damage is done to."""
    base = PROTOCOLS[Modality.T2]
    protocol = Protocol(base.description, base.repetition_ms, base.echo_ms, extra=extra)
    return write_series(folder, head(), protocol, patient=patient, number=number)


def edit(path: Path, **values: Any) -> None:
    """Set attributes of one file; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def patch(path: Path, tag: tuple[int, int], kind: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change a value's bytes in place, past everything that a writer would refuse."""
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<HH2s", *tag, kind)) + 6
    (length,) = struct.unpack_from("<H", content, place)
    start = place + 2
    new = change(bytes(content[start : start + length]))
    assert len(new) == length
    content[start : start + length] = new
    path.write_bytes(content)


def set_syntax(path: Path, uid: str) -> None:
    """Announce another transfer syntax and leave the rest as it is."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid
    raw = path.read_bytes()
    body = raw[raw.index(b"\x08\x00\x05\x00CS") :]
    path.write_bytes(b"\0" * 128 + b"DICM" + meta_bytes(uid) + body)


def meta_bytes(uid: str) -> bytes:
    """A file meta group that says nothing but the transfer syntax."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value
    return struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element)) + element


def write_enhanced(
    path: Path, volume: Volume, *, patient: str = "P1", time_points: int = 1, compress: bool = False
) -> Path:
    """The same head as one Enhanced MR file with a T2's timing."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / sizes
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ENHANCED_MR, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = ENHANCED_MR, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.PatientID, ds.PatientName = "MR", patient, "PLANTED^NAME"
    ds.SeriesDescription, ds.ImageType = "t2_tse_tra", ["ORIGINAL", "PRIMARY", "T2", "NONE"]
    ds.Manufacturer, ds.EchoPulseSequence, ds.InversionRecovery = "Philips", "SPIN", "NO"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.Columns, ds.Rows, slices = volume.array.shape
    ds.NumberOfFrames = slices * time_points
    shared = Dataset()
    orientation, measures, timing, echo, pixels = (Dataset() for _ in range(5))
    orientation.ImageOrientationPatient = [f"{v:.9g}"[:16] for v in [*axes[:, 0], *axes[:, 1]]]
    measures.PixelSpacing = [f"{sizes[1]:.9g}", f"{sizes[0]:.9g}"]
    measures.SliceThickness = measures.SpacingBetweenSlices = f"{sizes[2]:.9g}"
    timing.RepetitionTime, timing.FlipAngle, timing.EchoTrainLength = 5000.0, 90.0, 16
    echo.EffectiveEchoTime = 100.0
    pixels.RescaleSlope, pixels.RescaleIntercept, pixels.RescaleType = "1", "0", "US"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.MRTimingAndRelatedParametersSequence, shared.MREchoSequence = [timing], [echo]
    shared.PixelValueTransformationSequence = [pixels]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for time in range(time_points):
        for k in range(slices):
            frame, place, content = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [f"{v:.9g}"[:16] for v in affine[:3, 3] + affine[:3, 2] * k]
            content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = (
                "1",
                k + 1,
                time + 1,
            )
            content.DimensionIndexValues = [1, k + 1]
            frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
            frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    plane = np.ascontiguousarray(volume.array.T.astype(np.uint16))  # slices, rows, columns
    ds.PixelData = np.concatenate([plane] * time_points).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def values_at(volume: Volume, points: Affine) -> np.ndarray:
    """The voxels at places in RAS mm, shape (N, 3), by nearest neighbour."""
    index = np.rint(np.linalg.solve(volume.affine, np.c_[points, np.ones(len(points))].T)[:3]).astype(int)
    return np.asarray(volume.array[tuple(index)])


def places(volume: Volume, count: int = 300) -> Affine:
    """Random voxels' places in RAS mm, shape (N, 3)."""
    index = np.random.default_rng(1).integers(0, volume.array.shape, (count, 3))
    return np.asarray((volume.affine @ np.c_[index, np.ones(count)].T)[:3].T)
