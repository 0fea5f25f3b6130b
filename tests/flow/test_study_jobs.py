"""A study whose runs are made at the same time: the same bits, and the same command goes on after Ctrl-C."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from fedglioma.data.synthetic_cohort import synthesize
from fedglioma_server.records import read_rounds
from fedglioma_server.runfolder import RunFolder
from tests.cli_fixture import SCRIPT, call, data_of, plain_environment

pytestmark = pytest.mark.slow

PATIENCE_S = 300.0
"""For a loaded machine to get processes going."""
FEW_S = 300.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "cohort"
    synthesize(folder, patients=14, sites=("ningxia", "henan"), size=16, overlap=0, seed=3)
    return folder


def words(cohort: Path, out: Path, *further: str, **changes: Any) -> list[str]:
    """Return the command of a small study."""
    table: dict[str, Any] = {
        "title": "Jobs",
        "arms": [{"name": "one", "width": 1}],
        "divisions": {"kind": "split"},
        "measures": ["idh.accuracy"],
        "run": {"crop": 16, "spacing_mm": 8, "rounds": 1, "bias_correction": False, "bootstrap": 100},
    }
    study = out.parent / f"{out.name}.yaml"
    study.write_text(yaml.safe_dump(table | changes))
    places = ["--cohort", str(cohort), "--cache", str(cohort.parent / "cache"), "--out", str(out)]
    options = ["--workers", "1", "--threads", "1", "--small-cell-limit", "1", "--format", "json"]
    return ["simulate", "--study", str(study), *places, *options, *further]


def found(out: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Return a study's result without its time and its folder's name."""
    result = {name: value for name, value in told["result"].items() if name != "created"}
    table: dict[str, Any] = json.loads(json.dumps(result).replace(str(out), "OUT"))
    return table


def bits(out: Path) -> dict[str, Any]:
    """Return what a study's runs came to, to the bit: weights and predictions."""
    weights = {
        str(path.relative_to(out)): {name: tensor.tobytes() for name, tensor in load_file(path).items()}
        for path in out.glob("runs/**/*.safetensors")
    }
    said = {str(path.relative_to(out)): path.read_bytes() for path in out.glob("runs/**/predictions.csv")}
    return {**weights, **said}


def anybody(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_runs_at_the_same_time_come_to_the_same_bits_as_one_after_another(
    cohort: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "arms": [{"name": "wild", "width": 1, "lr": 1e30}, {"name": "one", "width": 1}],
        "protocols": ["federated", "finetuned"],
    }
    results = []
    for name, jobs in (("after", "1"), ("beside", "3")):
        result = call(*words(cohort, tmp_path / name, "--jobs", jobs, **changes))
        assert result.exit_code == 1, "one arm diverges"
        results.append(found(tmp_path / name, data_of(result)))
        assert "run 4 of 4: one, finetuned" in result.stderr
    after, beside = results
    assert beside == after
    assert list(beside["failed"]) == list(after["failed"])
    assert {run.partition(",")[0] for run in after["failed"]} == {"wild"}
    runs = bits(tmp_path / "after")
    assert {name.split("/")[2] for name in runs if name.startswith("runs/one/")} == {"federated", "finetuned"}
    assert bits(tmp_path / "beside") == runs


def test_ctrl_c_ends_all_runs_and_the_same_command_goes_on_to_the_same_bits(
    cohort: Path, tmp_path: Path
) -> None:
    arms = [{"name": "one", "width": 1}, {"name": "two", "width": 1, "lr": 0.001}]
    changes: dict[str, Any] = {"arms": arms}
    changes["run"] = {"crop": 16, "spacing_mm": 8, "rounds": 12, "bias_correction": False, "bootstrap": 100}
    undisturbed = call(*words(cohort, tmp_path / "undisturbed", **changes))
    assert undisturbed.exit_code == 0, undisturbed.stderr
    out, log = tmp_path / "study", tmp_path / "log"
    command = words(cohort, out, "--jobs", "2", **changes)
    folders = [out / "runs" / arm / "federated" / "seed-1234" / "fold-1" for arm in ("one", "two")]
    environment = plain_environment() | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("wb") as told:
        process = subprocess.Popen(  # noqa: S603 - our own words
            [SCRIPT, *command], stdout=told, stderr=told, env=environment, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while not all(read_rounds(folder / "rounds.jsonl") for folder in folders):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert process.wait(FEW_S) == 130, log.read_text()
        while anybody(process.pid):  # the last to go is what cleans up after Python's processes
            assert time.monotonic() < end, "a process is left"
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "Traceback" not in log.read_text()
    # One may have been done before the other had begun.
    assert "interrupted" in (ends := {RunFolder(folder).read().status for folder in folders})
    assert ends <= {"interrupted", "completed"}
    assert not (out / "results.json").exists()
    again = call(*words(cohort, out, **changes))
    assert again.exit_code == 0, again.stderr
    assert found(out, data_of(again)) == found(out, data_of(undisturbed))
    assert bits(out) == bits(tmp_path / "undisturbed")
    assert json.loads((out / "results.json").read_text())["failed"] == {}
