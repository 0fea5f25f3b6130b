"""What a data manager does about a finding, by the finding's short name."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from fedglioma.case import Finding

_COPY = "copy the file again from where it came from"
_CONVERT = "convert the series from DICOM again, for example with dcm2niix"
_EXPORT = "export the series from the archive again"
_ROW = "correct the row in participants.tsv"
_LOOK = "open the volumes in a viewer and compare them"
_VALUE = "correct the value in participants.tsv; until then it counts as unknown"
_NOTHING = "nothing to do: "

REMEDIES: Final[dict[str, str]] = {
    "affine": _CONVERT,
    "age": _VALUE,
    "changed": "wait until copying has ended and run prepare again",
    "consent": _NOTHING
    + "the patient's purpose allows no use; correct it in participants.tsv if it is wrong",
    "constant": _EXPORT,
    "coverage": "check whether the sequence was cut short; the case is kept",
    "damaged": _COPY,
    "description": "correct dataset_description.json, or remove it",
    "dimensions": "give one three-dimensional volume per sequence",
    "dtype": "export the series as MR grey values, not as a colour picture",
    "duplicate": "keep one row per patient in participants.tsv",
    "duplicate_image": "find out whose image it is and remove the other copy",
    "empty": _COPY,
    "extent": _CONVERT,
    "field_strength_t": _VALUE,
    "genotype": "ask pathology to check both markers; the case is kept as it is",
    "grade": _VALUE,
    "header": _CONVERT,
    "label": "write 0, 1 or n/a for the marker in participants.tsv",
    "mask": "replace or remove the mask; the case is kept without it",
    "more_sessions": _NOTHING + "only the first session is used",
    "no_brain": _LOOK,
    "no_column": "add the column to participants.tsv if the marker was measured",
    "no_modality": "check that the patient's folder and files are named as the layout says",
    "no_orientation": _CONVERT,
    "no_overlap": _LOOK,
    "non_finite": _EXPORT,
    "not_a_file": "put the file itself in place of the folder",
    "not_gzip": _COPY,
    "not_in_table": "add a row for the patient to participants.tsv",
    "not_nifti": _CONVERT,
    "not_registered": "give volumes that lie on one common grid; the case is kept",
    "not_stripped": "give skull-stripped volumes; the case is kept",
    "orientation_conflict": _CONVERT,
    "outcome": _VALUE,
    "patient_id": _ROW,
    "row": _ROW,
    "same_file": "give the right file for each sequence; one of them is misnamed",
    "scanner": _VALUE,
    "second_visit": _NOTHING + "one visit per patient is used",
    "sex": _VALUE,
    "sheared": _CONVERT,
    "site": _ROW,
    "spacing": _CONVERT,
    "spelling": _NOTHING + "write the id alike in both places to end this warning",
    "truncated": _COPY,
    "two_files": "remove the file that is not to be used",
    "unreadable": "check that the file is there and that this user may read it",
}
_OTHERWISE: Final = "do what the message says"


def remedy_of(finding: Finding) -> str:
    """Return what to do about a finding."""
    return REMEDIES.get(finding.code, _OTHERWISE)


def by_reason(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings have each short name, the most frequent first."""
    return dict(Counter(finding.code for finding in findings).most_common())
