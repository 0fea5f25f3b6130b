"""The server's command line as tests call it: in this process where that is enough, else as installed."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedglioma.console import prepare_environment
from fedglioma_server import cli

SCRIPT = Path(sys.executable).with_name("fedglioma-server")
"""The command as pip installed it, for what only a process of its own can show."""

MEDDLING = Path(__file__).with_name("meddling")

TINY = (
    *("--width", "1", "--crop", "16", "--spacing-mm", "8", "--rounds", "1", "--batch-size", "4"),
    *("--bootstrap", "100", "--workers", "1", "--threads", "1", "--no-bias-correction"),
)
"""Settings of a run that takes a second."""

SYNTHETIC = ("--synthetic", "18", "--synthetic-size", "16")


def plain_environment() -> dict[str, str]:
    """Return this process's environment without settings of ours, for a wide terminal without colours."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FEDGLIOMA_")}
    return ours | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def meddled(environment: dict[str, str], meddle: str, folder: Path) -> dict[str, str]:
    """Return an environment whose programs do what ``tests/meddling`` offers, and tell of it in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, (str(MEDDLING), environment.get("PYTHONPATH"))))
    return environment | {"PYTHONPATH": paths, "MEDDLE": meddle, "MEDDLE_FOLDER": str(folder)}


def call(*words: str | Path, environment: dict[str, str] | None = None) -> Result:
    """Return how a command ended; logging and the environment are as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with patch.dict(os.environ, plain_environment() | (environment or {}), clear=True):
        prepare_environment()
        try:
            return CliRunner().invoke(cli.app, [str(word) for word in words])
        finally:
            root.handlers, root.level = handlers, level
            logging.getLogger("flwr").propagate = True


def data_of(result: Result) -> dict[str, Any]:
    """Return what a command that was asked for JSON printed, once the envelope was found right."""
    envelope = json.loads(result.stdout)
    assert set(envelope) == {"schema_version", "status", "exit_code", "data"}
    assert envelope["schema_version"] == 1
    assert envelope["exit_code"] == result.exit_code
    assert envelope["status"] == ("ok" if result.exit_code == 0 else "error")
    data: dict[str, Any] = envelope["data"]
    return data


def reason_of(result: Result) -> str:
    """Return the one line in which a command said why it ended, once there was found no more than that."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert "defect" not in lines[0]
    return lines[0].removeprefix("error: ")


def write_cohorts(folder: Path, *, patients: int = 12, sites: Sequence[str] = ("henan", "ningxia")) -> Path:
    """Write a synthetic cohort per hospital and its settings file; return the folder of the settings."""
    words = ("--patients", str(patients), "--size", "16", "--by-site", "--sites", ",".join(sites))
    assert call("synthesize", folder / "data", *words).exit_code == 0
    settings = folder / "site_config"
    settings.mkdir()
    for site in sites:
        text = f"site: {site}\ndata: ../data/{site}\nsmall_cell_limit: 1\nthreads: 1\n"
        (settings / f"{site}.yaml").write_text(text, encoding="utf-8")
    return settings


def assert_matches(pattern: str, text: str) -> None:
    """Fail unless the pattern is found in the text, showing both."""
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
