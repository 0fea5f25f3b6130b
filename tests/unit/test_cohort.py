import json
import os
from collections import Counter
from pathlib import Path

import pytest

from fedglioma.case import Gene, Modality
from fedglioma.data.cohort import merge_cohorts, read_cohort
from fedglioma.data.synthetic_cohort import synthesize
from fedglioma.errors import DataError
from tests.bad_cohorts import COLUMNS, ROWS, affine, brain, write_cohort, write_table, write_volume

REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "glioma").is_dir(),
    reason="FEDGLIOMA_REAL_DATA names no folder of real cases",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort")
    return tmp_path / "cohort"


def test_cases_carry_what_the_table_says_and_stand_in_its_order(folder: Path) -> None:
    write_table(folder, [COLUMNS, ROWS[2], ROWS[0], ROWS[1]])
    cohort = read_cohort(folder)
    assert [case.patient for case in cohort.cases] == ["P3", "P1", "P2"]
    case = cohort.cases[1]
    assert (case.site, case.genotype.labels(), case.grade, case.age, case.sex) == (
        "north",
        (1, 0, 1),
        2,
        41,
        "F",
    )
    assert case.outcome is not None
    assert (case.outcome.os_days, case.outcome.os_event) == (2100, 0)
    assert case.present == tuple(Modality)
    assert (cohort.name, cohort.layout, cohort.synthetic) == ("cohort", "brats2021", False)


def test_expert_mask_is_used_and_an_automatic_one_is_not(folder: Path) -> None:
    write_volume(folder / "P1" / "P1_seg.nii.gz", brain(0).astype("uint8"))
    write_volume(folder / "P2" / "P2_segauto.nii.gz", brain(0).astype("uint8"))
    masks = [case.mask for case in read_cohort(folder).cases]
    assert masks == [folder / "P1" / "P1_seg.nii.gz", None, None]


@pytest.mark.parametrize(
    ("said", "synthetic"), [({"Synthetic": True}, True), ({"Synthetic": "no"}, False), ([], False)]
)
def test_cohort_says_itself_that_it_is_synthetic(folder: Path, said: object, synthetic: bool) -> None:
    (folder / "dataset_description.json").write_text(json.dumps(said))
    assert read_cohort(folder).synthetic is synthetic


def test_cohort_is_read_from_where_one_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(folder, [COLUMNS, *((row[0], "n/a", *row[2:]) for row in ROWS)])
    monkeypatch.chdir(folder)
    cohort = read_cohort(Path())
    assert cohort.name == "cohort"
    assert {case.site for case in cohort.cases} == {"cohort"}
    assert all(path.is_absolute() for case in cohort.cases for path in case.volumes.values())


def test_sub_prefix_may_stand_in_the_table_the_folder_or_both(tmp_path: Path) -> None:
    for patient in ("sub-1", "sub-2"):
        (tmp_path / patient / "anat").mkdir(parents=True)
        write_volume(tmp_path / patient / "anat" / f"{patient}_T1w.nii.gz", brain(0), affine())
    write_table(
        tmp_path,
        [["participant_id", "idh", "atrx", "codel_1p19q"], ["sub-1", "1", "0", "0"], ["2", "1", "0", "0"]],
    )
    cohort = read_cohort(tmp_path)
    assert [case.patient for case in cohort.cases] == ["1", "2"]
    assert not cohort.warnings


def test_table_may_name_the_patient_of_a_brats_time_point(tmp_path: Path) -> None:
    for visit in ("000", "001"):
        name = f"BraTS-GLI-00005-{visit}"
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / f"{name}-t1n.nii.gz", brain(0))
    write_table(
        tmp_path, [["participant_id", "idh", "atrx", "codel_1p19q"], ["BraTS-GLI-00005", "1", "0", "0"]]
    )
    cohort = read_cohort(tmp_path)
    assert cohort.cases[0].volumes[Modality.T1].name == "BraTS-GLI-00005-000-t1n.nii.gz"
    assert [(f.patient, f.code) for f in cohort.exclusions] == [("BraTS-GLI-00005-001", "second_visit")]


def test_every_broken_modality_of_a_case_is_named_at_once(folder: Path) -> None:
    (folder / "P2" / "P2_t1.nii.gz").write_bytes(b"")
    (folder / "P2" / "P2_t2.nii.gz").write_bytes(b"text")
    (finding,) = read_cohort(folder).exclusions
    assert finding.code == "empty"
    assert "t1 (<P2_t1.nii.gz>): 0 bytes" in finding.message
    assert "t2 (<P2_t2.nii.gz>): not a gzip stream" in finding.message


def test_merged_cohorts_keep_the_first_of_a_patient(folder: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "second")
    first, second = read_cohort(folder), read_cohort(tmp_path / "second")
    merged = merge_cohorts([first, second])
    assert merged.name == "cohort + second"
    assert merged.cases == first.cases
    assert Counter(finding.code for finding in merged.exclusions) == {"duplicate": 3}
    assert merge_cohorts([first]).cases == first.cases
    with pytest.raises(DataError, match="no cohort"):
        merge_cohorts([])


def test_cohort_without_a_usable_case_says_why(folder: Path) -> None:
    write_table(folder, [COLUMNS, *((*row[:2], "2", *row[3:]) for row in ROWS)])
    with pytest.raises(DataError, match=r"cohort: no usable case is left \(3 label\); P1: .* idh is <2>"):
        read_cohort(folder)


@needs_real_data
def test_real_cohorts_are_read_whole() -> None:
    assert REAL
    cohorts = [read_cohort(Path(REAL) / name) for name in ("lgg_hospitals_nc", "glioma")]
    merged = merge_cohorts(cohorts)
    assert [len(cohort.cases) for cohort in cohorts] == [40, 15]
    assert not merged.exclusions
    assert not merged.warnings
    sites = Counter(case.site for case in merged.cases)
    assert (sites["henryford"], sites["casewestern"], sites["jefferson"], sites["casewestern2"]) == (
        17,
        13,
        7,
        5,
    )
    assert Counter(case.genotype.label(Gene.IDH) for case in cohorts[0].cases) == {1: 33, 0: 7}
    assert Counter(case.genotype.label(Gene.CODEL) for case in cohorts[0].cases) == {1: 9, 0: 31}
    assert Counter(case.genotype.label(Gene.ATRX) for case in cohorts[0].cases) == {1: 18, 0: 22}
    assert sum(Modality.T2 not in case.volumes for case in merged.cases) == 40
    assert sum(case.mask is not None for case in cohorts[1].cases) == 13
    with_native = merge_cohorts([*cohorts, read_cohort(Path(REAL) / "native_grid")])
    assert Counter(finding.code for finding in with_native.exclusions) == {"duplicate": 2}


def test_patients_who_agreed_to_something_else_are_left_out_with_the_reason(tmp_path):
    folder = tmp_path / "cohort"
    synthesize(folder, patients=4, sites=("ningxia",), size=16)
    table = folder / "participants.tsv"
    lines = table.read_text(encoding="utf-8").splitlines()
    lines[1] = lines[1].replace("research", "clinical")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = read_cohort(folder)
    allowed = read_cohort(folder, purpose="research")
    assert [case.patient for case in allowed.cases] == [case.patient for case in read.cases[1:]]
    (finding,) = allowed.exclusions
    assert (finding.patient, finding.code) == (read.cases[0].patient, "consent")
    assert "did not agree" in finding.message
    assert [case.patient for case in read_cohort(folder, purpose="clinical").cases] == [finding.patient]
    table.write_text(table.read_text(encoding="utf-8").replace("research", "clinical"), encoding="utf-8")
    with pytest.raises(DataError, match=r"no usable case is left \(4 consent\); .* this is for research"):
        read_cohort(folder, purpose="research")
