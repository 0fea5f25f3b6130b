"""Arms that come to the same training are refused before anything is trained."""

from typing import Any, get_args

import pytest

from fedglioma.config.resolved import resolved
from fedglioma.config.run import Preset, RunConfig
from fedglioma.errors import ConfigError
from fedglioma.losses.multitask import loss_preset
from fedglioma.models.mdpnet import MDPNetConfig
from fedglioma_server.study_cells import expand
from tests.unit.test_study_cells import CASES, study

OF_REFERENCE = {"guide_mode": "max_prob", "head_act": "none"}
REFERENCE = {"preset": "reference"}


@pytest.mark.parametrize("preset", get_args(Preset))
def test_auto_is_what_the_network_and_the_loss_take(preset: str) -> None:
    network, loss = MDPNetConfig.preset(preset), loss_preset(preset)
    found = resolved(RunConfig.recorded({"preset": preset}, "test"))
    assert (found["norm"], found["guide_mode"], found["head_act"], found["ldam_input"]) == (
        *(network.norm, network.guide_mode, network.head_act),
        loss.ldam_input,
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    first, second = (resolved(RunConfig.recorded(settings, "test")) for settings in (one, other))
    return first == second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"model": "sgpnet"}, {"model": "sgpnet", "preset": "reference"}),
        ({"path2": "none", "attention": "vit+vit"}, {"path2": "none", "attention": "vit+rda"}),
        ({"path2": "none", "attention": "rda+vit"}, {"path2": "none", "attention": "rda+rda"}),
        ({}, {"norm": "group"}),
        ({}, {"guide_mode": "p_mut"}),
        ({}, {"head_act": "leaky_relu"}),
        ({}, {"ldam_input": "prob"}),
        (REFERENCE, REFERENCE | {"norm": "batch"}),
        (REFERENCE, REFERENCE | {"guide_mode": "max_prob", "head_act": "none"}),
        (REFERENCE, REFERENCE | {"ldam_input": "double_softmax"}),
        (
            {"attention": "rda+rda"} | REFERENCE,
            {"attention": "rda+rda", "norm": "batch", "ldam_input": "double_softmax"} | OF_REFERENCE,
        ),
        ({"model": "unet"}, {"model": "unet", "norm": "group"}),
        ({"model": "unet", "preset": "reference"}, {"model": "unet", "norm": "batch"}),
        (
            {"model": "resnet50", "preset": "reference"},
            {"model": "resnet50", "norm": "batch", "ldam_input": "double_softmax"},
        ),
        ({"server_lr": 0.1}, {"server_lr": 0.5}),
        ({"strategy": "fedadam"}, {"strategy": "fedadam", "server_lr": 0.1}),
        ({}, {"weighting": "uncertainty"}),
        ({"strategy": "fedprox"}, {"strategy": "fedprox", "weighting": "fixed"}),
        ({"model": "unet"}, {"model": "unet", "inference": "sliding"}),
        ({"model": "unet"}, {"model": "unet", "counts": "local"}),
        ({"preprocessing": "mdpnet"}, {"preprocessing": "mdpnet", "bias_correction": False}),
    ],
)
def test_settings_that_change_nothing_are_the_same_training(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"preset": "reference"}),
        ({"model": "unet"}, {"model": "unet", "preset": "reference"}),
        ({"path2": "none", "attention": "rda+vit"}, {"path2": "none", "attention": "vit+rda"}),
        ({"path2": "none", "attention": "vit+vit"}, {"path2": "none", "attention": "rda+vit"}),
        ({}, {"norm": "batch"}),
        ({}, {"guide_mode": "max_prob"}),
        ({}, {"ldam_input": "logit"}),
        ({"model": "resnet50", "preset": "reference"}, {"model": "resnet50", "norm": "batch"}),
        (REFERENCE, {"norm": "batch", "ldam_input": "double_softmax"} | OF_REFERENCE),
        ({"attention": "vit+vit"}, {"attention": "vit+rda"}),
        ({"strategy": "fedadam"}, {"strategy": "fedadam", "server_lr": 0.5}),
        ({"strategy": "fedprox"}, {"strategy": "fedprox", "weighting": "uncertainty"}),
        ({}, {"inference": "sliding"}),
        ({}, {"payload": "float32"}),
        ({}, {"seed": 1}),
    ],
)
def test_settings_that_change_something_are_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not same(one, other)


def arms(**settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "settings": own} for name, own in settings.items()]


def test_arms_that_are_one_training_are_named_in_pairs() -> None:
    twice = arms(plain={}, learned={"weighting": "uncertainty"}, fixed={"weighting": "fixed"})
    with pytest.raises(ConfigError, match=r"two names: plain and learned: they differ in nothing"):
        expand(study(arms=twice, file="odd.yaml"), CASES, {})
    many = arms(**{f"a{place}": {} for place in range(4)})
    with pytest.raises(ConfigError, match=r"a0 and a1; .*; a1 and a3 and 1 more pairs:"):
        expand(study(arms=many), CASES, {})


def test_arms_that_are_one_under_one_protocol_only_are_compared_under_the_others() -> None:
    """Alone, a hospital has no other to average with: FedAvg and its median are one there."""
    two = arms(mean={}, median={"strategy": "median"})
    assert expand(study(arms=two, protocols=("federated", "local")), CASES, {})
    with pytest.raises(ConfigError, match="mean and median"):
        expand(study(arms=two, protocols=("local",)), CASES, {})
