"""A model that an attack tells more of than its stated privacy allows is not released."""

from pathlib import Path

import pytest

from fedglioma.errors import FedGliomaError
from fedglioma.training.released import model_digest
from fedglioma_server.attack_report import AttackReport, attack_file
from fedglioma_server.monai_bundle import write_bundle
from fedglioma_server.records import write_json
from tests.release_fixture import evaluation_of, run_record, small_settings, write_release


def attacked(digest: str, *refusals: str) -> AttackReport:
    return AttackReport(
        model_digest=digest,
        run_id="r",
        round=3,
        synthetic=True,
        members=20,
        nonmembers=21,
        left_out=0,
        privacy="differentially private per patient, epsilon 1 at delta 1e-05",
        epsilon=1.0,
        delta=1e-5,
        shadows=0,
        shadow_rounds=0,
        attacks=(),
        probes=(),
        refusals=refusals,
    )


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    settings = small_settings("mdpnet")
    record = run_record(settings)
    folder = tmp_path / "run"
    write_release(folder / "model", settings, record)
    write_json(folder / "run.json", record)
    write_json(folder / "evaluation" / "metrics.json", evaluation_of(settings))
    return folder


def bundle(run_folder: Path) -> Path:
    out = run_folder.parent / "bundle"
    write_bundle(run_folder / "model", out, bundle_version="1.0.0", authors=None, license_file=None)
    return out


def test_attack_above_the_bound_keeps_the_model_from_being_released(run_folder: Path) -> None:
    digest = model_digest(run_folder / "model")
    write_json(
        attack_file(run_folder), attacked(digest, "loss threshold: AUC is at least 0.93, 0.73 allowed")
    )
    with pytest.raises(FedGliomaError, match=r"not to be released: loss threshold: AUC is at least 0\.93"):
        bundle(run_folder)
    assert not (run_folder.parent / "bundle").exists()


def test_attack_within_the_bound_is_told_with_the_model(run_folder: Path) -> None:
    write_json(attack_file(run_folder), attacked(model_digest(run_folder / "model")))
    told = (bundle(run_folder) / "docs" / "README.md").read_text(encoding="utf-8")
    assert "Attacked with 20 patients that it was trained on and 21 that it was not" in told


def test_attack_on_another_model_says_nothing_of_this_one(run_folder: Path) -> None:
    write_json(attack_file(run_folder), attacked("0" * 64, "loss threshold: above"))
    assert "Attacked" not in (bundle(run_folder) / "docs" / "README.md").read_text(encoding="utf-8")
