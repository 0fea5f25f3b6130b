"""Settings without effect: found out by what they would decide, and left out of the report."""

from typing import Any, get_args

import pytest

from fedglioma.config.effect import without_effect
from fedglioma.config.run import Preprocessing, RunConfig
from fedglioma.data.prepare import PrepareSettings
from fedglioma_server.report_run import settings_table


def config(**settings: Any) -> RunConfig:
    return RunConfig.from_mapping(settings, "test")


def shown(settings: RunConfig) -> set[str]:
    return {row.cells[0].text for row in settings_table(settings).rows}


@pytest.mark.parametrize("preprocessing", get_args(Preprocessing))
def test_bias_correction_is_shown_where_preparation_differs_by_it(preprocessing: str) -> None:
    ways = {
        PrepareSettings.of(config(preprocessing=preprocessing, bias_correction=on)) for on in (True, False)
    }
    assert ("bias_correction" in shown(config(preprocessing=preprocessing))) == (len(ways) == 2)


@pytest.mark.parametrize("preprocessing", get_args(Preprocessing))
def test_intensity_scale_is_shown_where_there_may_be_a_common_one(preprocessing: str) -> None:
    ways = {
        config(preprocessing=preprocessing, standardize=how).common_scale for how in ("federated", "zscore")
    }
    assert ("standardize" in shown(config(preprocessing=preprocessing))) == (len(ways) == 2)


def test_sgpnets_report_has_no_setting_that_only_others_use() -> None:
    names = shown(config(model="sgpnet"))
    assert not names & {
        "bias_correction",
        "standardize",
        "path2",
        "attention",
        "guide",
        "weighting",
        "counts",
    }
    assert {"targets", "crop", "spacing_mm", "head_lr", "one_flip"} <= names
    assert "head_lr" not in shown(config(model="sgpnet", targets="seg"))


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({}, {"path2", "weighting", "standardize", "bias_correction"}, {"targets", "proximal_mu", "delta"}),
        ({"strategy": "fedprox"}, {"proximal_mu"}, {"server_lr", "trim", "byzantine"}),
        ({"strategy": "fedavgm"}, {"server_lr", "server_momentum"}, {"beta_1", "tau", "proximal_mu"}),
        ({"strategy": "fedyogi"}, {"server_lr", "beta_1", "beta_2", "tau"}, {"server_momentum"}),
        ({"strategy": "trimmed_mean"}, {"trim"}, {"byzantine"}),
        ({"strategy": "multikrum"}, {"byzantine"}, {"trim"}),
        ({"privacy": "site", "noise_multiplier": 1}, {"delta", "sampling_rate"}, {"secure_range"}),
        ({"privacy": "central", "noise_multiplier": 1}, {"delta", "clip_norm"}, {"sampling_rate"}),
        ({"secure_aggregation": True}, {"secure_range", "secure_wait_s"}, {"noise_multiplier"}),
        ({"flips": False}, {"flips"}, {"one_flip"}),
        ({"model": "unet"}, {"inference"}, {"head_lr", "weighting", "path2"}),
    ],
)
def test_settings_of_what_a_run_does_are_shown_and_of_what_it_does_not_are_not(
    settings: dict[str, Any], there: set[str], absent: set[str]
) -> None:
    names = shown(config(**settings))
    assert there <= names
    assert not absent & names


def test_only_settings_that_exist_are_left_out_and_never_what_decides() -> None:
    for model in ("mdpnet", "sgpnet", "unet", "resnet50"):
        idle = without_effect(config(model=model))
        assert idle <= set(RunConfig.model_fields)
        assert not idle & {
            "model",
            "preprocessing",
            "privacy",
            "strategy",
            "secure_aggregation",
            "seed",
            "lr",
        }
