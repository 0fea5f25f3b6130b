"""Who is the same person: by the id, however it is spelled and at whatever visit, and by the person's number.

One rule for cohorts that are merged, hospitals that are kept apart, members told from non-members, and the
account of privacy.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from fedglioma.case import Case
from fedglioma.data.layout import visit_of
from fedglioma.data.manifest import bare_id, patient_key
from fedglioma.pseudonym import plain_id

ID: Final = "id"
NUMBER: Final = "number"


class Sign(NamedTuple):
    """What a person is known by: the kind, ``id`` or ``number``, and what all spellings of it share."""

    kind: str
    text: str


def person_key(patient: str) -> str:
    """Return what every spelling and every time point of one person's id share."""
    # Case and Unicode form first: what tells a visit from a patient stands in the id as people write it.
    return patient_key(visit_of(bare_id(plain_id(patient) or patient))[0])


def signs(patient: str, linkage_id: str | None) -> tuple[Sign, ...]:
    """Return what a person is known by; two cases with one sign in common are of one person.

    The number counts where it is known; it is never to be told.
    """
    number = plain_id(linkage_id or "")
    return (Sign(ID, person_key(patient)), *([Sign(NUMBER, number)] if number else []))


def signs_of(cases: Iterable[Case]) -> set[Sign]:
    """Return the signs of all persons among cases."""
    return {sign for case in cases for sign in signs(case.patient, case.linkage_id)}
