"""The shipped studies at full size: what the papers and the networks' authors published, and one recipe."""

from pathlib import Path
from typing import Any

import pytest

from fedglioma.config.run import RunConfig
from fedglioma_server.study_file import Study, read_study

SHIPPED = sorted((Path(__file__).parents[2] / "server" / "studies").glob("*.yaml"))

WIDTHS = {
    "mdpnet": 16,
    "sgpnet": 8,
    "resnet50": 64,
    "densenet121": 32,
    "senet": 64,
    "unet": 16,
    "segresnet": 32,
    "swinunetr": 48,
}
EVERYBODYS = {"lr": 1e-4, "batch_size": 2, "flips": True, "intensity": False, "spacing_mm": 1.0}
PAPERS: dict[str, dict[str, Any]] = {
    "mdpnet": EVERYBODYS
    | {"weight_decay": 1e-5, "schedule": "poly", "one_flip": False, "shift_voxels": 0, "crop": 128},
    "sgpnet": EVERYBODYS
    | {"weight_decay": 0, "schedule": "cosine", "one_flip": True, "preprocessing": "sgpnet"},
}
EPOCHS = {"mdpnet": 1000, "sgpnet": 300}
"""SGPNet's paper names none; 300 is this project's decision."""


def paper_of(path: Path) -> str:
    return "mdpnet" if path.stem.startswith(("mdpnet", "hospitals")) else "sgpnet"


def arms(study: Study) -> list[RunConfig]:
    return [study.settings(arm, study.seeds[0], {}) for arm in study.arms]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_study_at_full_size_is_the_papers(path: Path) -> None:
    study, paper = read_study(path, "full"), paper_of(path)
    assert len(study.seeds) == 3
    assert (study.divisions.kind, study.divisions.folds) == ("kfold", 5)
    for settings in arms(study):
        assert settings.width == WIDTHS[settings.model]
        assert settings.rounds * settings.local_epochs == EPOCHS[paper]
        assert {name: getattr(settings, name) for name in PAPERS[paper]} == PAPERS[paper]
        if paper == "sgpnet":
            assert settings.shift_voxels == round(10 / 144 * settings.crop)
            assert settings.head_lr == (0.5 if settings.model == "sgpnet" else 1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_papers_cube_is_given_up_only_where_a_network_cannot_take_it(path: Path) -> None:
    if paper_of(path) == "sgpnet":
        found = arms(read_study(path, "full"))
        swin = any(settings.model == "swinunetr" for settings in found)
        assert {settings.crop for settings in found} == {128 if swin else 144}


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.stem.startswith("mdpnet")], ids=lambda p: p.stem)
def test_papers_tables_are_made_on_the_papers_intensities(path: Path) -> None:
    for size in ("test", "full"):
        assert {s.preprocessing for s in arms(read_study(path, size))} == {"mdpnet"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_rows_of_a_study_are_trained_alike(path: Path) -> None:
    """But for what the study compares, and for how SGPNet's paper trains the layers of its own IDH block."""
    for size in ("test", "full"):
        own = ("model", "width", "path2", "attention", "guide", "targets", "head_lr", "channels_last")
        tables = [settings.model_dump(exclude=set(own)) for settings in arms(read_study(path, size))]
        assert all(table == tables[0] for table in tables)
