"""What a data manager does about a finding, by the finding's short name."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from fedglioma.case import Finding

_COPY = "copy the file again from where it came from"
_CONVERT = "convert the series from DICOM again, for example with dcm2niix"
_EXPORT = "export the series from the archive again"
_AGAIN = "export the series from the archive again, or convert it from DICOM again, as with dcm2niix"
_ROW = "correct the row in participants.tsv"
_LOOK = "open the volumes in a viewer and compare them"
_VALUE = "correct the value in participants.tsv; until then it counts as unknown"
_NOTHING = "nothing to do: "

REMEDIES: Final[dict[str, str]] = {
    "affine": _CONVERT,
    "age": _VALUE,
    "brain_volume": "look at the outline in the quality report; check voxel sizes and skull stripping",
    "burned_in": _EXPORT,
    "changed": "wait until copying has ended and run prepare again",
    "consent": _NOTHING
    + "the patient's purpose allows no use; correct it in participants.tsv if it is wrong",
    "constant": _EXPORT,
    "conversion": "export the series from the archive again, uncompressed (Explicit VR Little Endian)",
    "coverage": "check whether the sequence was cut short; the case is kept",
    "damaged": _COPY,
    "derived": "nothing to do; if the series is an original after all, name it in series_map.csv",
    "description": "correct dataset_description.json, or remove it",
    "dimensions": "give one three-dimensional volume per sequence",
    "dtype": "export the series as MR grey values, not as a colour picture",
    "duplicate": "keep one row per patient in participants.tsv",
    "duplicate_image": "find out whose image it is and remove the other copy",
    "duplicate_slices": "keep one copy of each slice, and one volume per series",
    "empty": _COPY,
    "extent": _AGAIN,
    "extractor": "run the brain extractor's command by hand on the patient's reference sequence",
    "field_strength_t": _VALUE,
    "flair_like_t2": _LOOK,
    "genotype": "ask pathology to check both markers; the case is kept as it is",
    "geometry": _EXPORT,
    "grade": _VALUE,
    "header": _AGAIN,
    "header_too_large": _EXPORT,
    "ignored": _NOTHING + "series_map.csv says to leave it out",
    "label": "write 0, 1 or n/a for the marker in participants.tsv",
    "link_outside": "copy the files themselves into the patient's folder",
    "linkage_id": _VALUE,
    "localizer": _NOTHING + "a localizer is never used",
    "mask": "replace or remove the mask; the case is kept without it",
    "masks_differ": "strip all sequences of the patient with one brain mask; the case is kept",
    "misaligned": "open the sequences over each other in a viewer; replace the one that does not belong",
    "missing_slices": "copy the whole series again; slices are missing",
    "mixed_matrix": _EXPORT,
    "mixed_orientation": "nothing to do; if it is no localizer, export each stack as a series of its own",
    "mixed_patients": "give each patient a folder with that patient's images alone",
    "more_sessions": _NOTHING + "only the first session is used",
    "noise": "look at the pictures in the quality report; give a better series if there is one",
    "no_brain": _LOOK,
    "no_column": "add the column to participants.tsv if the marker was measured",
    "no_modality": "check that the patient's folder and files are named as the layout says",
    "no_orientation": _CONVERT,
    "no_overlap": _LOOK,
    "non_finite": _EXPORT,
    "not_a_file": "put the file itself there; a folder, a pipe or a device is no image",
    "not_chosen": _NOTHING + "another series of this sequence is used",
    "not_dicom": _COPY,
    "not_gzip": _COPY,
    "not_in_table": "add a row for the patient to participants.tsv",
    "not_nifti": _CONVERT,
    "not_registered": "give volumes that lie on one common grid; the case is kept",
    "not_stripped": "give skull-stripped volumes; the case is kept",
    "not_structural": _NOTHING + "only T1, contrast-enhanced T1, T2 and FLAIR are used",
    "not_t1": _LOOK,
    "orientation_conflict": _CONVERT,
    "other_patient": "move the images to the folder of the patient whose they are",
    "outcome": _VALUE,
    "patient_id": _ROW,
    "registration": _LOOK,
    "row": _ROW,
    "same_contents": _LOOK,
    "same_file": "give the right file for each sequence; one of them is misnamed",
    "same_patient": "keep one folder per patient",
    "same_person": "keep one of the person's rows in participants.tsv, or correct linkage_id if they are two",
    "scanner": _VALUE,
    "second_visit": _NOTHING + "one visit per patient is used",
    "sequence_doubt": "see whether it is that sequence; name it in series_map.csv to end this warning",
    "several_volumes": "export one volume per series",
    "sex": _VALUE,
    "sheared": _AGAIN,
    "site": _ROW,
    "slab": "give a series that covers the whole brain",
    "sop_class": _NOTHING + "only MR images are used",
    "spacing": _AGAIN,
    "spelling": _NOTHING + "write the id alike in both places to end this warning",
    "t1_t1ce": _LOOK,
    "t2_flair": _LOOK,
    "t2_like_t1": _LOOK,
    "too_deep": "put the images into fewer folders in each other",
    "too_few_slices": "give a series that covers the whole brain",
    "too_large": _AGAIN,
    "too_many_files": "give each patient a folder of its own",
    "too_thick": "give a series of thinner slices, if there is one",
    "transfer_syntax": "export the series from the archive again, uncompressed (Explicit VR Little Endian)",
    "truncated": _COPY,
    "two_files": "remove the file that is not to be used",
    "unclear": "name the series in series_map.csv: description,modality",
    "unreadable": "check that the file is there and that this user may read it",
}
_OTHERWISE: Final = "do what the message says"

ROUTINE: Final = frozenset(
    {"derived", "ignored", "localizer", "more_sessions", "not_chosen", "not_structural", "sop_class"}
)
"""What every exam from a scanner brings along and is left aside: listed, and no reason to look at a case."""


def remedy_of(finding: Finding) -> str:
    """Return what to do about a finding."""
    return REMEDIES.get(finding.code, _OTHERWISE)


class Listed(Finding):
    """One finding as the reports show it, with what to do about it."""

    remedy: str

    @classmethod
    def of(cls, finding: Finding) -> "Listed":
        """Return a finding with what to do about it."""
        return cls(**finding.model_dump(), remedy=remedy_of(finding))


def needs_a_look(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings that somebody should look at."""
    return tuple(finding for finding in findings if finding.code not in ROUTINE)


def by_reason(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings have each short name, the most frequent first."""
    return dict(Counter(finding.code for finding in findings).most_common())
