"""A run that starts from a released model: what it takes over beside the weights, and what it asks for."""

import json
from pathlib import Path

import pytest

from fedglioma_server.runfolder import RunFolder
from tests.cli_fixture import TINY, call

TWO_SITES = ("--synthetic-size", "16", "--sites", "ningxia,henan", "--report", "0", "--selection", "0")


def simulated(folder: Path, patients: str, *words: str | Path) -> RunFolder:
    return told_by(folder, patients, *words)[0]


def told_by(folder: Path, patients: str, *words: str | Path) -> tuple[RunFolder, str]:
    result = call("simulate", "--synthetic", patients, *TWO_SITES, *TINY, "--out", folder, *words)
    assert result.exit_code == 0, result.output
    return RunFolder(folder), result.output


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return simulated(tmp_path_factory.mktemp("first") / "run", "14")


def leaves(folder: RunFolder) -> str:
    told: list[str] = json.loads((folder.path / "privacy.json").read_text())["leaves_a_site"]
    return " ".join(told)


def test_run_that_starts_from_a_model_stays_on_its_scale(first: RunFolder, tmp_path: Path) -> None:
    before = first.read()
    again = simulated(tmp_path / "again", "16", "--seed", "7", "--init", first.model)
    after = again.read()
    assert before.scale is not None
    assert before.scale.sites["flair"] == 2, "the hospitals decided the scale"
    assert after.scale == before.scale
    assert after.scale_from_model
    assert not before.scale_from_model
    assert after.class_counts != before.class_counts
    assert "landmarks" in leaves(first)
    assert "landmarks" not in leaves(again)
    assert json.loads((again.model / "config.json").read_text())["scale_id"] == before.scale_id
    assert f"scale ({before.scale.id[:12]}) of the model that the run started from" in (
        again.report.read_text("utf-8")
    )


def test_run_of_another_preparation_agrees_on_a_scale_anew(first: RunFolder, tmp_path: Path) -> None:
    words = ("--preprocessing", "fusion", "--init", first.model)
    again, told = told_by(tmp_path / "again", "16", "--seed", "7", *words)
    after = again.read()
    assert "the hospitals agree on a scale of their own" in told
    assert after.scale is not None
    assert not after.scale_from_model
    assert after.scale != first.read().scale
