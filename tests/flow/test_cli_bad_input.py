"""Whatever is typed or found on disk, the server's commands end with an exit code and one line of reason."""

import csv
import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from fedglioma_server.records import RunRecord, read_json, read_rounds
from tests.bad_cohorts import BAD_COHORTS, PATIENTS, BadCohort, write_cohort
from tests.cli_fixture import SYNTHETIC, TINY, call, data_of, reason_of, write_cohorts

DISK_FULL = os.strerror(errno.ENOSPC)
FILE_TOO_LARGE = os.strerror(errno.EFBIG)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``site_config`` and ``data``: two hospitals of six synthetic patients."""
    return write_cohorts(tmp_path_factory.mktemp("cohorts")).parent


@pytest.fixture(scope="module")
def finished(cohorts: Path) -> Path:
    """The folder of a finished run, whose prepared cases others may use."""
    words = ("--sites", cohorts / "site_config", "--out", cohorts / "run")
    result = call("simulate", *words, *TINY)
    assert result.exit_code == 0, result.stderr
    return cohorts / "run"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out report and survival, most of a tiny run's time."""
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)
    monkeypatch.setattr("fedglioma_server.conclusion.write_outcome", lambda *_, **__: None)


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


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


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


@pytest.mark.parametrize("command", ["simulate", "simulate --dry-run"])
def test_out_that_is_a_file_is_refused(command: str, tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("notes")
    result = call(*command.split(), *SYNTHETIC, *TINY, "--out", file)
    assert result.exit_code == 2
    assert "is a file; name a folder" in reason_of(result)
    assert file.read_text() == "notes"


def test_out_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    result = call("simulate", *SYNTHETIC, *TINY, "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds thesis.docx but no run" in reason_of(result)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"schema_version": 99}'])
def test_run_record_that_is_damaged_is_told_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    for words in (("simulate", *SYNTHETIC, *TINY, "--out", tmp_path), ("report", tmp_path)):
        result = call(*words)
        assert result.exit_code == 2
        assert "run.json: no run's record of this version" in reason_of(result)


@pytest.mark.parametrize("content", ["{", "{}", '[{"accuracy": 0.9}]'])
def test_results_of_something_else_are_no_studys(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    result = call("report", tmp_path)
    assert result.exit_code == 2
    reason = reason_of(result)
    assert "results.json: no study's result of this version of fedglioma (" in reason
    assert "; name another folder, restore the file, or use the version that wrote it" in reason
    assert "StudyResult" not in reason
    assert "validation error" not in reason


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


def cohort_words(bad: BadCohort, root: Path) -> list[str | Path]:
    """Return how the command line is told of a bad cohort; a layout is named in a hospital's settings."""
    if bad.layout is None:
        return [word for name in bad.cohorts for word in ("--cohort", root / name)]
    text = f"site: north\ndata: cohort\nlayout: {bad.layout}\n"
    (root / "north.yaml").write_text(text, encoding="utf-8")
    return ["--sites", root / "north.yaml"]


@pytest.mark.parametrize("bad", BAD_COHORTS, ids=lambda bad: bad.name)
@pytest.mark.usefixtures("quick")
def test_bad_cohort_ends_in_an_exclusion_or_in_one_line(bad: BadCohort, tmp_path: Path) -> None:
    if not bad.holds_for_root and os.geteuid() == 0:
        pytest.skip("root may read what permissions forbid")
    write_cohort(tmp_path / "cohort")
    bad.breaks(tmp_path / "cohort")
    run = tmp_path / "run"
    words = (*cohort_words(bad, tmp_path), "--out", run, *TINY, "--selection", "0", "--report", "0")
    result = call("simulate", *words)
    how, what = bad.expected.split(":")
    if how == "exit":
        assert result.exit_code == int(what)
        assert reason_of(result)
        assert not run.exists()
        return
    assert result.exit_code == 0, result.stderr
    assert "Traceback" not in result.output
    record = read_json(run / "run.json", RunRecord)
    assert record.status == "completed"
    assert sum(split.train for split in record.splits.values()) == bad.usable
    (issue,) = record.issues
    assert (issue.kind, issue.code, issue.cases) == ("excluded" if how == "excluded" else "warning", what, 1)
    assert not any(patient in issue.explanation for patient in PATIENTS)
    with (run / "work" / "findings.csv").open(encoding="utf-8") as file:
        (finding,) = csv.DictReader(file)
    assert (finding["patient"], finding["code"], finding["site"]) == (bad.patient, what, issue.site)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Let the flush of every file whose name holds ``name`` find the disk full."""
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, DISK_FULL)
        flush(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc")
@pytest.mark.parametrize(
    "name", ["/cache/", "run.json", "plan.json", "round-0001", "rounds.jsonl", "config.json"]
)
@pytest.mark.usefixtures("quick")
def test_full_disk_ends_the_run_in_words_with_nothing_half_written_and_it_continues(
    name: str, cohorts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    cache = tmp_path / "cache" if name == "/cache/" else cohorts / "cache"
    words = ("simulate", "--sites", cohorts / "site_config", "--cache", cache, "--out", tmp_path / "run")
    with full_disk(monkeypatch, name):
        result = call(*words, *TINY)
    assert result.exit_code == 1
    assert reason_of(result) == f"{DISK_FULL}: check space and permissions, then run again"
    assert_nothing_half_written(tmp_path)
    assert call(*words, *TINY).exit_code == 0
    assert weights_in(tmp_path / "run") == weights_in(finished), "it ended elsewhere"


@pytest.mark.usefixtures("quick")
def test_file_that_cannot_grow_leaves_no_half_of_it(cohorts: Path, tmp_path: Path, finished: Path) -> None:
    words = (
        "simulate",
        "--sites",
        cohorts / "site_config",
        "--cache",
        cohorts / "cache",
        "--out",
        tmp_path / "run",
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        result = call(*words, *TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert FILE_TOO_LARGE in reason_of(result)
    assert_nothing_half_written(tmp_path)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert read_json(tmp_path / "run" / "run.json", RunRecord).status == "failed"
    assert call(*words, *TINY).exit_code == 0
    assert weights_in(tmp_path / "run") == weights_in(finished), "it ended elsewhere"


def assert_nothing_half_written(folder: Path) -> None:
    assert not list(folder.rglob(".*.part"))
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    read_rounds(folder / "run" / "rounds.jsonl")


def weights_in(run: Path) -> dict[str, bytes]:
    tensors = load_file(run / "checkpoints" / "round-0001.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def test_out_below_a_file_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("simulate", *SYNTHETIC, *TINY, "--out", tmp_path / "file" / "run")
    assert result.exit_code in (1, 2)
    assert "Not a directory" in reason_of(result)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


def _config(change: Callable[[dict[str, Any]], object], model: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


BROKEN_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights changed": (lambda m: _flip(m / "model.safetensors"), "model.safetensors is damaged"),
    "weights cut off": (
        lambda m: os.truncate(m / "model.safetensors", 5000),
        "model.safetensors: not a readable safetensors file",
    ),
    "weights empty": (
        lambda m: (m / "model.safetensors").write_bytes(b""),
        "model.safetensors: not a readable safetensors file",
    ),
    "weights gone": (lambda m: (m / "model.safetensors").unlink(), "model.safetensors: not a readable"),
    "weights a pickle": (
        lambda m: torch.save({"model": torch.zeros(1)}, m / "model.safetensors"),
        "model.safetensors: not a readable safetensors file",
    ),
    "config gone": (lambda m: (m / "config.json").unlink(), "not a released model"),
    "config of another program": (
        lambda m: (m / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}'),
        "not a released model",
    ),
    "config a list": (lambda m: (m / "config.json").write_text("[1, 2]"), "not a released model"),
    "config not JSON": (lambda m: (m / "config.json").write_text("{"), "not a released model"),
    "config not text": (lambda m: (m / "config.json").write_bytes(b"\xff\xfe\x00"), "not a released model"),
    "settings a list": (lambda m: _config(lambda c: c.update(settings=[1]), m), "not a released model"),
    "setting unknown": (
        lambda m: _config(lambda c: c["settings"].update(depth=3), m),
        "depth: unknown setting",
    ),
    "setting out of bounds": (lambda m: _config(lambda c: c["settings"].update(width=0), m), "width: 0"),
    "another width": (lambda m: _config(lambda c: c["settings"].update(width=2), m), "of another network"),
    "counts a number": (lambda m: _config(lambda c: c.update(class_counts=3), m), "not a released model"),
    "counts lack a gene": (lambda m: _config(lambda c: c["class_counts"].pop("atrx"), m), "lack atrx"),
    "other channels": (lambda m: _config(lambda c: c["channels"].reverse(), m), "made for channels"),
    "other genes": (lambda m: _config(lambda c: c.update(genes=["egfr"]), m), "made for channels"),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_evaluate_refuses_a_model_that_is_damaged_or_foreign(
    name: str, finished: Path, cohorts: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    breaks, said = BROKEN_MODELS[name]
    breaks(tmp_path / "model")
    words = ("--cohort", cohorts / "data" / "henan", "--out", tmp_path / "out")
    result = call("evaluate", tmp_path / "model", *words)
    assert result.exit_code == 1
    assert said in reason_of(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{run}/gone", "--cohort", "{data}/henan", "--out", "{tmp}/out"], 2, "no such folder"),
        (["{run}", "--cohort", "{data}/henan", "--out", "{tmp}/out"], 1, "not a released model"),
        (["{run}/model", "--cohort", "{data}/gone", "--out", "{tmp}/out"], 4, "gone"),
        (["{run}/model", "--cohort", "{data}/henan", "--out", "{run}/run.json"], 2, "is a file"),
    ],
)
def test_evaluate_tells_what_it_cannot_work_with(
    words: list[str], code: int, said: str, finished: Path, cohorts: Path, tmp_path: Path
) -> None:
    places = {"run": finished, "data": cohorts / "data", "tmp": tmp_path}
    result = call("evaluate", *(word.format(**places) for word in words))
    assert result.exit_code == code
    assert said in reason_of(result)


def test_evaluate_without_a_cohort_ends_with_2(finished: Path, tmp_path: Path) -> None:
    result = call("evaluate", finished / "model", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--cohort" in result.stderr


def test_evaluate_without_a_single_label_says_so(finished: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort")
    table = tmp_path / "cohort" / "participants.tsv"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    lines = [
        "\t".join(row[:2] + (row[2:] if number == 0 else ["n/a"] * 9)) for number, row in enumerate(rows)
    ]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = call("evaluate", finished / "model", "--cohort", tmp_path / "cohort", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "0 known" in result.stdout


def test_report_of_a_folder_without_a_run_ends_with_2(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "is this a run folder?"), (tmp_path / "gone", "no such run folder")):
        result = call("report", folder)
        assert result.exit_code == 2
        assert said in reason_of(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--sites", "0"], 2, "at least one hospital"),
        (["--sites", "a b"], 2, "letters, digits, - and _ only"),
        (["--layout", "dicom"], 2, "layout: 'dicom' is unknown"),
        (["--size", "8"], 2, "size"),
        (["--patients", "2", "--by-site"], 2, "cannot fill 3 sites"),
    ],
)
def test_synthesize_tells_what_it_cannot_make(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    result = call("synthesize", tmp_path / "out", *words)
    assert result.exit_code == code
    assert said in reason_of(result)
    assert list(tmp_path.iterdir()) == []


def test_synthesize_never_writes_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    result = call("synthesize", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in reason_of(result)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone.csv"], 2, "gone.csv"),
        (["table.csv", "--time", "height"], 2, "height"),
        (["table.csv", "--unit", "weeks"], 2, "--unit weeks: choose"),
        (["table.csv", "--out", "table.csv"], 2, "is a file; name a folder"),
        (["empty.csv"], 4, "empty.csv"),
    ],
)
def test_survival_tells_what_it_cannot_read(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("os_days,os_event,idh\n10,1,0\n20,0,1\n30,1,1\n40,1,0\n")
    (tmp_path / "empty.csv").write_text("")
    result = call("survival", *words)
    assert result.exit_code == code
    assert said in reason_of(result)
