"""A bundle in another group's hands: only ``python -m monai.bundle``, a cohort, and no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedglioma.data.cache import Cache
from fedglioma.data.cohort import read_cohort
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.training.released import load_model
from fedglioma_server.readings import predictions_of
from tests.cli_fixture import call
from tests.release_fixture import small_settings, write_release

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"


def start(bundle: Path, *words: str | Path) -> subprocess.Popen[str]:
    """Start MONAI on a bundle, from inside it and without a way to the network."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", ".", "--config_file"]
    command += ["configs/inference.json", "--meta_file", "configs/metadata.json", *map(str, words)]
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "server", "client"))
    environment = {**os.environ, "PYTHONPATH": paths, "http_proxy": NOWHERE, "https_proxy": NOWHERE}
    return subprocess.Popen(  # noqa: S603 - our own words
        command,
        cwd=bundle,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_another_group_runs_the_bundle_and_is_told_of_a_damaged_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    size = ("--patients", "2", "--sites", "henan", "--size", "20")
    assert call("synthesize", data, *size).exit_code == 0
    write_release(tmp_path / "model", small_settings("sgpnet", spacing_mm=8))
    assert call("bundle", tmp_path / "model", "--out", tmp_path / "bundle").exit_code == 0
    shutil.copytree(tmp_path / "bundle", tmp_path / "damaged")
    os.truncate(tmp_path / "damaged" / "models" / "model.safetensors", 5000)

    words = ("--dataset_dir", data, "--output_dir")
    good = start(tmp_path / "bundle", *words, tmp_path / "out")
    bad = start(tmp_path / "damaged", *words, tmp_path / "none")
    said, complaint = good.communicate(timeout=600)[0], bad.communicate(timeout=600)[0]

    assert good.returncode == 0, said
    assert "2 cases read, 0 refused; Research use only" in said
    assert "SYN000" not in said + complaint
    assert bad.returncode != 0
    assert "it is damaged or cut off; copy it again" in complaint
    assert not (tmp_path / "none").exists()

    learner, settings, _ = load_model(tmp_path / "bundle" / "models")
    cases = prepare_cases(
        read_cohort(data).cases, PrepareSettings.of(settings), Cache(tmp_path / "cache")
    ).cases
    expected = predictions_of(learner, settings, cases, ["report"] * 2, torch.device("cpu"))
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8"))["cases"]
    told = {row["case"].removeprefix("sub-"): row for row in rows}
    for place, prepared in enumerate(cases):
        row = told[prepared.case.patient.removeprefix("sub-")]
        assert row["p_idh"] == pytest.approx(expected.probabilities[place, 0], abs=1e-5)
        outline = nib.load(tmp_path / "out" / row["outline"])
        volume = np.asarray(outline.dataobj).sum() * np.prod(outline.header.get_zooms()) / 1000
        assert volume == pytest.approx(row["tumour_ml"], rel=1e-4)
        images = [nib.load(path) for path in prepared.case.volumes.values()]
        assert any(
            image.shape == outline.shape and np.allclose(image.affine, outline.affine) for image in images
        )
