"""A cohort folder, read: usable cases, and who was left out for which reason.

Only names, the table and the files' headers are looked at, so that a cohort of hundreds is judged in a
second or two; the voxels are judged when they are prepared. Each patient becomes a case, a case with
warnings, or an exclusion. Nothing is repaired in silence.
"""

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedglioma.case import Case, Finding
from fedglioma.data.dicom_layout import find_images
from fedglioma.data.layout import Found, PatientFiles
from fedglioma.data.manifest import (
    TABLE_NAME,
    WHOLE_COHORT,
    Participant,
    Table,
    bare_id,
    patient_key,
    read_participants,
)
from fedglioma.data.person import NUMBER, Sign, person_key, signs
from fedglioma.data.smallfile import read_small
from fedglioma.data.volume import VolumeError, check_volume
from fedglioma.errors import DataError, NoUsableCase
from fedglioma.pseudonym import SECRET_BYTES
from fedglioma.words import quoted

DESCRIPTION_NAME: Final = "dataset_description.json"
CONSENT: Final = "consent"
"""The code of who was left out because of a purpose that the table names, or does not know."""
_DESCRIPTION_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Cohort:
    """What one folder, or several merged, offers to a run; cases stand in the table's order."""

    name: str
    folder: Path
    layout: str
    cases: tuple[Case, ...]
    exclusions: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    synthetic: bool


def read_cohort(
    folder: Path, *, layout: str | None = None, secret: bytes | None = None, purpose: str | None = None
) -> Cohort:
    """Return the usable cases of a cohort folder, and every finding about the others.

    Parameters
    ----------
    secret : bytes, optional
        The site's (``pseudonym.py``): under it the ids in DICOM headers are compared. Without one they are
        compared under a secret that is forgotten.
    purpose : str, optional
        What the cases are for: rows whose consent names another purpose are exclusions, and shut out no other
        row of the same person. A patient without a purpose in the table is the hospital's own responsibility,
        and its policy's.

    Raises
    ------
    ConfigError
        ``layout`` is not a layout's name.
    DataError
        The folder, its table or its layout cannot be made out, or no usable case is left.
    """
    cohort, _ = _read(folder, layout, secret, purpose)
    _demand_cases(cohort)
    return cohort


def read_cohorts(folders: Sequence[Path], *, purpose: str) -> Cohort:
    """Return several cohort folders as one, as ``read_cohort`` and ``merge_cohorts`` do.

    One that could be used for another purpose only adds nobody, and its patients are exclusions.

    Raises
    ------
    DataError
        There is no folder, one cannot be made out or has no case that can be used for anything, or no usable
        case is left of all.
    """
    cohorts = []
    for folder in folders:
        cohort, others = _read(folder, None, None, purpose)
        if not others:
            _demand_cases(cohort)
        cohorts.append(cohort)
    return merge_cohorts(cohorts)


def _read(folder: Path, layout: str | None, secret: bytes | None, purpose: str | None) -> tuple[Cohort, int]:
    """Return a cohort, perhaps without a case, and how many rows are for another purpose."""
    folder = folder.absolute()
    name = folder.resolve().name
    found = find_images(folder, layout, secret or secrets.token_bytes(SECRET_BYTES))
    reading = _Reading(found, read_participants(folder / TABLE_NAME, site=name), name, purpose)
    synthetic = reading.is_synthetic(folder)
    for participant in reading.table.participants:
        reading.read(participant)
    reading.name_unlisted()
    cohort = Cohort(
        name=name,
        folder=folder,
        layout=found.layout.name,
        cases=tuple(reading.cases),
        exclusions=tuple(reading.exclusions),
        warnings=tuple(reading.warnings),
        synthetic=synthetic,
    )
    return cohort, reading.others


def is_synthetic(folder: Path) -> bool:
    """Return whether a cohort folder's ``dataset_description.json`` says that its patients are made up.

    Raises
    ------
    DataError
        There is a description, but it cannot be read.
    """
    try:
        description = json.loads(read_small(folder / DESCRIPTION_NAME, _DESCRIPTION_BYTES))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{DESCRIPTION_NAME}: cannot be read ({type(error).__name__}); taken as absent"
        raise DataError(reason) from error
    return isinstance(description, dict) and description.get("Synthetic") is True


def merge_cohorts(cohorts: Sequence[Cohort]) -> Cohort:
    """Return several cohorts as one; of a person who is in two (``person.py``), the later case is excluded.

    A row that another cohort excluded, by its purpose or otherwise, shuts out nobody: of a patient at two
    hospitals the one that does not keep the patient writes ``none``. Folder and layout are the first
    cohort's; one synthetic cohort makes the whole synthetic.

    Raises
    ------
    DataError
        There is no cohort, or no usable case is left.
    """
    if not cohorts:
        raise DataError("no cohort: name at least one folder")
    cases: list[Case] = []
    doubled: list[Finding] = []
    known: dict[Sign, tuple[Case, str]] = {}
    for cohort in cohorts:
        for case in cohort.cases:
            own = signs(case.patient, case.linkage_id)
            seen = [sign for sign in own if sign in known]
            first, home = known[seen[0]] if seen else (case, cohort.name)
            for sign in own:
                known.setdefault(sign, (first, home))
            if seen:
                doubled.append(_doubled(case, first, home))
            else:
                cases.append(case)
    merged = replace(
        cohorts[0],
        name=" + ".join(cohort.name for cohort in cohorts),
        cases=tuple(cases),
        exclusions=(*(f for cohort in cohorts for f in cohort.exclusions), *doubled),
        warnings=tuple(f for cohort in cohorts for f in cohort.warnings),
        synthetic=any(cohort.synthetic for cohort in cohorts),
    )
    _demand_cases(merged)
    return merged


def _doubled(case: Case, first: Case, home: str) -> Finding:
    """Return why a case of a later cohort is left out."""
    if person_key(case.patient) == person_key(first.patient):
        alias = f" as {first.patient}" if first.patient != case.patient else ""
        code = "duplicate"
        reason = f"the patient is in cohort {home}{alias} too; only that case counts. "
        reason += "Rename one if they are two people"
    else:
        code, reason = "same_person", _two_ids(first.patient, f"only the case of cohort {home} counts")
    return Finding(patient=case.patient, site=case.site, code=code, message=reason)


def _demand_cases(cohort: Cohort) -> None:
    """Raise ``DataError`` when every patient was excluded."""
    if cohort.cases:
        return
    codes = Counter(finding.code for finding in cohort.exclusions)
    counts = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    first = next((f"{finding.patient}: {finding.message}" for finding in cohort.exclusions), "")
    raise NoUsableCase(f"{cohort.name}: no usable case is left ({counts or 'none in the table'})", first)


class _Reading:
    """One cohort being read: what is known so far."""

    def __init__(self, found: Found, table: Table, site: str, purpose: str | None) -> None:
        self.layout = found.layout
        self.table = table
        self.site = site
        self.purpose = purpose
        self.others = 0
        self.refused = {sign for row in table.refused for sign in signs(*row)}
        self.unread = {files.folder: files for files in found.patients}
        self.people: set[str] = set()
        self.numbers: dict[Sign, str] = {}
        self.cases: list[Case] = []
        self.exclusions = list(table.exclusions)
        self.warnings = list(table.warnings)

    def is_synthetic(self, folder: Path) -> bool:
        """Return whether the cohort's own description says that it is made up."""
        try:
            return is_synthetic(folder)
        except DataError as error:
            finding = Finding(patient=WHOLE_COHORT, site=self.site, code="description", message=str(error))
            self.warnings.append(finding)
            return False

    def read(self, row: Participant) -> None:
        """Turn a row into a case or an exclusion."""
        person = person_key(row.patient)
        files = self._take(row)
        if not self._agreed(row):
            return
        if person in self.people:
            self._exclude(
                row, "second_visit", "another time point of a patient already read; the first one counts"
            )
            return
        self.people.add(person)
        if files is None:
            self._exclude(row, "no_modality", f"no folder of this name; expected {self.layout.pattern}")
            return
        broken = [remark for remark in files.remarks if remark[0] == "unreadable"]
        broken += _broken(files)
        if broken:
            self._exclude(row, broken[0][0], "; ".join(reason for _, reason in broken))
        elif not files.found:
            why = "".join(f"; {reason}" for _, reason in files.remarks[:1])
            self._exclude(row, "no_modality", f"no image in its folder as in {self.layout.pattern}{why}")
        elif files.foreign:
            self._exclude(row, "other_patient", files.foreign)
        elif (first := self._first_of(row)) != row.patient:
            self._exclude(row, "same_person", _two_ids(first, "only the first counts"))
        else:
            self._admit(row, files)

    def _agreed(self, row: Participant) -> bool:
        """Return whether the person agreed to what the cases are for; who did not is an exclusion."""
        if self.refused.intersection(signs(row.patient, row.linkage_id)):
            reason = f"{TABLE_NAME}: another row of the same person forbids any use of the patient's data"
            self._exclude(row, CONSENT, reason)
            return False
        if self.purpose is None or row.purpose in (None, self.purpose):
            return True
        reason = f"purpose is {row.purpose!r}, this is for {self.purpose}: the patient did not agree to it"
        self._exclude(row, CONSENT, reason)
        self.others += 1
        return False

    def name_unlisted(self) -> None:
        """Exclude the folders with images that no row speaks of."""
        listed = {patient_key(finding.patient) for finding in self.table.exclusions}
        read = self.people | {person_key(f.patient) for f in self.exclusions if f.code == CONSENT}
        for files in self.unread.values():
            patient = bare_id(files.folder)
            if not files.found or listed.intersection((patient_key(patient), person_key(patient))):
                continue
            if person_key(patient) in read:
                code, reason = (
                    "second_visit",
                    "another time point of a patient already read; the first one counts",
                )
            else:
                code, reason = "not_in_table", f"a folder with images but no row in {TABLE_NAME}; add one"
            self.exclusions.append(Finding(patient=patient, site=self.site, code=code, message=reason))

    def _take(self, row: Participant) -> PatientFiles | None:
        """Return the folder that a row means: the same name, else the same patient in order of name."""
        keys = (bare_id, patient_key, person_key)
        for key in keys:
            for folder in self.unread:
                if key(folder) == key(row.patient):
                    return self.unread.pop(folder)
        return None

    def _first_of(self, row: Participant) -> str:
        """Return under which id the row's person was admitted, the row's own where it is the first."""
        numbers = [sign for sign in signs(row.patient, row.linkage_id) if sign.kind == NUMBER]
        return self.numbers.setdefault(numbers[0], row.patient) if numbers else row.patient

    def _admit(self, row: Participant, files: PatientFiles) -> None:
        for code, reason in files.remarks:
            self._warn(row, code, reason)
        spelling = bare_id(files.folder)
        if spelling != row.patient and patient_key(spelling) == patient_key(row.patient):
            self._warn(row, "spelling", f"the folder spells the id {spelling!r}; taken as the same patient")
        mask = files.mask
        if mask is not None:
            try:
                check_volume(mask)
            except VolumeError as error:
                self._warn(row, "mask", f"{quoted(mask.name)}: {error.reason}; the mask is not used")
                mask = None
        told = {
            "scanner": row.scanner or files.scanner,
            "field_strength_t": row.field_strength_t or files.field_strength_t,
        }
        self.cases.append(
            Case(volumes=dict(files.volumes), series=dict(files.series), mask=mask, **dict(row) | told)
        )

    def _exclude(self, row: Participant, code: str, reason: str) -> None:
        self.exclusions.append(Finding(patient=row.patient, site=row.site, code=code, message=reason))

    def _warn(self, row: Participant, code: str, reason: str) -> None:
        self.warnings.append(Finding(patient=row.patient, site=row.site, code=code, message=reason))


def _two_ids(first: str, result: str) -> str:
    """Return why a case is left out whose person was read under another id; the number is never told."""
    return f"linkage_id is that of patient {first}: one person under two ids; {result}"


def _broken(files: PatientFiles) -> list[tuple[str, str]]:
    """Return code and reason of every modality whose file cannot be used."""
    broken = []
    for modality, path in files.volumes.items():
        try:
            check_volume(path)
        except VolumeError as error:
            broken.append((error.code, f"{modality} ({quoted(path.name)}): {error.reason}"))
    return broken
