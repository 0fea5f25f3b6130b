"""The main job on real patients' MRI, at a size that fits a test."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedglioma.case import GENES
from fedglioma_server.cli import app
from fedglioma_server.runfolder import RunFolder

REAL = os.environ.get("FEDGLIOMA_REAL_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL, reason="FEDGLIOMA_REAL_DATA names no folder of real cases"),
]
SMALL = (
    "--width",
    "1",
    "--crop",
    "32",
    "--spacing-mm",
    "4",
    "--rounds",
    "1",
    "--bootstrap",
    "100",
    "--threads",
    "1",
    "--no-bias-correction",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "run"
    folders = [str(Path(REAL) / name) for name in ("lgg_hospitals_nc", "glioma")]
    words = [
        "simulate",
        "--cohort",
        folders[0],
        "--cohort",
        folders[1],
        *SMALL,
        "--out",
        str(out),
        "--format",
        "json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    return RunFolder(out), json.loads(result.stdout)["data"]


def test_real_hospitals_become_sites(finished):
    record = finished[0].read()
    assert sorted(record.splits) == [
        "casewestern", "casewestern2", "henryford", "jefferson", "ucsf", "unnamed", "upenn",
    ]  # fmt: skip
    cases = {site: split.train + split.selection + split.report for site, split in record.splits.items()}
    assert cases["henryford"] == 17
    # Voxel sizes of lgg_hospitals_nc are estimates: two of its brains come out larger than any brain is.
    assert sum(cases.values()) == 53
    left_out = {(issue.site, issue.code): issue.cases for issue in record.issues if issue.kind == "excluded"}
    assert left_out == {("jefferson", "brain_volume"): 1, ("casewestern2", "brain_volume"): 1}
    assert not record.synthetic


def test_missing_t2_is_recorded_and_unlabelled_site_is_idle(finished):
    folder, _ = finished
    record = folder.read()
    assert list(record.sites["casewestern"].modalities) == ["flair+t1ce+t1"]
    assert folder.rounds()[1].sites["unnamed"].status == "idle"


def test_held_out_losses_are_finite_and_the_report_says_what_they_are_worth(finished):
    folder, data = finished
    for line in folder.rounds():
        assert line.heldout.loss is not None
        assert 0 < line.heldout.loss < 1000
    assert "Too few patients" in data["evaluation"]["caution"]
    html = folder.report.read_text(encoding="utf-8")
    assert "Too few patients" in html
    assert "SYNTHETIC" not in html


def test_report_names_no_patient(finished):
    folder, _ = finished
    for path in (
        folder.report,
        folder.record_file,
        folder.rounds_file,
        folder.evaluation / "predictions.csv",
    ):
        text = path.read_text(encoding="utf-8")
        assert "TCGA-DU" not in text
        assert "BraTS2021_0" not in text
        assert str(REAL) not in text


def test_every_gene_has_a_majority_baseline_beside_its_accuracy(finished):
    overall = finished[1]["evaluation"]["overall"]
    for gene in GENES:
        assert (overall[gene.value]["accuracy"]["value"] is None) == (
            overall[gene.value]["majority"]["value"] is None
        )
