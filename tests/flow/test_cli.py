"""The server's commands as a researcher types them: what they print, write, and leave alone."""

import csv
import json
import socket
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file

from fedglioma.config.run import RunConfig
from fedglioma.payload import packed_bytes
from fedglioma.training.learner import layout_of, parameter_count
from fedglioma.training.released import load_model
from fedglioma_server.records import RunRecord, read_json, read_rounds
from tests.cli_fixture import SCRIPT, SYNTHETIC, TINY, call, data_of, reason_of, write_cohorts

Finished = tuple[Path, Result, list[object]]

COMMANDS = ("simulate", "synthesize", "survival", "evaluate", "report")


@pytest.fixture(scope="module")
def site_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of two hospitals, six synthetic patients each."""
    return write_cohorts(tmp_path_factory.mktemp("cohorts"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The folder of a finished run, how its command ended, and where it tried to connect to."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    called: list[object] = []

    def refuse(_socket: socket.socket, address: object) -> None:
        called.append(address)
        raise OSError("no network in this test")

    with patch.object(socket.socket, "connect", refuse), patch.object(socket.socket, "connect_ex", refuse):
        result = call("simulate", *SYNTHETIC, *TINY, "--out", folder, "--format", "json")
    return folder, result, called


def dry(*words: str | Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the outline of a dry run."""
    result = call("simulate", "--dry-run", "--format", "json", *words, environment=environment)
    assert result.exit_code == 0, result.stderr
    return data_of(result)


def printed_by(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own words


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_tells_what_a_command_does(command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        result = call(*command, flag)
        assert result.exit_code == 0
        assert "Usage" in result.stdout
        assert result.stderr == ""


def test_help_names_every_command() -> None:
    assert all(name in call("--help").stdout for name in COMMANDS)


def test_version_is_that_of_the_installed_distribution() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"fedglioma {version('fedglioma')}\n")


def test_without_arguments_it_helps_and_fails() -> None:
    result = call()
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_command_line_answers_before_it_imports_anything_heavy() -> None:
    code = "import sys, fedglioma_server.cli; print(*sys.modules)"
    assert not {"torch", "flwr", "pandas", "matplotlib"} & set(printed_by(sys.executable, "-c", code).split())


def test_installed_script_is_the_same_command_line() -> None:
    assert printed_by(str(SCRIPT), "--version") == f"fedglioma {version('fedglioma')}\n"


def test_dry_run_outlines_the_run_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("fedglioma_server.simulate.run_inline", None)
    monkeypatch.chdir(tmp_path)
    data = dry(*SYNTHETIC, *TINY, "--sites", "2", "--out", tmp_path / "run")
    settings = RunConfig.model_validate(data["settings"])
    assert data["parameters"] == parameter_count(settings)
    sizes = layout_of(settings).sizes
    assert data["payload_bytes"] == packed_bytes(settings.payload, sizes)
    assert data["payload_bytes_down"] == packed_bytes("float32", sizes)
    assert data["synthetic"] is True
    assert data["cases"] == 18 == sum(sum(split.values()) for split in data["sites"].values())
    trains = sum(split["train"] > 0 for split in data["sites"].values())
    assert data["payload_bytes_per_round"] == trains * (data["payload_bytes"] + data["payload_bytes_down"])
    left = {path.name for path in tmp_path.rglob("*") if not path.name.startswith("torchinductor")}
    assert left == {"scratch"}


def test_dry_run_in_words_says_what_the_json_says(site_config: Path) -> None:
    words = ["--sites", site_config, *TINY]
    data = dry(*words)
    text = call("simulate", "--dry-run", *words).stdout
    assert "nothing is trained" in text
    assert f"parameters: {data['parameters']:,}" in text
    assert "  rounds: 1\n" in text
    for name, split in data["sites"].items():
        assert f"  {name}: {split['train']} / {split['selection']} / {split['report']}" in text


def test_result_is_one_json_envelope_and_everything_human_goes_to_stderr(
    finished: Finished,
) -> None:
    folder, result, _ = finished
    assert result.exit_code == 0, result.stderr
    data = data_of(result)
    assert data["run_id"] == folder.name
    assert data["folder"] == str(folder)
    assert data["synthetic"] is True
    assert data["differentially_private"] is False
    assert data["evaluation"]["n_cases"] == sum(s.report for s in record_of(folder).splits.values())
    for line in ("SYNTHETIC DATA", "18 usable cases", "prepare: 18/18 cases", "round 1/1: held-out loss"):
        assert line in result.stderr


def record_of(folder: Path) -> RunRecord:
    return read_json(folder / "run.json", RunRecord)


def test_run_folder_holds_what_the_contract_names(finished: Finished) -> None:
    folder, result, _ = finished
    files = {name for name in files_in(folder) if not name.startswith("cohort/")}
    assert files >= {
        "run.json",
        "rounds.jsonl",
        "model/model.safetensors",
        "model/config.json",
        "model/README.md",
        "evaluation/metrics.json",
        "evaluation/predictions.csv",
        "survival/results.json",
        "survival/curves.csv",
        "privacy.json",
        "report.html",
        "work/plan.json",
        "work/findings.csv",
    }
    assert {name for name in files if name.startswith("checkpoints/")} == {
        "checkpoints/round-0001.safetensors"
    }
    assert not [name for name in files if name.endswith((".part", ".pkl", ".pt", ".pth"))]
    assert (folder.parent / "cache").is_dir()
    assert Path(data_of(result)["report"]).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert record_of(folder).status == "completed"
    assert record_of(folder).finished is not None
    assert [line.round for line in read_rounds(folder / "rounds.jsonl")] == [0, 1]


def test_released_model_is_the_checkpoint_that_was_chosen(
    finished: Finished,
) -> None:
    folder, _, _ = finished
    released = load_file(folder / "model" / "model.safetensors")
    chosen = load_file(folder / "checkpoints" / "round-0001.safetensors")
    assert released.keys() == chosen.keys()
    assert all(np.array_equal(released[name], chosen[name]) for name in chosen)
    assert load_model(folder / "model")[1] == record_of(folder).settings


def test_only_the_work_folder_names_patients_and_only_its_owner_reads_it(
    finished: Finished,
) -> None:
    folder, result, _ = finished
    (table,) = folder.glob("cohort/*/participants.tsv")
    with table.open(encoding="utf-8") as file:
        patients = [row["participant_id"] for row in csv.DictReader(file, delimiter="\t")]
    assert len(patients) == 18
    public = [
        path.read_bytes().decode("utf-8", errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("cohort", "work")
    ]
    assert not [name for name in patients for text in (result.output, *public) if name in text]
    assert not [text for text in public if str(folder.parent) in text]
    work = folder / "work"
    assert patients[0] in (work / "plan.json").read_text(encoding="utf-8")
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in work.iterdir()} == {0o600}


def test_nothing_connects_to_anywhere_during_a_run(finished: Finished) -> None:
    _, result, called = finished
    assert result.exit_code == 0
    assert called == []


def test_complete_run_is_not_run_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first, _ = finished
    before = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    monkeypatch.setattr("fedglioma_server.simulate.run_inline", None)
    again = call("simulate", *SYNTHETIC, *TINY, "--out", folder, "--format", "json")
    assert again.exit_code == 0
    assert "this run is complete, nothing is left to do" in again.stderr
    assert data_of(again) == data_of(first)
    after = {name: (folder / name).stat().st_mtime_ns for name in files_in(folder)}
    assert {name for name in after if after[name] != before.get(name)} <= {
        "work/plan.json",
        "work/findings.csv",
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--rounds", "2"), "rounds 1, 2 is asked for"),
        (("--width", "2"), "width 1, 2 is asked for"),
        (("--lr", "0.5"), "lr 0.003, 0.5 is asked for"),
        (("--no-flips",), "flips True, False is asked for"),
        (("--seed", "7"), "seed 1234, 7 is asked for"),
        (("--sites", "2"), "sites henan, ningxia, zhengzhou, ningxia, zhengzhou are asked for"),
        (("--small-cell-limit", "2"), "small-cell limit 5 of henan, 2 is asked for"),
        (("--synthetic", "19"), "other cases"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_folder_of_another_run_is_refused_and_the_difference_named(
    finished: Finished, changed: tuple[str, ...], said: str
) -> None:
    folder, _, _ = finished
    before = (folder / "run.json").read_bytes()
    result = call("simulate", *SYNTHETIC, *TINY, *changed, "--out", folder)
    assert result.exit_code == 2
    assert said in reason_of(result)
    assert "name another --out" in reason_of(result)
    assert (folder / "run.json").read_bytes() == before


def test_settings_come_from_the_command_line_then_environment_then_file_then_default(
    site_config: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rounds: 7\nlocal-epochs: 3\nseed: 5\n", encoding="utf-8")
    environment = {"FEDGLIOMA_ROUNDS": "8", "FEDGLIOMA_LOCAL_EPOCHS": "4"}
    words = ("--sites", site_config, "--width", "1", "--crop", "16")
    found = dry(*words, "--config", file, "--rounds", "9", environment=environment)["settings"]
    assert (found["rounds"], found["local_epochs"], found["seed"]) == (9, 4, 5)
    assert found["batch_size"] == RunConfig().batch_size
    assert dry(*words, "--config", file)["settings"]["rounds"] == 7
    assert dry(*words, environment=environment)["settings"]["rounds"] == 8
    assert dry(*words)["settings"]["rounds"] == RunConfig().rounds


def test_synthetic_patients_bring_settings_of_their_size(tmp_path: Path) -> None:
    found = dry("--synthetic", "12", "--synthetic-size", "32", environment={"FEDGLIOMA_ROUNDS": "8"})
    assert (found["settings"]["spacing_mm"], found["settings"]["crop"]) == (5.5, 32)
    assert (found["settings"]["width"], found["settings"]["rounds"]) == (4, 8)


def test_smallest_synthetic_patients_are_prepared_as_coarsely_as_is_allowed() -> None:
    found = dry("--synthetic", "12", "--synthetic-size", "16")
    assert (found["settings"]["spacing_mm"], found["settings"]["crop"]) == (8.0, 22)


def test_sites_as_a_number_divide_the_patients_evenly(site_config: Path) -> None:
    cohort = site_config.parent / "data" / "henan"
    sites = dry("--cohort", cohort, "--sites", "4", *TINY)["sites"]
    assert list(sites) == ["site-1", "site-2", "site-3", "site-4"]
    assert sorted(sum(split.values()) for split in sites.values()) == [1, 1, 2, 2]


def test_sites_as_names_choose_from_the_site_column(site_config: Path) -> None:
    both = [
        word for site in ("henan", "ningxia") for word in ("--cohort", site_config.parent / "data" / site)
    ]
    assert list(dry(*both, *TINY)["sites"]) == ["henan", "ningxia"]
    chosen = dry(*both, "--sites", "ningxia", *TINY)
    assert list(chosen["sites"]) == ["ningxia"]
    assert chosen["cases"] == 6


def test_sites_as_settings_files_bring_their_own_data(site_config: Path) -> None:
    everyone = dry("--sites", site_config, *TINY)
    assert list(everyone["sites"]) == ["henan", "ningxia"]
    listed = f"{site_config / 'ningxia.yaml'},{site_config / 'henan.yaml'}"
    assert dry("--sites", listed, *TINY)["sites"] == everyone["sites"]


def test_held_out_patients_are_the_same_however_they_are_divided(site_config: Path) -> None:
    cohort = site_config.parent / "data" / "henan"
    totals = []
    for spec in ("1", "3"):
        sites = dry("--cohort", cohort, "--sites", spec, *TINY)["sites"]
        totals.append([sum(s[name] for s in sites.values()) for name in ("train", "selection", "report")])
    assert totals[0] == totals[1]


def test_run_without_held_out_patients_says_that_nothing_was_measured(tmp_path: Path) -> None:
    words = ("--selection", "0", "--report", "0", "--out", tmp_path / "run")
    result = call("simulate", *SYNTHETIC, *TINY, *words)
    assert result.exit_code == 0, result.stderr
    assert "No case was held out, so nothing was measured." in result.stdout
    assert [line.heldout.loss for line in read_rounds(tmp_path / "run" / "rounds.jsonl")] == [None, None]


def test_evaluate_measures_a_released_model_on_another_cohort(
    finished: Finished, site_config: Path, tmp_path: Path
) -> None:
    model, cohort = finished[0] / "model", site_config.parent / "data" / "henan"
    words = ("--cohort", cohort, "--out", tmp_path / "out", "--bootstrap", "100", "--workers", "1")
    result = call("evaluate", model, *words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    data = data_of(result)
    assert data["evaluation"]["n_cases"] == 6
    assert data["evaluation"]["synthetic"] is True
    saved = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert saved == data["evaluation"]
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["report"] * 6
    assert {row["site"] for row in rows} == {"henan"}
    text = call("evaluate", model, *words).stdout
    assert "SYNTHETIC DATA" in text
    assert "majority class" in text
    assert "research use only" in text


def test_report_is_written_again_from_what_the_run_saved(finished: Finished, tmp_path: Path) -> None:
    folder, _, _ = finished
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    result = call("report", folder, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert data_of(result) == {"report": str(page)}
    assert page.read_bytes() == before


def test_synthesize_says_what_it_wrote(site_config: Path, tmp_path: Path) -> None:
    words = ("--patients", "4", "--size", "16", "--sites", "2")
    result = call("synthesize", tmp_path / "cohort", *words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    data = data_of(result)
    assert data["patients_by_site"] == {"ningxia": 2, "zhengzhou": 2}
    assert data["cohorts"] == [str(tmp_path / "cohort")]
    assert "SYNTHETIC DATA" in result.stderr


def test_survival_of_a_cohort_folder_is_marked_synthetic(site_config: Path, tmp_path: Path) -> None:
    cohort = site_config.parent / "data" / "henan"
    result = call("survival", cohort, "--out", tmp_path / "out", "--format", "json")
    assert result.exit_code == 0, result.stderr
    data = data_of(result)
    assert data["results"]["synthetic"] is True
    assert all(Path(path).is_file() for path in data["files"])


def test_run_gets_a_folder_of_its_own_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)
    names = set()
    for _ in range(2):
        result = call("simulate", *SYNTHETIC, *TINY, "--format", "json")
        assert result.exit_code == 0, result.stderr
        names.add(data_of(result)["folder"])
    assert {Path(name).parent for name in names} == {Path("runs")}
    assert len(names) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
