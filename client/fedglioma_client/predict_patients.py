"""Which patients are asked for: found in the hospital's cohort, or named with the reason why not."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from fedglioma.case import Case, Finding
from fedglioma.config.site import SiteConfig
from fedglioma.data.cohort import Cohort
from fedglioma.data.manifest import TABLE_NAME, WHOLE_COHORT, patient_key
from fedglioma.errors import ConfigError, DataError
from fedglioma.pseudonym import SECRET_BYTES
from fedglioma_client.intake import Unusable, read_site_cohort

_CLOSE: Final = 0.5
"""So alike, by ``difflib``, are ids of two characters that share one."""


@dataclass(frozen=True)
class Chosen:
    """The patients who are asked for, and why others of them cannot be read.

    ``remarks`` are the reader's warnings about patients. ``synthetic`` says that all are made up.
    """

    cases: tuple[Case, ...]
    left_out: tuple[Finding, ...]
    remarks: tuple[Finding, ...]
    synthetic: bool


def choose(config: SiteConfig, names: Sequence[str], *, everybody: bool, purpose: str) -> Chosen:
    """Return the patients of these names, in their order, or everybody in the cohort.

    Parameters
    ----------
    purpose : str
        What the model is for: a patient whose consent names another purpose is left out.

    Raises
    ------
    ConfigError
        A name is no patient's; the message has similar ones.
    DataError
        The cohort cannot be read, or holds no usable patient.
    """
    # Ids in headers are compared within this reading only, so a secret that is forgotten will do.
    cohort = read_site_cohort(config, secrets.token_bytes(SECRET_BYTES))
    if isinstance(cohort, Unusable):
        raise DataError(cohort.reason)
    if everybody:
        cases: tuple[Case, ...] = cohort.cases
        left_out = tuple(finding for finding in cohort.exclusions if finding.patient != WHOLE_COHORT)
    else:
        cases, left_out = _named(cohort, names)
    agreed = tuple(case for case in cases if case.purpose in (None, purpose))
    refused = tuple(_refused(case, purpose) for case in cases if case.purpose not in (None, purpose))
    return Chosen(agreed, (*left_out, *refused), cohort.warnings, cohort.synthetic)


def _named(cohort: Cohort, names: Sequence[str]) -> tuple[tuple[Case, ...], tuple[Finding, ...]]:
    """Return cases and exclusions of the patients named; raises ``ConfigError`` for a name of nobody."""
    cases = {patient_key(case.patient): case for case in cohort.cases}
    excluded: dict[str, list[Finding]] = {}
    for finding in cohort.exclusions:
        if finding.patient != WHOLE_COHORT:
            excluded.setdefault(patient_key(finding.patient), []).append(finding)
    wanted = {patient_key(name): name for name in reversed(names)}
    keys = list(dict.fromkeys(map(patient_key, names)))
    known = {**excluded, **cases}
    for key in keys:
        if key not in known:
            raise ConfigError(_nobody(wanted[key], key, cohort))
    found = tuple(cases[key] for key in keys if key in cases)
    return found, tuple(one for key in keys if key not in cases for one in excluded[key])


def _nobody(name: str, key: str, cohort: Cohort) -> str:
    there = [*(finding.patient for finding in cohort.exclusions), *(case.patient for case in cohort.cases)]
    spelled = {patient_key(patient): patient for patient in there}
    similar = [spelled[close] for close in get_close_matches(key, sorted(spelled), cutoff=_CLOSE)]
    hint = f"did you mean {' or '.join(similar)}?" if similar else "patients go by their participant_id"
    return f"{name!r}: no such patient in {cohort.folder / TABLE_NAME}; {hint}"


def _refused(case: Case, purpose: str) -> Finding:
    return Finding(
        patient=case.patient,
        site=case.site,
        code="consent",
        message=f"purpose is {case.purpose!r}, the model is for {purpose}: the patient did not agree to it",
    )
