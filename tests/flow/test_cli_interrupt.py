"""A run that is stopped, by whatever means, continues with the same command to the same weights."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedglioma_server.records import RunRecord, read_json, read_rounds
from tests.cli_fixture import SCRIPT, TINY, call, meddled, plain_environment, write_cohorts

pytestmark = pytest.mark.slow

ROUNDS = 6
PATIENCE_S = 300.0
"""For a loaded machine to get a process going, or to end it."""


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``site_config`` and ``data``: two hospitals of six synthetic patients."""
    return write_cohorts(tmp_path_factory.mktemp("cohorts")).parent


@pytest.fixture(scope="module")
def undisturbed(cohorts: Path) -> Path:
    """The folder of a run that nobody stopped."""
    result = call(*command(cohorts, cohorts / "undisturbed"))
    assert result.exit_code == 0, result.stderr
    return cohorts / "undisturbed"


def command(cohorts: Path, run: Path, *further: str) -> list[str]:
    places = ["--sites", str(cohorts / "site_config"), "--cache", str(cohorts / "cache"), "--out", str(run)]
    return ["simulate", *places, *TINY, "--rounds", str(ROUNDS), *further]


@contextmanager
def process_at(instant: str, meddle: str, words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the installed command in a session of its own, give it once it waits at an instant, and end it.

    It waits there until it is stopped: left to itself it may have ended before this process looks again.
    """
    environment = plain_environment() | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    signals = log.with_name("signals")
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - our own words
            [SCRIPT, *words],
            stdout=out,
            stderr=out,
            env=meddled(environment, meddle, signals),
            start_new_session=True,
        )
    try:
        wait_until((signals / instant).exists, process, log)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def stopped_after_round_one(words: list[str], run: Path, how: signal.Signals) -> tuple[int, str]:
    """Return exit code and output of a run that got a signal once its first round was on record."""
    log = run.parent / "log"
    with process_at("aggregating", "aggregate_waits:2", words, log) as process:
        process.send_signal(how)
        code = process.wait(PATIENCE_S)
    return code, log.read_text()


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.suffix in (".part", ".partial")]


def final_weights(run: Path) -> dict[str, bytes]:
    tensors = load_file(run / "checkpoints" / f"round-{ROUNDS:04d}.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def assert_continues_to_the_same_end(words: list[str], run: Path, undisturbed: Path) -> None:
    done = read_rounds(run / "rounds.jsonl")
    result = call(*words)
    assert result.exit_code == 0, result.stderr
    assert not unfinished(run)
    assert read_json(run / "run.json", RunRecord).status == "completed"
    rounds, expected = read_rounds(run / "rounds.jsonl"), read_rounds(undisturbed / "rounds.jsonl")
    assert rounds[: len(done)] == done
    assert [(line.round, line.heldout) for line in rounds] == [
        (line.round, line.heldout) for line in expected
    ]
    assert final_weights(run) == final_weights(undisturbed)
    for name in ("evaluation/predictions.csv", "evaluation/metrics.json", "survival/results.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize(("how", "output"), [(signal.SIGINT, "text"), (signal.SIGTERM, "json")])
def test_stopped_run_ends_with_130_and_continues_to_the_same_weights(
    how: signal.Signals, output: str, cohorts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = command(cohorts, run, "--format", output)
    code, told = stopped_after_round_one(words, run, how)
    assert code == 130
    if output == "json":
        assert json.loads(told[told.index("{\n") :])["exit_code"] == 130
    assert "interrupted: what was finished is kept; the same command continues it" in told
    assert "Traceback" not in told
    assert not unfinished(run)
    assert read_json(run / "run.json", RunRecord).status == "interrupted"
    assert [line.round for line in read_rounds(run / "rounds.jsonl")] == [0, 1]
    assert_continues_to_the_same_end(words, run, undisturbed)


def test_killed_run_continues_to_the_same_weights(cohorts: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = command(cohorts, run)
    code, _ = stopped_after_round_one(words, run, signal.SIGKILL)
    assert code == -signal.SIGKILL
    (run / ".run.json.1.part").write_text("{")
    assert_continues_to_the_same_end(words, run, undisturbed)


def test_run_stopped_at_its_report_only_writes_the_report(
    cohorts: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = command(cohorts, run)

    def stop(_folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fedglioma_server.conclusion.write_report", stop)
        assert call(*words).exit_code == 130
    assert len(read_rounds(run / "rounds.jsonl")) == ROUNDS + 1
    monkeypatch.setattr("fedglioma_client.app.train_round", None)
    assert_continues_to_the_same_end(words, run, undisturbed)
    assert (run / "report.html").exists()


def test_run_stopped_while_it_prepares_keeps_what_was_prepared(cohorts: Path, tmp_path: Path) -> None:
    run, cache, log = tmp_path / "run", tmp_path / "cache", tmp_path / "log"
    words = command(cohorts, run, "--spacing-mm", "2", "--cache", str(cache), "--rounds", "1")
    with process_at("preparing", "prepare_waits:3", words, log) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert "Traceback" not in log.read_text()
    assert not unfinished(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(list(cache.glob("*.json"))) == 2
    result = call(*words)
    assert result.exit_code == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    # Each once more on the common scale, and its mask.
    assert len(list(cache.glob("*.json"))) == 3 * 12


def test_run_stopped_while_it_makes_its_patients_starts_afresh(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = ["simulate", "--synthetic", "12", "--synthetic-size", "64", *TINY, "--out", str(run)]
    with process_at("synthesizing", "synthesis_waits:2", words, log) as process:
        assert any(run.glob("cohort/.*.partial/*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 130
    assert not unfinished(run)
    assert not (run / "run.json").exists()
    result = call("simulate", "--synthetic", "12", "--synthetic-size", "16", *TINY, "--out", run)
    assert result.exit_code == 0, result.stderr
