"""Hospitals that cannot be had from the patients or the settings files end a command in words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedglioma_server.records import RunRecord, read_json
from tests.cli_fixture import TINY, assert_matches, call, reason_of


def test_nothing_to_simulate_on_is_told_with_the_choices() -> None:
    result = call("simulate", "--dry-run")
    assert result.exit_code == 2
    assert_matches("--cohort DIR, --synthetic N, or --sites", reason_of(result))


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ("beijing", 2, r"no usable case of beijing; there are henan"),
        ("henan,beijing", 2, r"no usable case of beijing"),
        ("7", 2, "--sites 7: between 1 and 6"),
        ("", 2, "--sites: empty"),
        ("宁夏", 2, "write it in the letters a to z"),
        ("site_config", 2, "settings files name their own data; leave --cohort out"),
        ("site_config/henan.yaml,henan", 2, "henan is no settings file and no folder of them"),
    ],
)
def test_sites_that_do_not_fit_the_cohort_are_told(
    spec: str, code: int, said: str, cohorts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cohorts)
    result = call("simulate", "--dry-run", "--cohort", "data/henan", "--sites", spec, *TINY)
    assert result.exit_code == code
    assert_matches(said, reason_of(result))


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda text: text + "bach_size: 2\n", 2, "henan.yaml: bach_size: unknown setting"),
        (lambda text: text.replace("data:", "daata:"), 2, r"unknown setting, did you mean data\?"),
        (lambda text: text.replace("site: henan", "site: ningxia"), 2, "does not match the file's name"),
        (lambda text: text.replace("site: henan", "site: Henan"), 2, "lower-case letters"),
        (lambda text: text.replace("../data/henan", "../data/gone"), 4, "gone"),
        (lambda text: text + "layout: dicom\n", 4, "no series of DICOM"),
        (lambda text: text + "layout: brats2023\n", 4, "brats2023"),
        (lambda text: text + "device: tpu\n", 2, "henan.yaml: device: tpu: choose cpu"),
        (lambda text: text.replace("small_cell_limit: 1", "small_cell_limit: 0"), 2, "small_cell_limit: 0"),
    ],
)
def test_site_settings_with_a_mistake_are_named_with_it(
    change: Callable[[str], str], code: int, said: str, cohorts: Path, tmp_path: Path
) -> None:
    text = (cohorts / "site_config" / "henan.yaml").read_text(encoding="utf-8")
    (tmp_path / "site_config").mkdir()
    (tmp_path / "data").symlink_to(cohorts / "data")
    (tmp_path / "site_config" / "henan.yaml").write_text(change(text), encoding="utf-8")
    result = call("simulate", "--dry-run", "--sites", tmp_path / "site_config", *TINY)
    assert result.exit_code == code
    assert_matches(said, reason_of(result))


def test_patient_of_the_same_id_in_two_hospitals_is_refused(cohorts: Path, tmp_path: Path) -> None:
    data = cohorts / "data" / "henan"
    for site in ("north", "south"):
        (tmp_path / f"{site}.yaml").write_text(f"site: {site}\ndata: {data}\n", encoding="utf-8")
    result = call("simulate", "--sites", tmp_path, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 4
    assert "south and north hold a patient of the same id" in reason_of(result)


def test_every_patient_held_out_is_told_with_the_remedy(cohorts: Path, tmp_path: Path) -> None:
    words = ("--cohort", cohorts / "data" / "henan", "--cache", cohorts / "cache", "--out", tmp_path / "run")
    result = call("simulate", *words, *TINY, "--selection", "0.5", "--report", "0.44")
    assert result.exit_code == 4
    assert "no hospital has a case to train on: add patients, or lower --selection" in reason_of(result)
    assert not (tmp_path / "run" / "run.json").exists()


def test_too_high_a_quorum_ends_with_3_and_the_run_on_record_as_failed(
    cohorts: Path, tmp_path: Path, finished: Path
) -> None:
    words = ("--sites", cohorts / "site_config", "--cache", cohorts / "cache", "--out", tmp_path / "run")
    result = call("simulate", *words, *TINY, "--quorum", "3")
    assert result.exit_code == 3
    assert "2 of 2 sites joined, 3 are needed" in reason_of(result)
    assert read_json(tmp_path / "run" / "run.json", RunRecord).status == "failed"
