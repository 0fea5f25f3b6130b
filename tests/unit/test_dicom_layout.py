"""A folder of DICOM is a cohort like any other; its headers say which scanner it was."""

from pathlib import Path

import pytest

from fedglioma.case import Modality
from fedglioma.data.cohort import Cohort, read_cohort
from fedglioma.data.dicom_write import PROTOCOLS, Protocol, write_series
from fedglioma.errors import DataError
from tests.dicom_fixture import SECRET, head, write_patient

HEADER = ("participant_id", "site", "idh", "codel_1p19q", "atrx", "scanner", "field_strength_t")


def write_table(folder: Path, *rows: tuple[str, ...]) -> None:
    (folder / "participants.tsv").write_text("\n".join("\t".join(row) for row in (HEADER, *rows)) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for patient in ("P1", "P2"):
        write_patient(tmp_path / patient, patient, Modality.T1, Modality.FLAIR)
    write_table(
        tmp_path,
        ("P1", "north", "1", "0", "1", "n/a", "n/a"),
        ("P2", "north", "0", "0", "0", "Own word", "1.5"),
    )
    return tmp_path


def read(folder: Path, layout: str | None = None) -> Cohort:
    return read_cohort(folder, layout=layout, secret=SECRET)


@pytest.mark.parametrize("layout", [None, "dicom"])
def test_series_of_each_patient_are_found_without_a_word_or_by_name(folder: Path, layout: str | None) -> None:
    cohort = read(folder, layout)
    assert cohort.layout == "dicom"
    assert [case.patient for case in cohort.cases] == ["P1", "P2"]
    for case in cohort.cases:
        assert case.present == (Modality.FLAIR, Modality.T1)
        assert len(case.series[Modality.T1]) == head().array.shape[2]


def test_scanner_is_what_the_header_says_where_the_table_does_not(folder: Path) -> None:
    first, second = read(folder).cases
    assert (first.scanner, first.field_strength_t) == ("Siemens skyra", 3.0)
    assert (second.scanner, second.field_strength_t) == ("Own word", 1.5)


def test_localizer_and_other_usual_series_are_told_and_cost_nobody(folder: Path) -> None:
    scout = Protocol("localizer", 20.0, 4.0, sequence=("GR",))
    write_series(folder / "P1" / "scout", head(9), scout, patient="P1", number=9)
    cohort = read(folder)
    assert len(cohort.cases) == 2
    assert [(finding.patient, finding.code) for finding in cohort.warnings] == [("P1", "localizer")]


def test_hospitals_own_table_names_a_series_that_says_nothing(folder: Path) -> None:
    base = PROTOCOLS[Modality.T2]
    silent = Protocol("series 7", base.repetition_ms, base.echo_ms)
    write_series(folder / "P1" / "s7", head(7), silent, patient="P1", number=7)
    (folder / "series_map.csv").write_text("description,modality\nseries 7,t2\n")
    assert Modality.T2 in read(folder).cases[0].present


def test_folder_without_a_series_says_so(tmp_path: Path) -> None:
    (tmp_path / "P1").mkdir()
    (tmp_path / "P1" / "letter.txt").write_text("no image")
    write_table(tmp_path, ("P1", "north", "1", "0", "1", "n/a", "n/a"))
    with pytest.raises(DataError, match="no series of DICOM"):
        read(tmp_path, "dicom")
