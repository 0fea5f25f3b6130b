"""Whatever is wrong with a cohort: an exclusion, a warning, or an exit code with one line of reason."""

import csv
import os
from pathlib import Path

import pytest

from fedglioma_server.records import RunRecord, read_json
from tests.bad_cohorts import BAD_COHORTS, PATIENTS, BadCohort, write_cohort
from tests.cli_fixture import TINY, call, reason_of


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
