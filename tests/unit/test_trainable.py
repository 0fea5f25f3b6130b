"""What no site could train is refused before anything is prepared, in a dry run too; what is left then."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.models.build import build_model, least_batch
from fedglioma.training.learner import switches_of
from fedglioma_server.records import HeldOutRound, RoundRecord, write_json, write_rounds
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.samerun import new_record, require_same_settings
from tests.cli_fixture import SYNTHETIC, TINY, call, reason_of


def start(folder: Path, *words: str) -> Any:
    return call("simulate", *SYNTHETIC, *TINY, "--out", folder / "run", "--cache", folder / "cache", *words)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--precision", "float16"), "precision: float16: a processor's short numbers"),
        (("--precision", "bfloat16"), "choose auto or float32"),
        (("--preset", "reference", "--batch-size", "1"), "with batch_size 1 there is one value per channel"),
    ],
)
def test_run_that_no_site_can_train_is_refused_before_anything_is_prepared(
    words: tuple[str, ...], said: str, dry: tuple[str, ...], tmp_path: Path
) -> None:
    result = start(tmp_path, *words, *dry)
    assert result.exit_code == 2
    assert said in reason_of(result)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_study_names_the_run_that_cannot_be_trained(dry: tuple[str, ...], tmp_path: Path) -> None:
    table = {
        "title": "Numbers",
        "arms": [{"name": "whole"}, {"name": "short", "precision": "bfloat16"}],
        "divisions": {"folds": 2},
        "run": {"width": 1, "crop": 16, "spacing_mm": 8, "rounds": 1},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(table))
    words = ("--study", tmp_path / "study.yaml", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    result = call("simulate", *SYNTHETIC, *words, *dry)
    assert result.exit_code == 2
    assert "study.yaml: short, federated, seed 1234, fold 1: precision: bfloat16" in reason_of(result)
    assert not (tmp_path / "cache").exists()


BATCH: list[dict[str, Any]] = [
    {"crop": 32},
    {"crop": 33},
    {"crop": 32, "path2": "none"},
    {"crop": 16, "attention": "vit+vit"},
    {"crop": 32, "preset": "recommended"},
    {"model": "resnet50", "crop": 32, "width": 2},
    {"model": "densenet121", "crop": 40, "width": 2},
    {"model": "unet", "crop": 16, "width": 2},
    {"model": "unet", "crop": 32, "width": 2},
    {"model": "sgpnet", "crop": 32, "preset": "recommended", "width": 1},
]


@pytest.mark.parametrize("given", BATCH, ids=str)
def test_least_batch_is_two_where_one_case_cannot_be_trained_on(given: dict[str, Any]) -> None:
    settings = RunConfig(**({"preset": "reference", "width": 1} | given))
    switches = switches_of(settings)
    model = build_model(settings.model, switches).train()
    image = torch.randn(1, 4, *(settings.crop,) * 3)
    if least_batch(settings.model, switches, settings.crop) == 1:
        model(image)
    else:
        with pytest.raises(ConfigError, match="norm batch cannot train on one case"):
            model(image)


@pytest.mark.parametrize(("trained", "instead"), [(0, "no round of it is complete: remove"), (1, "name")])
def test_folder_of_a_run_that_never_trained_may_be_removed(
    trained: int, instead: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    nothing: dict[Any, Any] = dict.fromkeys(GENES)
    measured = HeldOutRound(cases=1, loss=None, loss_by_task=nothing, auc=nothing, accuracy=nothing)
    settings = RunConfig(precision="float16", width=1, crop=16)
    about: dict[str, Any] = {"cohorts": [], "issues": [], "synthetic": True}
    record = new_record(folder, settings, engine="inline", command="test", cases=[], **about)
    write_json(folder.record_file, record)
    write_rounds(folder.rounds_file, [RoundRecord(round=n, heldout=measured) for n in range(trained + 1)])
    with pytest.raises(
        ConfigError, match=f"run with precision float16, auto is asked for; {instead}"
    ) as raised:
        require_same_settings(folder, settings.model_copy(update={"precision": "auto"}))
    assert str(raised.value).endswith("name another --out")
