"""Every kind of bad cohort, seen by the hospital's own commands: an exit code, a remedy, no traceback."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedglioma_client import cli
from fedglioma_client.remedies import REMEDIES
from tests.bad_cohorts import BAD_COHORTS, BadCohort, write_cohort

QUICK = ["--spacing-mm", "8", "--no-bias-correction"]
ONE_FOLDER = [bad for bad in BAD_COHORTS if bad.cohorts == ("cohort",)]


@pytest.mark.parametrize("bad", ONE_FOLDER, ids=lambda bad: bad.name)
def test_prepare_of_a_bad_cohort_ends_in_a_report_or_an_exit_code(
    bad: BadCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not bad.holds_for_root and os.geteuid() == 0:
        pytest.skip("root may read what permissions forbid")
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    write_cohort(tmp_path / "cohort")
    bad.breaks(tmp_path / "cohort")
    layout = f"layout: {bad.layout}\n" if bad.layout else ""
    (tmp_path / "north.yaml").write_text(f"site: north\ndata: cohort\n{layout}", encoding="utf-8")
    words = [
        "--site",
        "north",
        "--config-dir",
        str(tmp_path),
        "prepare",
        "--spacing-mm",
        "8",
        "--no-bias-correction",
    ]
    result = CliRunner().invoke(cli.app, [*words, "--format", "json"], catch_exceptions=False)
    envelope = json.loads(result.stdout)
    how, what = bad.expected.split(":")
    if how == "exit":
        assert result.exit_code == int(what)
        assert not any(patient in result.stdout for patient in ("P1", "P2", "P3"))
        return
    assert result.exit_code == 0
    assert envelope["data"]["excluded" if how == "excluded" else "warned"] == {what: 1}
    assert what in REMEDIES
