"""How a cohort's files are named: three layouts, told apart by looking.

=========  ==============================================================================
bids       ``sub-01/anat/sub-01_T1w.nii.gz``, ``_ce-gadolinium_T1w``, ``_T2w``, ``_FLAIR``,
           ``_dseg``; a ``ses-*`` folder may stand between
brats2021  ``<id>/<id>_{t1,t1ce,t2,flair,seg}.nii.gz``, with or without FeTS's ``_brain``
brats2023  ``<id>/<id>-{t1n,t1c,t2w,t2f,seg}.nii.gz``
=========  ==============================================================================

Names count exactly, so a file that no pattern names is never taken for a modality. Only names are
looked at here; a name whose file is broken is still that modality, and reading says what is wrong.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedglioma.case import Modality
from fedglioma.errors import ConfigError, DataError
from fedglioma.words import quoted

_BIDS_NAMES: Final = {
    Modality.FLAIR: "FLAIR",
    Modality.T1CE: "ce-gadolinium_T1w",
    Modality.T1: "T1w",
    Modality.T2: "T2w",
}
_BRATS_2023_NAMES: Final = {
    Modality.FLAIR: "t2f",
    Modality.T1CE: "t1c",
    Modality.T1: "t1n",
    Modality.T2: "t2w",
}
_BRATS_2023_VISIT = re.compile(r"(?P<patient>BraTS-[A-Za-z]+-\d{5})-(?P<visit>\d{3})", re.IGNORECASE)
_ENDINGS: Final = (".nii.gz", ".nii")


@dataclass(frozen=True)
class PatientFiles:
    """The files of one visit, as one patient's folder names them.

    ``remarks`` are (code, message) of choices that were made among the files. A modality is one file, or
    the files of a DICOM series in their order. ``scanner`` and ``field_strength_t`` are what headers say,
    for rows of the table that do not. ``foreign`` says why all the images are somebody else's.
    """

    folder: str
    volumes: Mapping[Modality, Path]
    mask: Path | None = None
    remarks: tuple[tuple[str, str], ...] = ()
    series: Mapping[Modality, tuple[Path, ...]] = field(default_factory=dict)
    scanner: str | None = None
    field_strength_t: float | None = None
    foreign: str | None = None

    @property
    def found(self) -> bool:
        """Whether there is any image, in a file or as a series."""
        return bool(self.volumes or self.series)


@dataclass(frozen=True)
class Layout:
    """One way to name a cohort's files."""

    name: str
    pattern: str
    find: Callable[[Path], PatientFiles]


@dataclass(frozen=True)
class Found:
    """A cohort folder seen through its layout: the patients' folders in order of name."""

    layout: Layout
    patients: tuple[PatientFiles, ...]


def find_patients(folder: Path, layout: str | None = None) -> Found:
    """Return every patient's files, under the named layout or the one that fits most folders.

    Raises
    ------
    ConfigError
        ``layout`` is not a layout's name.
    DataError
        The folder is absent or empty, or no file in it is named as the layout says.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r}: unknown; allowed is {', '.join(LAYOUTS)}")
    patients = patient_folders(folder)
    candidates = [LAYOUTS[layout]] if layout is not None else list(LAYOUTS.values())
    seen = [
        Found(candidate, tuple(candidate.find(patient) for patient in patients)) for candidate in candidates
    ]
    best = max(seen, key=lambda found: sum(bool(files.volumes) for files in found.patients))
    if not any(files.volumes for files in best.patients):
        patterns = "; ".join(f"{candidate.name}: {candidate.pattern}" for candidate in candidates)
        raise DataError(f"{folder.name}: no file is named as a known layout says ({patterns})")
    return best


def visit_of(folder: str) -> tuple[str, str | None]:
    """Return patient and time point of a folder's name; only BraTS from 2023 writes a time point."""
    match = _BRATS_2023_VISIT.fullmatch(folder)
    return (match["patient"], match["visit"]) if match else (folder, None)


def patient_folders(folder: Path) -> list[Path]:
    """Return the folders inside, hidden ones left out; a link to a folder is a folder.

    Raises
    ------
    DataError
        The folder is absent, empty or cannot be listed.
    """
    try:
        entries = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{folder}: not found; give the folder that holds the cohort") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror}); check it") from None
    if not entries:
        raise DataError(f"{folder}: empty; a cohort holds participants.tsv and one folder per patient")
    return [path for name in entries if _is_folder(path := folder / name)]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a loop of links
        return False


def _names(folder: Path) -> frozenset[str]:
    """Return the visible names in a folder, none when it is absent.

    Raises
    ------
    OSError
        The folder is there and cannot be listed.
    """
    try:
        return frozenset(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def _find_brats_2021(patient: Path) -> PatientFiles:
    name = patient.name
    stems = {m: (f"{name}_brain_{m}", f"{name}_{m}") for m in Modality}
    return _pick(name, patient, stems, mask=f"{name}_seg")


def _find_brats_2023(patient: Path) -> PatientFiles:
    name = patient.name
    stems = {m: (f"{name}-{word}",) for m, word in _BRATS_2023_NAMES.items()}
    return _pick(name, patient, stems, mask=f"{name}-seg")


def _find_bids(patient: Path) -> PatientFiles:
    """Return the files of the first session, by name, that has any modality."""
    if not patient.name.startswith("sub-"):
        return PatientFiles(patient.name, {})
    try:
        sessions = [None, *sorted(name for name in _names(patient) if name.startswith("ses-"))]
    except OSError as error:
        return _unlisted(patient.name, error)
    visits = [_bids_session(patient, session) for session in sessions]
    used = [visit for visit in visits if visit.volumes]
    if len(used) < 2:
        return used[0] if used else visits[0]
    kept = next(session for session, visit in zip(sessions, visits, strict=True) if visit.volumes)
    remark = (
        "more_sessions",
        f"{len(used)} sessions hold images; only the first, {quoted(kept or 'anat')}, is used",
    )
    return PatientFiles(used[0].folder, used[0].volumes, used[0].mask, (*used[0].remarks, remark))


def _bids_session(patient: Path, session: str | None) -> PatientFiles:
    folder = patient / session / "anat" if session else patient / "anat"
    prefix = f"{patient.name}_{session}" if session else patient.name
    stems = {m: (f"{prefix}_{word}",) for m, word in _BIDS_NAMES.items()}
    return _pick(patient.name, folder, stems, mask=f"{prefix}_dseg")


def _pick(name: str, folder: Path, stems: Mapping[Modality, Sequence[str]], *, mask: str) -> PatientFiles:
    """Return the file of each modality: the first name there is, with a remark when there are more."""
    try:
        names = _names(folder)
    except OSError as error:
        return _unlisted(name, error)
    volumes: dict[Modality, Path] = {}
    remarks: list[tuple[str, str]] = []
    for modality, alternatives in stems.items():
        there = [stem + ending for stem in alternatives for ending in _ENDINGS if stem + ending in names]
        if there:
            volumes[modality] = folder / there[0]
        if len(there) > 1:
            names_there = " and ".join(map(quoted, there))
            remarks.append(("two_files", f"{modality}: {names_there}; only {quoted(there[0])} is used"))
    masks = [folder / (mask + ending) for ending in _ENDINGS if mask + ending in names]
    return PatientFiles(name, volumes, masks[0] if masks else None, tuple(remarks))


def _unlisted(name: str, error: OSError) -> PatientFiles:
    return PatientFiles(
        name, {}, remarks=(("unreadable", f"the patient's folder cannot be read ({error.strerror})"),)
    )


LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        Layout("bids", "sub-<id>/anat/sub-<id>_T1w.nii.gz", _find_bids),
        Layout("brats2021", "<id>/<id>_t1ce.nii.gz", _find_brats_2021),
        Layout("brats2023", "<id>/<id>-t1c.nii.gz", _find_brats_2023),
    )
}
