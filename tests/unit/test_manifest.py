from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import UNKNOWN, Genotype, Outcome
from fedglioma.data.manifest import Participant, Table, patient_key, read_participants
from fedglioma.errors import DataError

HEADER = "participant_id\tsite\tidh\tatrx\tcodel_1p19q"


def _read(tmp_path: Path, *lines: str, end: str = "\n", **options: str) -> Table:
    folder = tmp_path / "hospital"
    folder.mkdir(exist_ok=True)
    (folder / "participants.tsv").write_bytes((end.join(lines) + end).encode())
    return read_participants(folder / "participants.tsv", **options)


def _labels(table: Table) -> tuple[int, ...]:
    return table.participants[0].genotype.labels()


def test_row_with_everything_is_read(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        f"{HEADER}\tgrade\tage\tsex\tos_days\tos_event\tscanner\tfield_strength_t\tpurpose\tnote",
        "sub-7\tnorth\t1\t0\t1\t3\t41.5\tF\t900\t1\tTrio\t3\tresearch\tseen twice",
    )
    assert table.participants == (
        Participant(
            patient="7",
            site="north",
            genotype=Genotype(idh=1, atrx=0, codel_1p19q=1),
            grade=3,
            age=41.5,
            sex="F",
            outcome=Outcome(os_days=900, os_event=1),
            scanner="Trio",
            field_strength_t=3.0,
            purpose="research",
        ),
    )
    assert not table.exclusions
    assert not table.warnings


@pytest.mark.parametrize("word", ["n/a", "NA", "", "nan", "N/A", "unknown", "  "])
def test_what_was_not_measured_is_unknown(tmp_path: Path, word: str) -> None:
    table = _read(tmp_path, f"{HEADER}\tgrade\tage\tsex\tos_days\tos_event\tpurpose", "7" + f"\t{word}" * 10)
    assert table.participants == (Participant(patient="7", site="hospital"),)
    assert _labels(table) == (UNKNOWN, UNKNOWN, UNKNOWN)
    assert not table.warnings


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (("1", "0", "1"), (1, 0, 1)),
        (("1.0", "0.0", "0"), (1, 0, 0)),
        (("Mutant", "wild-type", "intact"), (1, 0, 0)),
        (("WT", "mut", "Co-deleted"), (0, 1, 1)),
        (("wild type", "mutated", "non-codeleted"), (0, 1, 0)),
    ],
)
def test_labels_in_figures_and_words(tmp_path: Path, cells: tuple[str, ...], labels: tuple[int, ...]) -> None:
    assert _labels(_read(tmp_path, HEADER, "\t".join(("7", "north", *cells)))) == labels


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "yes", "codeleted", "1,0", "\N{SUPERSCRIPT ONE}"])
def test_illegal_label_costs_the_case_and_is_told_with_column_and_value(tmp_path: Path, value: str) -> None:
    table = _read(tmp_path, HEADER, f"7\tnorth\t{value}\t0\t0", "8\tnorth\t1\t0\t0")
    assert [row.patient for row in table.participants] == ["8"]
    (finding,) = table.exclusions
    assert (finding.patient, finding.site, finding.code) == ("7", "north", "label")
    assert f"row 2: idh is <{value}>; allowed is 0 (wild-type), 1 (mutant), or n/a" in finding.message


def test_rows_without_a_site_belong_to_the_folder_or_the_given_site(tmp_path: Path) -> None:
    lines = ("participant_id\tidh\tatrx\tcodel_1p19q", "7\t1\t0\t0")
    assert _read(tmp_path, *lines).participants[0].site == "hospital"
    assert _read(tmp_path, *lines, site="south").participants[0].site == "south"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_every_system_are_read(tmp_path: Path, end: str) -> None:
    table = _read(tmp_path, "\ufeff" + HEADER.upper(), "7\tnorth\t1\t0\t0", "", "\t\t\t\t", end=end)
    assert [row.patient for row in table.participants] == ["7"]
    assert not table.exclusions


def test_refusal_counts_from_whichever_row_it_stands_in(tmp_path: Path) -> None:
    rows = ("7\tnorth\t1\t0\t0\tresearch", "8\tnorth\t1\t0\t0\tresearch", "7\tnorth\t1\t0\t0\tnone")
    table = _read(tmp_path, f"{HEADER}\tpurpose", *rows)
    assert [row.patient for row in table.participants] == ["8"]
    assert [finding.code for finding in table.exclusions] == ["consent", "duplicate"]


def test_spellings_of_one_patient_share_a_key() -> None:
    assert patient_key(" sub-Ab1 ") == patient_key("ab1") == "ab1"


def test_long_values_are_shortened_where_they_are_shown(tmp_path: Path) -> None:
    table = _read(tmp_path, HEADER, f"7\tnorth\t{'x' * 5000}\t0\t0")
    assert len(table.exclusions[0].message) < 250


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=200) | st.text("\t\n07in/a-participant_idhx", max_size=200).map(str.encode))
def test_any_bytes_are_a_table_or_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "participants.tsv"
    path.write_bytes(content)
    try:
        table = read_participants(path)
    except DataError:
        return
    assert table.participants or table.exclusions


@settings(deadline=None, max_examples=100)
@given(
    cells=st.lists(
        st.text(st.characters(exclude_characters="\t\r\n", codec="utf-8"), max_size=12),
        min_size=9,
        max_size=9,
    )
)
def test_any_cells_make_a_patient_or_a_reason(tmp_path: Path, cells: list[str]) -> None:
    header = "idh\tatrx\tcodel_1p19q\tgrade\tage\tsex\tos_days\tos_event\tfield_strength_t\tparticipant_id"
    table = _read(tmp_path, header, "\t".join([*cells, "7"]))
    assert len(table.participants) + len({finding.patient for finding in table.exclusions}) == 1
    assert all("\n" not in finding.message for finding in (*table.exclusions, *table.warnings))
