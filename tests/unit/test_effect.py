"""Settings without effect: found out by what they would decide, and left out of the report."""

from typing import Any, get_args

import pytest

from fedglioma.config.effect import without_effect
from fedglioma.config.run import Attention, Preprocessing, RunConfig
from fedglioma.data.prepare import PrepareSettings
from fedglioma.errors import ConfigError
from fedglioma_server.report_run import settings_table


def config(**settings: Any) -> RunConfig:
    return RunConfig.from_mapping(settings, "test")


def shown(settings: RunConfig) -> set[str]:
    return {row.cells[0].text for row in settings_table(settings).rows}


@pytest.mark.parametrize("preprocessing", get_args(Preprocessing))
def test_bias_correction_is_shown_where_preparation_differs_by_it(preprocessing: Any) -> None:
    ways = {
        PrepareSettings.of(RunConfig(preprocessing=preprocessing, bias_correction=on)) for on in (True, False)
    }
    assert ("bias_correction" in shown(config(preprocessing=preprocessing))) == (len(ways) == 2)


@pytest.mark.parametrize("preprocessing", get_args(Preprocessing))
def test_intensity_scale_is_shown_where_there_may_be_a_common_one(preprocessing: Any) -> None:
    ways = {
        RunConfig(preprocessing=preprocessing, standardize=how).common_scale
        for how in ("federated", "zscore")
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


SGPNET = {"model": "sgpnet", "crop": 32}

IDLE: list[tuple[dict[str, Any], str]] = [
    (
        {"early_stopping": 5, "selection": 0},
        "early_stopping: without effect while selection is 0: no patients say when; leave it out",
    ),
    ({"model": "unet", "head_lr": 0.5}, "head_lr: without effect while model is unet, which reads no marker"),
    (SGPNET | {"targets": "seg", "head_lr": 0.1}, "head_lr: without effect while targets is seg"),
    (SGPNET | {"preset": "reference"}, "preset: without effect while model is sgpnet; leave it out"),
    (
        SGPNET | {"counts": "local", "weighting": "fixed"},
        "weighting and counts: without effect while model is sgpnet; leave them out",
    ),
    (
        {"path2": "none", "attention": "vit+vit"},
        "attention: without effect while path2 is none: of vit+vit only vit is built; leave it out",
    ),
    ({"proximal_mu": 0.1}, "while strategy is fedavg; leave it out, or set strategy to fedprox"),
    ({"strategy": "fedavgm", "beta_1": 0.5, "tau": 0.1}, "or set strategy to fedadam or fedyogi"),
    (
        {"server_lr": 0.1, "trim": 0.1},
        "server_lr and trim: without effect while strategy is fedavg; leave them out",
    ),
    ({"strategy": "median", "byzantine": 2}, "or set strategy to multikrum"),
    (
        {"preprocessing": "sgpnet", "bias_correction": False},
        "bias_correction: without effect while preprocessing is sgpnet; leave it out, or set preprocessing "
        "to standard or fusion",
    ),
    ({"preprocessing": "mdpnet", "standardize": "zscore"}, "standardize: without effect"),
    ({"one_flip": True, "flips": False}, "one_flip: without effect while flips is false"),
    ({"secure_range": 2}, "secure_range: without effect while secure_aggregation is false"),
]


@pytest.mark.parametrize(("given", "words"), IDLE)
def test_setting_without_effect_is_refused_where_somebody_writes_it(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        config(**given)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("given", "_words"), IDLE)
def test_setting_without_effect_on_record_stays_readable(given: dict[str, Any], _words: str) -> None:
    settings = RunConfig.recorded(given, "run.json")
    assert RunConfig.recorded(settings.model_dump(mode="json"), "run.json") == settings


def test_every_reason_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^test: delta: without .*; one_flip: .*; proximal_mu: "):
        config(delta=1e-6, one_flip=True, flips=False, proximal_mu=1)


@pytest.mark.parametrize(
    "given",
    [
        {"proximal_mu": 0.01, "one_flip": False, "flips": False, "head_lr": 1.0, "server_lr": 0},
        SGPNET | {"targets": "seg"},  # its recipe has another head_lr
        SGPNET | {"targets": "seg", "head_lr": 0.5},
        SGPNET | {"targets": "seg", "head_lr": 1.0, "preset": "recommended", "weighting": "auto"},
        {"model": "unet", "bias_correction": True, "standardize": "federated", "preprocessing": "sgpnet"},
        {"path2": "none", "attention": "rda+rda"},
        {"path2": "none", "attention": "vit+rda"},
        {"path2": "none", "attention": "rda+vit"},  # without it, another network
        {"selection": 0, "early_stopping": 0},
        {"model": "sgpnet", "flips": False},  # one_flip is of its recipe
    ],
)
def test_values_that_are_the_default_or_the_networks_own_are_never_refused(given: dict[str, Any]) -> None:
    settings = config(**given)
    assert config(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("attention", get_args(Attention))
def test_attention_is_left_out_of_the_report_only_where_the_default_builds_the_same(attention: str) -> None:
    settings = RunConfig.recorded({"path2": "none", "attention": attention}, "run.json")
    built = attention.split("+")[0]
    assert "attention" in shown(settings) or built == RunConfig().attention.split("+")[0]
    assert ("attention" in shown(settings)) == (attention != "vit+vit")
