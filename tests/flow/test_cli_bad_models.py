"""Models that are damaged or foreign, and what else ``evaluate`` cannot work with, in words."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bad_cohorts import write_cohort
from tests.cli_fixture import call, reason_of


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
