import csv
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from fedglioma_client import cli
from tests.bad_cohorts import COLUMNS, ROWS, volume, write_cohort, write_table
from tests.cli_fixture import meddled

MARK = "P2"
SPACING = ["--spacing-mm", "8"]
QUICK = [*SPACING, "--no-bias-correction"]
Command = Callable[..., Result]


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Three whole patients and the settings of site north."""
    write_cohort(tmp_path / "data")
    settings(tmp_path)
    return tmp_path


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command line as site north."""
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setenv("FEDGLIOMA_CONFIG_DIR", str(tmp_path / "site_config"))
    monkeypatch.setenv("FEDGLIOMA_SITE", "north")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Result:
        return CliRunner().invoke(cli.app, words, catch_exceptions=False)

    return call


def settings(root: Path, **changed: object) -> None:
    table = {"site": "north", "data": "../data", "cache": "../cache", "threads": 1} | changed
    (root / "site_config").mkdir(exist_ok=True)
    text = "".join(f"{key}: {value}\n" for key, value in table.items())
    (root / "site_config" / "north.yaml").write_text(text, encoding="utf-8")


def verdicts(result: Result) -> dict[str, str]:
    """Return each check's status from its line."""
    return {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()[:-1]}


def test_without_a_command_and_a_server_it_says_what_joining_needs(client: Command, hospital: Path) -> None:
    result = client()
    assert result.exit_code == 2
    assert "north.yaml: server, ca and key are needed to join" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_a_command_and_a_site_it_helps(client: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDGLIOMA_SITE")
    result = client()
    assert result.exit_code == 2
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--site", "south", "check"], "sites in .*: north"),
        (["--site", "../north", "check"], "without folder and .yaml"),
        (["--site", "north.yaml", "prepare"], "without folder and .yaml"),
    ],
)
def test_a_wrong_site_is_told_in_one_line(
    client: Command, hospital: Path, words: list[str], said: str
) -> None:
    result = client(*words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(said, result.stderr)


def test_a_command_without_a_site_says_where_to_name_it(
    client: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDGLIOMA_SITE")
    result = client("check")
    assert result.exit_code == 2
    assert "fedglioma-client --site NAME" in result.stderr


def test_check_of_a_whole_site_finds_nothing(client: Command, hospital: Path) -> None:
    result = client("check", *SPACING)
    assert result.exit_code == 0
    assert set(verdicts(result).values()) == {"ok"}
    assert "IDH 3 known (2 mutant, 1 wild-type)" in result.stdout
    assert "flair+t1ce+t1+t2 3" in result.stdout
    assert result.stdout.splitlines()[-1] == "north: nothing failed, 0 warnings"
    assert result.stderr == ""


def test_check_changes_nothing(client: Command, hospital: Path) -> None:
    before = sorted(hospital.rglob("*"))
    client("check", *SPACING)
    assert sorted(hospital.rglob("*")) == before


def test_check_counts_patients_on_stdout_and_names_them_on_the_terminal_only(
    client: Command, hospital: Path
) -> None:
    volume(hospital / "data").write_bytes(b"")
    result = client("check", *SPACING)
    assert result.exit_code == 0
    assert verdicts(result)["cases"] == "warning"
    assert "2 usable, 1 left out (1 empty)" in result.stdout
    assert MARK not in result.stdout
    assert "empty (1): copy the file again" in result.stderr
    assert MARK in result.stderr


def test_check_in_json_names_no_patient(client: Command, hospital: Path) -> None:
    volume(hospital / "data").write_bytes(b"")
    result = client("check", *SPACING, "--format", "json")
    envelope = json.loads(result.stdout)
    assert envelope["exit_code"] == result.exit_code == 0
    assert envelope["data"]["cases"] == 2
    assert envelope["data"]["excluded"] == {"empty": 1}
    assert envelope["data"]["labels"]["idh"] == {"0": 0, "1": 2, "unknown": 0}
    assert {"check", "status", "detail", "remedy"} == set(envelope["data"]["checks"][0])
    assert MARK not in result.stdout + result.stderr


@pytest.mark.parametrize("damage", ["no file right", "no folder", "no table"])
def test_check_of_data_that_cannot_be_used_ends_with_4(client: Command, hospital: Path, damage: str) -> None:
    if damage == "no file right":
        write_table(hospital / "data", [COLUMNS, *((*row[:2], "yes", *row[3:]) for row in ROWS)])
    elif damage == "no folder":
        settings(hospital, data="../elsewhere")
    else:
        (hospital / "data" / "participants.tsv").unlink()
    for words in ([], ["--format", "json"]):
        result = client("check", *SPACING, *words)
        assert result.exit_code == 4
        assert MARK not in result.stdout


def test_check_of_a_site_without_any_label_ends_with_4(client: Command, hospital: Path) -> None:
    write_table(hospital / "data", [COLUMNS, *((*row[:2], "n/a", "n/a", "n/a", *row[5:]) for row in ROWS)])
    result = client("check", *SPACING)
    assert result.exit_code == 4
    assert verdicts(result)["labels"] == "failed"


def test_check_warns_of_a_marker_that_nobody_measured(client: Command, hospital: Path) -> None:
    write_table(hospital / "data", [COLUMNS, *((*row[:4], "n/a", *row[5:]) for row in ROWS)])
    result = client("check", *SPACING)
    assert result.exit_code == 0
    assert verdicts(result)["labels"] == "warning"
    assert "fill ATRX in participants.tsv" in result.stdout


def test_check_of_wrong_settings_still_looks_at_the_computer(client: Command, hospital: Path) -> None:
    settings(hospital, devise="cpu")
    result = client("check", *SPACING)
    assert result.exit_code == 2
    assert verdicts(result) == {"settings": "failed", "software": "ok", "telemetry": "ok"}
    assert "did you mean device?" in result.stdout


def test_the_first_failure_decides_the_exit_code(client: Command, hospital: Path) -> None:
    settings(hospital, data="../elsewhere", device="gpu")
    result = client("check", *SPACING)
    assert verdicts(result)["device"] == "failed"
    assert result.exit_code == 4


def test_an_unknown_log_level_is_a_usage_error(client: Command, hospital: Path) -> None:
    assert client("check", "--log-level", "loud").exit_code == 2


def test_prepare_skips_what_is_done(client: Command, hospital: Path) -> None:
    first = client("prepare", *QUICK, "--format", "json")
    again = client("prepare", *QUICK, "--format", "json")
    assert first.exit_code == again.exit_code == 0
    counts = [json.loads(result.stdout)["data"] for result in (first, again)]
    assert [(count["made"], count["found"]) for count in counts] == [(3, 0), (0, 3)]


def test_preparation_for_the_fusion_model_brings_its_radiomics_settings(
    client: Command, hospital: Path
) -> None:
    data = json.loads(client("prepare", *QUICK, "--preprocessing", "fusion", "--format", "json").stdout)[
        "data"
    ]
    folder = Path(data["report"]).parent
    report = json.loads((folder / "prepare-report.json").read_text(encoding="utf-8"))
    assert report["settings"]["reference"] == "t2"
    content = (folder / "radiomics_glioma.yaml").read_bytes()
    assert hashlib.sha256(content).hexdigest() == report["radiomics_sha256"]
    settings = yaml.safe_load(content)
    counts = {name: len(chosen) for name, chosen in settings["featureClass"].items() if chosen}
    assert counts == {"shape": 13, "glcm": 22}
    assert settings["imageType"]["LoG"]["sigma"] == [1.0, 3.0, 5.0]


def test_prepare_prepares_a_new_patient_only(client: Command, hospital: Path) -> None:
    write_table(hospital / "data", [COLUMNS, *ROWS[:2]])
    client("prepare", *QUICK)
    write_table(hospital / "data", [COLUMNS, *ROWS])
    assert "3 cases prepared at 8 mm (1 now, 2 were there already)" in client("prepare", *QUICK).stdout


def test_prepare_lists_who_was_left_out_where_only_the_owner_reads(client: Command, hospital: Path) -> None:
    volume(hospital / "data").write_bytes(b"")
    result = client("prepare", *QUICK)
    assert result.exit_code == 0
    assert MARK not in result.stdout + result.stderr
    folder = hospital / "cache" / "north"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    with (folder / "findings.csv").open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["outcome"], row["patient"], row["code"]) == ("left out", MARK, "empty")
    assert row["remedy"].startswith("copy the file again")
    report = json.loads((folder / "prepare-report.json").read_text(encoding="utf-8"))
    assert report["made"] == 2
    assert report["exclusions"][0]["patient"] == MARK


@pytest.mark.parametrize("stage", ["read", "prepare"])
def test_prepare_without_a_usable_case_ends_with_4_and_a_report(
    client: Command, hospital: Path, stage: str
) -> None:
    if stage == "read":
        write_table(hospital / "data", [COLUMNS, *((*row[:2], "yes", *row[3:]) for row in ROWS)])
    else:
        for path in (hospital / "data").glob("*/*.nii.gz"):
            path.write_bytes(path.read_bytes()[:-4])
    result = client("prepare", *QUICK, "--format", "json")
    envelope = json.loads(result.stdout)
    assert result.exit_code == envelope["exit_code"] == 4
    assert envelope["data"]["prepared"] == 0
    assert "P1" not in result.stdout
    report = json.loads(Path(envelope["data"]["report"]).read_text(encoding="utf-8"))
    assert "P1" in report["reason"]
    assert len(report["exclusions"]) == 3
    told = client("prepare", *QUICK)
    assert told.exit_code == 4
    assert told.stderr.splitlines()[-1].startswith("error: ")


def test_prepare_of_an_absent_folder_ends_with_4_and_leaves_nothing(client: Command, hospital: Path) -> None:
    settings(hospital, data="../elsewhere")
    result = client("prepare", *QUICK)
    assert result.exit_code == 4
    assert "not found" in result.stderr
    assert not (hospital / "cache").exists()


def test_sites_that_share_a_cache_keep_their_own_reports(client: Command, hospital: Path) -> None:
    text = (hospital / "site_config" / "north.yaml").read_text(encoding="utf-8")
    (hospital / "site_config" / "south.yaml").write_text(text.replace("north", "south"), encoding="utf-8")
    client("prepare", *QUICK)
    client("--site", "south", "prepare", *QUICK)
    assert sorted(path.parent.name for path in hospital.glob("cache/*/prepare-report.json")) == [
        "north",
        "south",
    ]


def test_the_installed_program_checks_and_prepares(hospital: Path) -> None:
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "FEDGLIOMA_"))}
    client = [*_program(), "--site", "north", "--config-dir", str(hospital / "site_config")]
    checked = subprocess.run([*client, "check", *SPACING], env=outside, capture_output=True, text=True)  # noqa: S603
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "telemetry  off" in checked.stdout
    assert "\x1b" not in checked.stdout
    done = subprocess.run([*client, "prepare", *QUICK], env=outside, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0
    assert "3 cases prepared at 8 mm (3 now" in done.stdout
    assert "prepare: 3/3 cases" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_a_stopped_preparation_leaves_nothing_half_written_and_goes_on(
    client: Command, hospital: Path, how: signal.Signals
) -> None:
    cache, fine = hospital / "cache", ["--spacing-mm", "2"]
    settings(hospital, workers=1)
    words = [*_program(), "--site", "north", "--config-dir", str(hospital / "site_config"), "prepare", *fine]
    # It waits for the signal before the third patient: left to itself it may end before this process looks.
    environment = meddled(dict(os.environ), "prepare_waits:3", hospital / "signals")
    process = subprocess.Popen(  # noqa: S603 - our own words
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 300
    while not (hospital / "signals" / "preparing").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert told.splitlines()[-1].startswith("interrupted:")
    kept = {path.stem for path in cache.iterdir()}
    assert {path.suffix for path in cache.iterdir()} == {".npy", ".json"}
    assert len(kept) == 2
    result = client("prepare", *fine, "--format", "json")
    data = json.loads(result.stdout)["data"]
    assert (data["found"], data["prepared"]) == (len(kept), 3)


def _program() -> list[str]:
    return [sys.executable, "-c", "from fedglioma_client.cli import main; main()"]
