"""A model is not released that keeps not what is stated of its privacy, or of which nobody tried it."""

from pathlib import Path

import pytest

from fedglioma.errors import FedGliomaError
from fedglioma.privacy.accounting import epsilon_of
from fedglioma.training.released import model_digest
from fedglioma_server.attack_report import AttackReport, attack_file
from fedglioma_server.monai_bundle import write_bundle
from fedglioma_server.privacy import privacy_record
from fedglioma_server.records import RunRecord, read_json, write_json, write_text
from fedglioma_server.spending import mechanisms
from tests.cli_fixture import call, reason_of
from tests.release_fixture import evaluation_of, run_record, small_settings, trained_rounds, write_release

NOISY = {"privacy": "site", "noise_multiplier": 5.0, "sampling_rate": 0.2, "norm_limit": 0.0}
ROUNDS = trained_rounds(3)


def attacked(digest: str, *refusals: str, epsilon: float | None = None) -> AttackReport:
    return AttackReport(
        model_digest=digest,
        run_id="r",
        round=3,
        synthetic=True,
        members=20,
        nonmembers=21,
        left_out=0,
        privacy="differentially private per patient, epsilon 1 at delta 1e-05",
        epsilon=epsilon,
        delta=None if epsilon is None else 1e-5,
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


@pytest.fixture
def private_run(tmp_path: Path) -> Path:
    """The folder of a private run of three rounds that nobody attacked."""
    settings = small_settings("mdpnet", **NOISY)
    record = run_record(settings)
    folder = tmp_path / "run"
    write_release(folder / "model", settings, record)
    write_json(folder / "run.json", record)
    write_text(folder / "rounds.jsonl", "".join(line.model_dump_json() + "\n" for line in ROUNDS))
    write_json(folder / "evaluation" / "metrics.json", evaluation_of(settings))
    write_json(folder / "privacy.json", privacy_record(record, ROUNDS))
    return folder


def stated_by(run_folder: Path) -> float:
    stated = privacy_record(read_json(run_folder / "run.json", RunRecord), ROUNDS).epsilon
    assert stated is not None
    return stated


def state(run_folder: Path, **others: object) -> None:
    record = privacy_record(read_json(run_folder / "run.json", RunRecord), ROUNDS)
    write_json(run_folder / "privacy.json", record.model_copy(update=others))


def bundle(run_folder: Path, *, without_attack: bool = False) -> Path:
    out = run_folder.parent / "bundle"
    write_bundle(
        run_folder / "model",
        out,
        bundle_version="1.0.0",
        authors=None,
        license_file=None,
        without_attack=without_attack,
    )
    return out


def page(bundle: Path) -> str:
    return (bundle / "docs" / "README.md").read_text(encoding="utf-8")


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


def test_private_model_that_nobody_attacked_is_bundled_only_where_somebody_says_so(private_run: Path) -> None:
    with pytest.raises(FedGliomaError, match="no attack on it is on record"):
        bundle(private_run)
    assert "No attack on this model is on record" in page(bundle(private_run, without_attack=True))


def test_command_refuses_a_private_model_without_an_attack_with_1(private_run: Path) -> None:
    words = ("bundle", private_run / "model", "--out", private_run.parent / "made")
    refused = call(*words)
    assert refused.exit_code == 1
    assert "--without-attack" in reason_of(refused)
    assert call(*words, "--without-attack").exit_code == 0


def test_private_model_that_was_attacked_is_bundled_with_what_was_found(private_run: Path) -> None:
    digest = model_digest(private_run / "model")
    write_json(attack_file(private_run), attacked(digest, epsilon=stated_by(private_run)))
    assert "Attacked with 20 patients" in page(bundle(private_run))


def test_attack_that_was_judged_by_another_epsilon_is_none(private_run: Path) -> None:
    write_json(attack_file(private_run), attacked(model_digest(private_run / "model")))
    with pytest.raises(FedGliomaError, match=r"judged by epsilon none, now .* attack it again"):
        bundle(private_run, without_attack=True)


@pytest.mark.parametrize("unit", ["patient", "site"])
def test_model_whose_run_spent_more_than_is_stated_is_not_bundled(private_run: Path, unit: str) -> None:
    state(private_run, epsilon=stated_by(private_run) / 2, unit=unit)
    digest = model_digest(private_run / "model")
    write_json(attack_file(private_run), attacked(digest, epsilon=stated_by(private_run) / 2))
    with pytest.raises(FedGliomaError, match=r"privacy\.json states epsilon"):
        bundle(private_run, without_attack=True)


def test_model_that_leaves_its_run_still_states_what_its_description_says(private_run: Path) -> None:
    settings = small_settings("mdpnet", **NOISY)
    spent = tuple(mechanisms(settings, 3))
    assert epsilon_of(spent, settings.delta, "prv") == pytest.approx(stated_by(private_run))
    copied = private_run.parent / "elsewhere"
    write_release(copied / "model", settings, run_record(settings), spent=spent)
    with pytest.raises(FedGliomaError, match="it states privacy"):
        bundle(copied)
