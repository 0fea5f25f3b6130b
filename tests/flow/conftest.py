"""What several of the command line's tests start from."""

from pathlib import Path

import pytest

from tests.cli_fixture import TINY, call, write_cohorts


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
