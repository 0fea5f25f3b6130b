from typing import Any

import pytest
import torch

from fedglioma.case import Gene, Modality
from fedglioma.config.run import MODEL_NAMES, RECIPES, SEGMENTERS, RunConfig
from fedglioma.errors import ConfigError
from fedglioma.models import baselines
from fedglioma.models.build import Switches, build_model
from fedglioma.training.learner import build_learner, parameter_count
from fedglioma.weights import Layout

TINY = Switches(width=1, pos_grid=(2, 2, 2))
WIDTHS = {"senet": 4, "swinunetr": 12}
SMALLEST = {"mdpnet": 16, "swinunetr": 32, "sgpnet": 32, "densenet121": 32}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_listed_model_answers_its_tasks(name: str) -> None:
    crop = SMALLEST.get(name, 32)
    settings = RunConfig(model=name, width=WIDTHS.get(name, 1), crop=crop)  # type: ignore[arg-type]
    learner = build_learner(settings, dict.fromkeys(Gene, (1.0, 1.0)))
    learner.model.eval()
    with torch.no_grad():
        outputs = learner.model(torch.zeros(1, 4, crop, crop, crop), torch.ones(1, 4))
    assert tuple(outputs) == learner.tasks == settings.tasks
    assert all(value.shape[:2] == (1, 2) for value in outputs.values())
    sizes = Layout.of(learner.model, learner.loss).sizes
    assert sizes["trunk"] > 0
    if name not in SEGMENTERS:
        assert all(sizes[task] > 0 for task in settings.tasks)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_recipe_of_a_baseline_has_the_published_width(name: str) -> None:
    assert RECIPES[name]["width"] == baselines.published_width(name)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_configuration_takes_exactly_the_crops_that_a_baseline_takes(name: str) -> None:
    for crop in range(16, 97):
        try:
            baselines.check_crop(name, (crop,) * 3)
        except ConfigError:
            with pytest.raises(ConfigError):
                RunConfig.from_mapping({"model": name, "crop": crop}, "here")
        else:
            assert RunConfig.from_mapping({"model": name, "crop": crop}, "here").crop == crop


@pytest.mark.parametrize(
    ("switches", "parameters"),
    [
        ({"path2": "none"}, 32_928_694),
        ({"path2": "t2"}, 66_863_250),
        ({"path2": "flair"}, 66_863_250),
        ({"attention": "rda+rda"}, 72_584_814),
        ({"attention": "vit+vit"}, 61_185_590),
        ({"guide": "none"}, 66_884_178),
        ({"guide": "idh"}, 66_884_690),
        ({}, 66_885_202),
        ({"model": "sgpnet"}, 2_442_296),
    ],
)
def test_run_settings_reach_the_ablations_of_the_papers(switches: dict[str, Any], parameters: int) -> None:
    assert parameter_count(RunConfig.from_mapping(switches, "here")) == parameters


def test_same_seed_draws_the_same_weights() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_model("mdpnet", TINY).state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fuse.weight"], other["fuse.weight"])


def test_model_on_the_meta_device_takes_over_a_checkpoint() -> None:
    saved = build_model("mdpnet", TINY).eval()
    with torch.device("meta"):
        empty = build_model("mdpnet", TINY).eval()
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(saved.state_dict(), assign=True)
    image = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(empty(image)["atrx"], saved(image)["atrx"])


@pytest.mark.parametrize(
    ("name", "switches", "message"),
    [
        ("resnet", {}, "model 'resnet' is unknown: choose mdpnet"),
        ("mdpnet", {"preset": "best"}, "preset 'best' is unknown"),
        ("mdpnet", {"width": 0}, "mdpnet: width: 0: Input should be greater"),
        ("mdpnet", {"pos_grid": (4, 4)}, "mdpnet: pos_grid"),
        ("mdpnet", {"path2": (Modality.T2, Modality.T2)}, "mdpnet: path2.*twice"),
        ("sgpnet", {"targets": "all"}, "sgpnet: targets"),
        ("swinunetr", {"width": 8}, "multiple of 12"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(name: str, switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(name, Switches(**switches))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("crop", "voxels"), [(144, 10), (48, 3), (32, 2)])
def test_sgpnet_moves_a_smaller_cube_by_the_same_part(crop: int, voxels: int) -> None:
    assert RunConfig(model="sgpnet", crop=crop).shift_voxels == voxels
    assert RunConfig(model="sgpnet", crop=crop, shift_voxels=7).shift_voxels == 7
