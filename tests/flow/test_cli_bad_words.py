"""Words, settings and files of settings that cannot be: an exit code and one line of reason, nothing made."""

from pathlib import Path

import pytest
import torch

from tests.cli_fixture import SYNTHETIC, TINY, assert_matches, call, data_of, reason_of


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--colour", "red"], "No such option"),
        (["--synthetic", "few"], "not a valid integer"),
        (["--synthetic", "5"], "not in the range"),
        (["--synthetic-size", "8"], "not in the range"),
        (["--rounds", "many"], "not a valid integer"),
        (["--model", "resnet"], "is not one of 'mdpnet'"),
        (["--preset", "best"], "is not one of"),
        (["--workers", "-1"], "not in the range"),
        (["--threads", "9999"], "not in the range"),
        (["--small-cell-limit", "0"], "not in the range"),
        (["--format", "xml"], "is not one of"),
        (["--log-level", "LOUD"], "is not one of"),
        (["--out"], "requires an argument"),
        (["further"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_are_no_command_line_end_with_2(words: list[str], said: str) -> None:
    result = call("simulate", *SYNTHETIC, *TINY, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_command_that_does_not_exist_ends_with_2() -> None:
    result = call("simulat")
    assert result.exit_code == 2
    assert "No such command 'simulat'" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--rounds", "0"],
            r"settings: rounds: 0 is not allowed \(input should be greater than or equal to 1\)",
        ),
        (["--local-epochs", "-3"], "local_epochs: -3 is not allowed"),
        (["--lr", "-1"], "lr: -1.0 is not allowed"),
        (["--lr", "0"], "lr: 0.0 is not allowed"),
        (["--lr", "nan"], "lr: nan is not allowed"),
        (["--lr", "1e999"], "lr: inf is not allowed"),
        (["--width", "97"], "width: 97 is not allowed"),
        (["--crop", "8"], "crop: 8 is not allowed"),
        (["--spacing-mm", "0.1"], "spacing_mm: 0.1 is not allowed"),
        (["--seed", "-1"], "seed: -1 is not allowed"),
        (["--report", "1"], "report: 1.0 is not allowed"),
        (["--selection", "0.5", "--report", "0.45"], "at least 5 % of the patients must be left to train on"),
        (["--rounds", "0", "--lr", "0"], "rounds: 0 is not allowed .*; lr: 0.0 is not allowed"),
        (["--engine", "abacus"], "--engine abacus: choose inline or ray"),
        (["--device", "gpu"], r"--device gpu: choose cpu, cuda or cuda:N"),
        (["--device", "mps"], r"--device mps: choose cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], r"--device cuda:99: PyTorch finds (no|\d+) GPU here"),
        (["--cohort", "somewhere"], "--synthetic makes its own cohort"),
        (["--sites", "0"], "--sites 0: at least one hospital"),
        (["--sites", ","], "name hospitals, separated by commas"),
        (["--sites", "²"], "letters, digits, - and _ only"),
        (["--sites", "../henan"], "letters, digits, - and _ only"),
        (["--sites", "henan,henan"], "henan"),
        (["--config", "gone.yaml"], "gone.yaml: no such settings file"),
        (["--config", "."], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_setting_out_of_bounds_ends_with_2_before_anything_is_made(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("simulate", *SYNTHETIC, *TINY, "--out", "run", *words)
    assert result.exit_code == 2
    assert_matches(said, reason_of(result))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["simulate", "evaluate"])
def test_gpu_that_is_not_there_is_told_in_words(command: str, finished: Path, cohorts: Path) -> None:
    cohort = ("--cohort", cohorts / "data" / "henan", "--out", cohorts / "nowhere", "--device", "cuda")
    result = call(*([command] if command == "simulate" else [command, finished / "model"]), *cohort)
    assert result.exit_code == 2
    assert reason_of(result) == "--device cuda: PyTorch finds no GPU here; choose cpu"
    assert not (cohorts / "nowhere").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_that_a_settings_file_asks_for_is_told_with_its_file(cohorts: Path, tmp_path: Path) -> None:
    data = cohorts / "data" / "henan"
    (tmp_path / "henan.yaml").write_text(f"site: henan\ndata: {data}\ndevice: cuda:1\n", encoding="utf-8")
    result = call("simulate", "--dry-run", "--sites", tmp_path / "henan.yaml")
    assert result.exit_code == 2
    assert "henan.yaml: device: cuda:1: PyTorch finds no GPU here" in reason_of(result)


def test_engine_that_is_not_installed_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedglioma_server.ray_engine.find_spec", lambda _name: None)
    result = call("simulate", *SYNTHETIC, *TINY, "--engine", "ray", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "pip install 'fedglioma[ray]'" in reason_of(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_sise: 4\n", r"run.yaml: batch_sise: unknown setting, did you mean batch_size\?"),
        ("rounds: 0\n", r"run.yaml: rounds: 0 is not allowed"),
        ("rounds: ten\n", r"run.yaml: rounds: 'ten' is not allowed"),
        ("lr: .inf\n", r"run.yaml: lr: inf is not allowed"),
        ("rounds: [1, 2]\n", r"run.yaml: rounds: \[1, 2\] is not allowed"),
        ("run: 5\n", "run.yaml: run: holds 'key: value' lines, this one holds int"),
        ("- rounds\n", "run.yaml: a settings file holds 'key: value' lines, this one holds list"),
        ("rounds: 3: 4\n", "run.yaml: line 1 not valid YAML"),
        ("rounds: \0\n", "run.yaml: not valid YAML"),
        ("!!python/object/apply:os.system ['true']\n", "run.yaml: line 1 not valid YAML"),
    ],
)
def test_settings_file_with_a_mistake_is_named_with_it(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    result = call("simulate", "--synthetic", "12", "--config", file, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert_matches(said, reason_of(result))
    assert list(tmp_path.iterdir()) == [file]


def test_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rounds: 3\n", encoding="utf-8")
    result = call("simulate", *SYNTHETIC, "--config", file, "--lr", "-1")
    assert reason_of(result).startswith("settings: lr: -1.0 is not allowed")


def test_environment_is_checked_as_the_command_line_is() -> None:
    result = call("simulate", *SYNTHETIC, environment={"FEDGLIOMA_ROUNDS": "0"})
    assert result.exit_code == 2
    assert "rounds: 0 is not allowed" in reason_of(result)
    result = call("simulate", *SYNTHETIC, environment={"FEDGLIOMA_ROUNDS": "ten"})
    assert result.exit_code == 2
    assert "'ten' is not a valid integer" in result.stderr


def test_error_is_an_envelope_too_where_json_is_asked_for() -> None:
    result = call("simulate", *SYNTHETIC, "--rounds", "0", "--format", "json")
    assert data_of(result) == {"error": reason_of(result), "kind": "ConfigError"}
