"""Who is the same person: one rule for ids and numbers, whoever asks."""

import pytest

from fedglioma.data.person import person_key, signs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1", "sub-p1"),
        ("0042", " SUB-0042"),
        ("BraTS-GLI-00005-000", "brats-gli-00005-001"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00005"),
        ("Müller", "MU\N{COMBINING DIAERESIS}LLER"),
        ("P12", "\N{FULLWIDTH LATIN CAPITAL LETTER P}12"),
    ],
)
def test_spellings_and_visits_of_an_id_are_one_person(one: str, other: str) -> None:
    assert person_key(one) == person_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("P1", "P2"), ("P1", "P1-001"), ("anonymous", "unknown"), ("", "0")]
)
def test_other_ids_are_other_people(one: str, other: str) -> None:
    assert person_key(one) != person_key(other)


def test_one_sign_in_common_makes_one_person() -> None:
    known = {*signs("P1", "11010X")}
    assert known & {*signs("sub-p1", None)}
    assert known & {*signs("Q7", " 11010x ")}
    assert not known & {*signs("Q7", "640102")}
    assert not known & {*signs("11010X", None)}, "an id is no number"


@pytest.mark.parametrize("number", [None, "", "n/a", "anonymous"])
def test_absent_number_is_no_sign(number: str | None) -> None:
    assert [sign.kind for sign in signs("P1", number)] == ["id"]
