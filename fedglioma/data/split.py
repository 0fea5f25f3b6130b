"""Who trains, who selects the model, who is reported: by patient, and stable when patients are added."""

import hashlib
from enum import StrEnum

from fedglioma.errors import ConfigError


class Split(StrEnum):
    """What a patient's cases are used for."""

    TRAIN = "train"
    SELECTION = "selection"
    REPORT = "report"


def assign_split(patient: str, *, seed: int, selection: float, report: float) -> Split:
    """Return the split of a patient: a function of the patient and the settings, of nobody else.

    So all cases of a patient stay together, and a new patient moves no other. The fractions hold on
    average: of 50 patients and a fraction of 0.2, 10 are expected, give or take 6. A larger
    ``selection`` takes patients from training only, never from those reported.

    Parameters
    ----------
    patient : str
        The cohort's ``participant_id``.
    seed : int
        Another seed is another, independent division.
    selection, report : float
        Expected fraction of patients in each; the rest trains.

    Raises
    ------
    ConfigError
        A fraction is negative, or nothing would be left to train on.
    """
    if not (selection >= 0 and report >= 0 and selection + report < 1):
        raise ConfigError(
            f"split: selection {selection} and report {report}: fractions of at least 0 and below 1 in sum"
        )
    digest = hashlib.sha256(f"{seed}\n{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < report:
        return Split.REPORT
    return Split.SELECTION if place < report + selection else Split.TRAIN
