"""Arms that come to the same training are refused before anything is trained."""

from typing import Any

import pytest

from fedglioma.config.resolved import resolved
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma_server.study_cells import expand
from tests.unit.test_study_cells import CASES, study


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    first, second = (resolved(RunConfig.recorded(settings, "test")) for settings in (one, other))
    return first == second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"model": "sgpnet"}, {"model": "sgpnet", "preset": "reference"}),
        ({"path2": "none", "attention": "vit+vit"}, {"path2": "none", "attention": "vit+rda"}),
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
