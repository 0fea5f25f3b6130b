"""Cohorts in, hospitals out."""

import csv
import stat
from pathlib import Path

import pytest

from fedglioma.case import Finding
from fedglioma.config.site import PrivacyLimits, SiteConfig
from fedglioma.errors import ConfigError, DataError
from fedglioma_server.gather import (
    Gathering,
    SiteDefaults,
    gather,
    settings_files,
    summarise,
    without_ids,
    write_findings,
)
from tests.bad_cohorts import COLUMNS, ROWS, volume, write_cohort, write_table


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """P1 and P2 of site north, P3 of site south."""
    folder = tmp_path_factory.mktemp("gather") / "cohort"
    write_cohort(folder)
    return folder


def defaults(root: Path) -> SiteDefaults:
    return SiteDefaults(cache=root / "cache", workers=3, threads=2, device="cpu", small_cell_limit=7)


def gathered(cohort: Path, spec: str | None = None) -> Gathering:
    return gather([cohort], spec, defaults(cohort))


def patients(gathering: Gathering) -> dict[str, list[str]]:
    return {h.config.site: [case.patient for case in h.cases] for h in gathering.hospitals}


def with_sites(folder: Path, *names: str) -> Path:
    """Write the cohort again under other sites."""
    write_cohort(folder)
    rows = [(row[0], name, *row[2:]) for row, name in zip(ROWS, names, strict=True)]
    write_table(folder, [COLUMNS, *rows])
    return folder


def site_file(folder: Path, name: str, data: Path, *lines: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([f"site: {name}", f"data: {data}", *lines]) + "\n", encoding="utf-8")
    return path


def test_site_column_makes_the_hospitals(cohort: Path) -> None:
    assert patients(gathered(cohort)) == {"north": ["P1", "P2"], "south": ["P3"]}
    assert gathered(cohort).cohorts == ("cohort",)
    assert [case.patient for case in gathered(cohort).cases] == ["P1", "P2", "P3"]


def test_hospitals_without_a_file_get_the_settings_of_the_run(cohort: Path) -> None:
    for hospital in gathered(cohort).hospitals:
        assert not hospital.described
        assert hospital.config == SiteConfig(
            site=hospital.config.site,
            data=cohort.resolve(),
            cache=cohort / "cache",
            device="cpu",
            workers=3,
            threads=2,
            small_cell_limit=7,
            privacy=PrivacyLimits(
                max_epsilon=None, max_delta=0.01, min_noise_multiplier=1e-6, max_counts_epsilon=100.0
            ),
        )
        assert {case.site for case in hospital.cases} == {hospital.config.site}


def test_sites_column_in_free_text_becomes_short_names(tmp_path: Path) -> None:
    folder = with_sites(tmp_path / "cohort", "Henan Hospital", "henan hospital ", "Zhōng-zhou (2)")
    assert patients(gathered(folder)) == {"henan-hospital": ["P1", "P2"], "zhong-zhou-2": ["P3"]}


def test_sites_in_another_script_are_refused_and_not_thrown_together(tmp_path: Path) -> None:
    folder = with_sites(tmp_path / "cohort", "宁夏1院", "河南1院", "south")
    with pytest.raises(ConfigError, match="'宁夏1院': write it in the letters a to z and digits"):
        gathered(folder)


def test_chosen_names_leave_the_others_out(cohort: Path) -> None:
    assert patients(gathered(cohort, "south")) == {"south": ["P3"]}
    assert patients(gathered(cohort, " South , north,south")) == {"north": ["P1", "P2"], "south": ["P3"]}


@pytest.mark.parametrize("spec", ["east", "north,east", "north.east"])
def test_name_that_the_cohort_lacks_is_refused_with_what_it_has(cohort: Path, spec: str) -> None:
    with pytest.raises(ConfigError, match=r"no usable case of .*east; there are north, south"):
        gathered(cohort, spec)


@pytest.mark.parametrize("spec", ["", " ", ",", " , "])
def test_empty_choice_is_refused(cohort: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cohort)
    with pytest.raises(ConfigError, match="--sites: empty"):
        gathered(cohort, spec)


def test_number_deals_the_patients_evenly_and_always_alike(cohort: Path) -> None:
    dealt = patients(gathered(cohort, "2"))
    assert list(dealt) == ["site-1", "site-2"]
    assert sorted(len(names) for names in dealt.values()) == [1, 2]
    assert sorted(name for names in dealt.values() for name in names) == ["P1", "P2", "P3"]
    assert patients(gathered(cohort, " 2 ")) == dealt


def test_dealing_does_not_depend_on_the_order_of_the_table(tmp_path: Path, cohort: Path) -> None:
    write_cohort(tmp_path / "cohort")
    write_table(tmp_path / "cohort", [COLUMNS, *reversed(ROWS)])
    assert patients(gathered(tmp_path / "cohort", "2")) == patients(gathered(cohort, "2"))


@pytest.mark.parametrize("spec", ["0", "4", "99999999999999999999"])
def test_more_hospitals_than_patients_or_none_are_refused(cohort: Path, spec: str) -> None:
    with pytest.raises(ConfigError, match=f"--sites {spec}: between 1 and 3"):
        gathered(cohort, spec)


def test_digit_that_is_no_number_is_a_name(cohort: Path) -> None:
    with pytest.raises(ConfigError, match=r"write it in the letters a to z|no usable case of"):
        gathered(cohort, "²")


def test_settings_files_bring_hospitals_with_their_own_data(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "south")
    write_table(tmp_path / "south", [COLUMNS, ("Q1", *ROWS[0][1:])])
    for modality in ("flair", "t1ce", "t1", "t2"):
        target = tmp_path / "south" / "Q1" / f"Q1_{modality}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        volume(tmp_path / "south", modality, "P1").rename(target)
    site_file(tmp_path, "beta", tmp_path / "south", "small_cell_limit: 3", "cache: elsewhere")
    site_file(tmp_path, "alpha", cohort, "device: cpu", "threads: 1")
    (tmp_path / "example.yaml").write_text("site: example\ndata: nowhere\n", encoding="utf-8")
    found = gather([], str(tmp_path), defaults(tmp_path))
    assert patients(found) == {"alpha": ["P1", "P2", "P3"], "beta": ["Q1"]}
    assert {case.site for case in found.cases} == {"alpha", "beta"}
    assert [h.config.small_cell_limit for h in found.hospitals] == [5, 3]
    assert {h.config.cache for h in found.hospitals} == {tmp_path / "cache"}
    assert all(h.described for h in found.hospitals)
    assert [h.config.state for h in found.hospitals] == [
        tmp_path / "state" / name for name in ("alpha", "beta")
    ]
    assert found.cohorts == ("alpha", "beta")
    assert {finding.site for finding in found.exclusions} == {"beta"}


def test_patient_of_two_hospitals_is_refused_in_any_spelling(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "other")
    text = (tmp_path / "other" / "participants.tsv").read_text(encoding="utf-8")
    (tmp_path / "other" / "participants.tsv").write_text(text.replace("P2", "sub-p2"), encoding="utf-8")
    site_file(tmp_path, "alpha", cohort)
    site_file(tmp_path, "beta", tmp_path / "other")
    with pytest.raises(DataError, match="beta and alpha hold a patient of the same id") as raised:
        gather([], str(tmp_path), defaults(tmp_path))
    assert "P1" not in str(raised.value)


def test_person_of_two_hospitals_under_two_ids_is_refused_by_the_number(tmp_path: Path) -> None:
    for site, patient, number in (("alpha", "P1", "11010X"), ("beta", "P2", "11010x ")):
        write_cohort(tmp_path / f"of_{site}")
        rows = [(*row, number) for row in ROWS if row[0] == patient]
        write_table(tmp_path / f"of_{site}", [[*COLUMNS, "linkage_id"], *rows])
        site_file(tmp_path, site, tmp_path / f"of_{site}")
    with pytest.raises(DataError, match="beta and alpha hold a patient of the same linkage_id") as raised:
        gather([], str(tmp_path), defaults(tmp_path))
    assert "11010" not in str(raised.value)


def test_two_files_of_one_site_are_refused(cohort: Path, tmp_path: Path) -> None:
    one = site_file(tmp_path, "alpha", cohort)
    with pytest.raises(ConfigError, match="site alpha has a second settings file"):
        gather([], f"{one},{one}", defaults(tmp_path))


def test_settings_files_and_a_cohort_exclude_each_other(cohort: Path, tmp_path: Path) -> None:
    site_file(tmp_path, "alpha", cohort)
    with pytest.raises(ConfigError, match="leave --cohort out"):
        gather([cohort], str(tmp_path), defaults(tmp_path))


def test_nothing_given_is_told_with_the_choices(tmp_path: Path) -> None:
    for spec in (None, "3", str(tmp_path)):
        with pytest.raises(ConfigError, match="nothing to simulate on: give --cohort DIR"):
            gather([], spec, defaults(tmp_path))


def test_what_names_settings_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "site_config"
    folder.mkdir()
    for name in ("b.yaml", "a.yaml", "example.yaml", "notes.txt"):
        (folder / name).write_text("")
    (tmp_path / "henan").mkdir()
    (tmp_path / "stray.yaml").write_text("")
    assert settings_files(None) == []
    assert settings_files("") == []
    assert settings_files("henan,ningxia") == []
    assert settings_files("3") == []
    assert settings_files("site_config") == [Path("site_config/a.yaml"), Path("site_config/b.yaml")]
    assert settings_files("gone.yaml, site_config/a.yaml") == [Path("gone.yaml"), Path("site_config/a.yaml")]
    with pytest.raises(ConfigError, match="henan is no settings file and no folder of them"):
        settings_files("site_config/a.yaml,henan")


def test_findings_stand_under_the_name_that_their_hospital_has(tmp_path: Path) -> None:
    folder = with_sites(tmp_path / "cohort", "North Hospital", "North Hospital", "South")
    rows = (tmp_path / "cohort" / "participants.tsv").read_text(encoding="utf-8").splitlines()
    rows[2] = rows[2].replace("\t0\t0\t0\t", "\t2\t0\t0\t", 1)
    (tmp_path / "cohort" / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = gathered(folder)
    assert [(finding.patient, finding.site, finding.code) for finding in found.exclusions] == [
        ("P2", "north-hospital", "label")
    ]


def finding(message: str, patient: str = "P2", site: str = "north", code: str = "label") -> Finding:
    return Finding(patient=patient, site=site, code=code, message=message)


@pytest.mark.parametrize(
    ("patient", "message", "words"),
    [
        ("P2", "t1 (P2_t1.nii.gz): truncated", "t1 (the case_t1.nii.gz): truncated"),
        ("P2", "t1 (sub-P2_T1w.nii.gz): truncated", "t1 (the case_T1w.nii.gz): truncated"),
        (
            "P2",
            "the folder spells the id 'p2'; taken as the same",
            "the folder spells the id 'the case'; taken as the same",
        ),
        ("P2", "same as of patient P11; one image", "same as of patient another case; one image"),
        ("P2", "the patient is in cohort b as P11; only", "the patient is in cohort b as another case; only"),
        ("P2", "row 12: label is 'P2x'", "row 12: label is 'P2x'"),
        ("1", "t1 (1_t1.nii.gz): 1 of 11 voxels", "t1 (the case_t1.nii.gz): the case of 11 voxels"),
        ("1", "same as of patient 12; 12 voxels", "same as of patient another case; 12 voxels"),
        ("a.b+c", "file a.b+c_t1 is cut", "file the case_t1 is cut"),
        ("", "no column atrx", "no column atrx"),
        ("P2", "<ANNA MUELLER/IM1.dcm> and 3 more: cut off", "<...> and 3 more: cut off"),
        ("P2", "age is <Anna, 1955>; allowed is years", "age is <...>; allowed is years"),
    ],
)
def test_words_for_the_report_hold_no_patients_id(patient: str, message: str, words: str) -> None:
    others = {"P2", "P11", "1", "12"} if patient != "P2" else {"P2", "P11"}
    assert without_ids(finding(message, patient), others) == words


def test_findings_are_counted_by_site_kind_and_reason() -> None:
    exclusions = [finding("P2 is cut"), finding("P3 is cut", "P3"), finding("P4 is cut", "P4", site="south")]
    warnings = [finding("P2 is old"), finding("P5 is as P9", "P5", code="age")]
    issues = summarise(exclusions, warnings, ["P9"])
    assert [(issue.site, issue.kind, issue.code, issue.cases, issue.explanation) for issue in issues] == [
        ("north", "excluded", "label", 2, "the case is cut"),
        ("north", "warning", "age", 1, "the case is as another case"),
        ("north", "warning", "label", 1, "the case is old"),
        ("south", "excluded", "label", 1, "the case is cut"),
    ]


def test_duplicated_images_name_neither_patient_in_the_summary() -> None:
    issues = summarise([finding("t1 (P2_t1.nii.gz) is the same as of patient P1; once", "P2")], [], ["P1"])
    assert issues[0].explanation == "t1 (the case_t1.nii.gz) is the same as of patient another case; once"


def test_full_list_names_patients_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "work" / "findings.csv"
    write_findings(path, [finding('a "quoted", comma')], [finding("second", "P3")])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["patient"], row["message"]) for row in rows] == [
        ("excluded", "P2", 'a "quoted", comma'),
        ("warning", "P3", "second"),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
