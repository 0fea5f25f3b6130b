"""A cohort of DICOM: one folder of series per patient, seen as the other layouts are seen."""

from collections import defaultdict
from pathlib import Path
from typing import Final

from fedglioma.data.dicom_folder import PatientSeries, choose_series, compare_patients
from fedglioma.data.dicom_walk import Findings, image_files
from fedglioma.data.layout import Found, Layout, PatientFiles, find_patients, patient_folders
from fedglioma.data.sequence import read_series_map
from fedglioma.data.volume import VolumeError
from fedglioma.errors import DataError, NoUsableCase
from fedglioma.words import one_line

NAME: Final = "dicom"
MAP_NAME: Final = "series_map.csv"
_LOOKED_AT: Final = 200
"""Files that are opened in a folder to see whether it holds DICOM at all."""


def _nothing_by_name(patient: Path) -> PatientFiles:
    return PatientFiles(patient.name, {})


LAYOUT: Final = Layout(NAME, "<id>/ with files of DICOM series, in folders or not", _nothing_by_name)


def find_images(folder: Path, layout: str | None, secret: bytes) -> Found:
    """Return every patient's images: files named as a layout says or, where none fits, series of DICOM.

    Raises
    ------
    ConfigError
        ``layout`` is not a layout's name, or ``series_map.csv`` is none.
    DataError
        The folder is absent or empty, or holds no image that is understood.
    """
    if layout == NAME:
        return _dicom(folder, secret)
    try:
        return find_patients(folder, layout)
    except DataError:
        if layout is None and folder.is_dir() and any(map(_holds_dicom, patient_folders(folder))):
            return _dicom(folder, secret)
        raise


def _dicom(folder: Path, secret: bytes) -> Found:
    series_map = read_series_map(folder / MAP_NAME)
    seen: list[PatientSeries] = []
    unread: list[PatientFiles] = []
    for patient in patient_folders(folder):
        try:
            seen.append(choose_series(patient, secret, series_map=series_map))
        except VolumeError as error:
            unread.append(PatientFiles(patient.name, {}, remarks=((error.code, error.reason),)))
    doubts: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    for place, remark in compare_patients(seen):
        doubts[place].append((remark.code, remark.message))
    patients = [_files(one, doubts[one.folder]) for one in seen] + unread
    if not any(files.found for files in patients):
        raise NoUsableCase(f"{folder.name}: no series of DICOM in it can be used", _first_reason(patients))
    return Found(LAYOUT, tuple(sorted(patients, key=lambda files: files.folder)))


def _files(patient: PatientSeries, doubts: list[tuple[str, str]]) -> PatientFiles:
    # With somebody else's images alone, the markers of the row would be another's.
    others = [] if patient.own in patient.tags else [why for code, why in doubts if code == "other_patient"]
    remarks = [(remark.code, remark.message) for remark in patient.remarks]
    series = {modality: one.files for modality, one in patient.chosen.items()}
    headers = [one.header for one in patient.chosen.values()]
    names = next(((header.manufacturer, header.model) for header in headers), ())
    return PatientFiles(
        patient.folder.name,
        {},
        remarks=(*remarks, *doubts),
        series=series,
        foreign=next(iter(others), None),
        scanner=" ".join(filter(None, names)) or None,
        field_strength_t=next((header.field_strength_t for header in headers), None),
    )


def _first_reason(patients: list[PatientFiles]) -> str:
    reasons = (one_line(f"{files.folder}: {files.remarks[0][1]}") for files in patients if files.remarks)
    return next(reasons, "none is there")


def _holds_dicom(folder: Path) -> bool:
    try:
        for number, path in enumerate(image_files(folder, Findings(folder))):
            if number >= _LOOKED_AT:
                return False
            if _is_dicom(path):
                return True
    except VolumeError:
        return False
    return False


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
