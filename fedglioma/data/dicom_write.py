"""A volume written as a classic MR series, one file per slice: for demonstrations and tests.

What is written is made up, except for the voxels that are given: never write a patient's into it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from fedglioma.case import Modality
from fedglioma.data.volume import Volume

_RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_HIGHEST: Final = 4095


@dataclass(frozen=True)
class Protocol:
    """How a series says it was made; times in ms. ``extra`` sets further DICOM attributes by keyword."""

    description: str
    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None
    sequence: tuple[str, ...] = ("SE",)
    agent: str = ""
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "M")
    acquired: str = "101500"
    extra: Mapping[str, Any] = field(default_factory=dict)


PROTOCOLS: Final = {
    Modality.FLAIR: Protocol("t2_tirm_tra_dark-fluid", 9000.0, 85.0, 2500.0, ("SE", "IR")),
    Modality.T1CE: Protocol("t1_se_tra_Gd", 550.0, 9.0, agent="Gadovist", acquired="103000"),
    Modality.T1: Protocol("t1_se_tra", 550.0, 9.0),
    Modality.T2: Protocol("t2_tse_tra", 5000.0, 100.0),
}


def write_series(
    folder: Path, volume: Volume, protocol: Protocol, *, patient: str, number: int = 1, study: str = "1"
) -> list[Path]:
    """Write a volume of shape (X, Y, Z) into a folder, a file for each index of Z; return the files in order.

    Values are rounded to 12 bits where they exceed them or are no whole numbers, with a rescale slope.
    The same arguments give the same unique identifiers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    affine = _RAS_TO_LPS @ volume.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / sizes
    stored, slope, intercept = _stored(volume.array)
    series = generate_uid(entropy_srcs=[patient, study, str(number)])
    paths = []
    for k in range(volume.array.shape[2]):
        dataset = _blank(protocol, patient, study, series, f"{number}.{k}")
        dataset.SeriesNumber, dataset.InstanceNumber = number, k + 1
        dataset.ImagePositionPatient = _decimals(affine[:3, 3] + affine[:3, 2] * k)
        dataset.ImageOrientationPatient = _decimals([*axes[:, 0], *axes[:, 1]])
        dataset.PixelSpacing = _decimals([sizes[1], sizes[0]])
        dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimals([sizes[2]])[0]
        plane = np.ascontiguousarray(stored[:, :, k].T)  # rows, columns
        dataset.Rows, dataset.Columns = plane.shape
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimals([slope, intercept])
        dataset.PixelData = plane.tobytes()
        for keyword, value in protocol.extra.items():
            setattr(dataset, keyword, value)
        path = folder / f"IM{number:03d}_{k:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _blank(protocol: Protocol, patient: str, study: str, series: str, instance: str) -> FileDataset:
    """Return a slice's data set without place and pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, instance])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[patient, study])
    dataset.SeriesInstanceUID = series
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[patient, study, "frame"])
    dataset.PatientID, dataset.PatientName = patient, patient
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "MR", "SIEMENS", "Skyra"
    dataset.MagneticFieldStrength, dataset.PatientPosition = 3.0, "HFS"
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20240203", protocol.acquired
    dataset.SeriesDescription = dataset.ProtocolName = protocol.description
    dataset.ImageType = list(protocol.image_type)
    dataset.ScanningSequence, dataset.SequenceVariant = list(protocol.sequence), "SK"
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime, dataset.EchoTime = protocol.repetition_ms, protocol.echo_ms
    dataset.EchoTrainLength, dataset.FlipAngle = 1, 90
    if protocol.inversion_ms is not None:
        dataset.InversionTime = protocol.inversion_ms
    if protocol.agent:
        dataset.ContrastBolusAgent = protocol.agent
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset


def _stored(array: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int16], float, float]:
    low, high = float(array.min()), float(array.max())
    if np.array_equal(array, np.rint(array)) and low >= -32768 and high <= 32767:
        return array.astype(np.int16), 1.0, 0.0
    slope = float(f"{max(high - low, 1e-6) / _HIGHEST:.8g}")
    intercept = float(f"{low:.8g}")
    return np.rint((array - intercept) / slope).astype(np.int16), slope, intercept


def _decimals(values: Any) -> list[str]:
    # A decimal string of DICOM has at most 16 characters.
    return [f"{float(value):.9g}"[:16] for value in values]
