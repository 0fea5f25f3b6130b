"""One person under two ids, known by the number: one patient to a split and to the account of privacy."""

from pathlib import Path

import pytest

from fedglioma.case import Finding
from fedglioma.data.cohort import merge_cohorts, read_cohort, read_cohorts
from fedglioma.data.manifest import read_participants
from fedglioma.errors import DataError
from tests.bad_cohorts import COLUMNS, ROWS, brain, write_cohort, write_table, write_volume

NUMBER = "11010519491231002X"
OTHER = "640102197505055678"


def cohort(folder: Path, *numbers: str, **changed: tuple[str, str]) -> Path:
    """Write three patients, P1 to P3, with these numbers; ``P1=("idh", "2")`` changes a cell."""
    write_cohort(folder)
    write_numbers(folder, *numbers, **changed)
    return folder


def write_numbers(folder: Path, *numbers: str, **changed: tuple[str, str]) -> None:
    rows = [
        dict(zip([*COLUMNS, "linkage_id"], (*row, n), strict=True))
        for row, n in zip(ROWS, numbers, strict=True)
    ]
    for row in rows:
        if row["participant_id"] in changed:
            column, value = changed[row["participant_id"]]
            row[column] = value
    write_table(folder, [[*COLUMNS, "linkage_id"], *(row.values() for row in rows)])


def codes(findings: tuple[Finding, ...]) -> list[tuple[str, str]]:
    return [(finding.patient, finding.code) for finding in findings]


def patients(found: object) -> list[str]:
    return [case.patient for case in found.cases]  # type: ignore[attr-defined]


@pytest.mark.parametrize("spelling", [NUMBER, NUMBER.lower(), f" {NUMBER} "])
def test_one_person_under_two_ids_counts_once(tmp_path: Path, spelling: str) -> None:
    read = read_cohort(cohort(tmp_path / "c", NUMBER, OTHER, spelling))
    assert patients(read) == ["P1", "P2"]
    assert codes(read.exclusions) == [("P3", "same_person")]
    assert not read.warnings
    message = read.exclusions[0].message
    assert "linkage_id is that of patient P1: one person under two ids; only the first counts" in message
    assert NUMBER.lower() not in message.lower()


@pytest.mark.parametrize("number", ["n/a", "", "unknown", "12345", "anonymous"])
def test_rows_without_a_number_are_different_people(tmp_path: Path, number: str) -> None:
    read = read_cohort(cohort(tmp_path / "c", number, number, number))
    assert patients(read) == ["P1", "P2", "P3"]
    assert not read.exclusions


def test_row_that_cannot_be_used_does_not_shut_out_the_other(tmp_path: Path) -> None:
    label = read_cohort(cohort(tmp_path / "label", NUMBER, OTHER, NUMBER, P1=("idh", "2")))
    assert patients(label) == ["P2", "P3"]
    assert codes(label.exclusions) == [("P1", "label")]
    broken = cohort(tmp_path / "broken", NUMBER, OTHER, NUMBER)
    (broken / "P1" / "P1_t1.nii.gz").write_bytes(b"")
    assert codes(read_cohort(broken).exclusions) == [("P1", "empty")]
    assert patients(read_cohort(broken)) == ["P2", "P3"]


@pytest.mark.parametrize("refused", ["P1", "P3"])
def test_persons_refusal_counts_under_both_ids(tmp_path: Path, refused: str) -> None:
    other = "P3" if refused == "P1" else "P1"
    read = read_cohort(
        cohort(tmp_path / "c", NUMBER, OTHER, NUMBER.lower(), **{refused: ("purpose", "none")})
    )
    assert patients(read) == ["P2"]
    assert sorted(codes(read.exclusions)) == [("P1", "consent"), ("P3", "consent")]
    (told,) = [finding.message for finding in read.exclusions if finding.patient == other]
    row = 2 if refused == "P1" else 4
    assert f"row {row} is of the same person (linkage_id), whose purpose forbids it" in told
    assert NUMBER.lower() not in told.lower()


def test_refusal_without_a_number_is_of_nobody_else(tmp_path: Path) -> None:
    table = cohort(tmp_path / "c", "n/a", "n/a", "12345", P1=("purpose", "none")) / "participants.tsv"
    assert [row.patient for row in read_participants(table).participants] == ["P2", "P3"]


def renamed(folder: Path) -> Path:
    """Give the patients P1 to P3 the ids Q7 to Q9."""
    for old, new in (("P1", "Q7"), ("P2", "Q8"), ("P3", "Q9")):
        for path in (folder / old).iterdir():
            path.rename(path.with_name(path.name.replace(old, new)))
        (folder / old).rename(folder / new)
        table = folder / "participants.tsv"
        table.write_text(table.read_text().replace(old, new))
    return folder


def test_person_under_two_ids_in_two_cohorts_counts_once(tmp_path: Path) -> None:
    first = read_cohort(cohort(tmp_path / "first", NUMBER, OTHER, "n/a"))
    second = renamed(cohort(tmp_path / "second", NUMBER.lower(), "n/a", "n/a"))
    merged = merge_cohorts([first, read_cohort(second)])
    assert patients(merged) == ["P1", "P2", "P3", "Q8", "Q9"]
    assert codes(merged.exclusions) == [("Q7", "same_person")]
    message = merged.exclusions[0].message
    assert (
        "linkage_id is that of patient P1: one person under two ids; only the case of cohort first" in message
    )
    assert NUMBER.lower() not in message.lower()


def test_ids_and_numbers_are_followed_through_all_cohorts(tmp_path: Path) -> None:
    """P1 has the number in the second cohort only, and by it P3 of the third is P1 of the first."""
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for folder, numbers, kept in ((one, "--", "P1"), (two, NUMBER, "P1"), (three, NUMBER, "P3")):
        write_cohort(folder)
        numbered = [(*row, numbers if row[0] == kept else "n/a") for row in ROWS if row[0] == kept]
        write_table(folder, [[*COLUMNS, "linkage_id"], *numbered])
    merged = merge_cohorts([read_cohort(folder) for folder in (one, two, three)])
    assert patients(merged) == ["P1"]
    found = [code for code in codes(merged.exclusions) if code[1] != "not_in_table"]
    assert found == [("P1", "duplicate"), ("P3", "same_person")]


def test_row_of_another_purpose_shuts_out_no_other_row_of_the_person(tmp_path: Path) -> None:
    folder = cohort(tmp_path / "c", NUMBER, OTHER, NUMBER, P1=("purpose", "clinical"))
    read = read_cohort(folder, purpose="research")
    assert patients(read) == ["P2", "P3"]
    assert codes(read.exclusions) == [("P1", "consent")]
    assert "purpose is 'clinical', this is for research" in read.exclusions[0].message
    assert patients(read_cohort(folder, purpose="clinical")) == ["P1"]
    assert patients(read_cohort(folder)) == ["P1", "P2"]


@pytest.mark.parametrize("same", ["id", "number"])
@pytest.mark.parametrize("purpose", ["clinical", "none"])
def test_purpose_that_excludes_a_row_shuts_out_no_row_of_another_cohort(
    tmp_path: Path, same: str, purpose: str
) -> None:
    """``none`` is also what a hospital writes that leaves a patient to another one (docs/data-manager.md)."""
    one = cohort(tmp_path / "one", NUMBER, OTHER, "n/a", P1=("purpose", purpose))
    two = cohort(tmp_path / "two", NUMBER, "n/a", "n/a")
    again = ["P1"] if same == "id" else ["Q7", "Q8", "Q9"]
    if same == "number":
        renamed(two)
    merged = read_cohorts([one, two], purpose="research")
    assert patients(merged) == ["P2", "P3", *again]
    assert codes(merged.exclusions)[0] == ("P1", "consent")
    assert [case.purpose for case in merged.cases] == ["research"] * len(merged.cases)


def test_cohort_for_another_purpose_adds_nobody_and_one_for_none_is_refused(tmp_path: Path) -> None:
    everybody = {row[0]: ("purpose", "clinical") for row in ROWS}
    clinical = cohort(tmp_path / "clinical", "n/a", "n/a", "n/a", **everybody)
    research = renamed(cohort(tmp_path / "research", "n/a", "n/a", "n/a"))
    both = read_cohorts([clinical, research], purpose="research")
    assert patients(both) == ["Q7", "Q8", "Q9"]
    assert codes(both.exclusions) == [(row[0], "consent") for row in ROWS]
    with pytest.raises(DataError, match=r"no usable case is left \(3 consent\); P1: .* this is for research"):
        read_cohorts([clinical], purpose="research")
    nobody = {row[0]: ("purpose", "none") for row in ROWS}
    refused = cohort(tmp_path / "refused", "n/a", "n/a", "n/a", **nobody)
    with pytest.raises(DataError, match=r"refused: no usable case is left \(3 consent\)"):
        read_cohorts([refused, research], purpose="research")


@pytest.mark.parametrize("refused", ["BraTS-GLI-00005-000", "BraTS-GLI-00005-001"])
def test_refusal_counts_at_every_visit(tmp_path: Path, refused: str) -> None:
    visits = ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000")
    for name in visits:
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / f"{name}-t1n.nii.gz", brain(0))
    rows = [[name, "1", "none" if name == refused else "research"] for name in visits]
    write_table(tmp_path, [["participant_id", "idh", "purpose"], *rows])
    read = read_cohort(tmp_path)
    assert patients(read) == ["BraTS-GLI-00006-000"]
    assert sorted(codes(read.exclusions)) == [(name, "consent") for name in visits[:2]]
