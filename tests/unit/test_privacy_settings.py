"""Which of a run's settings hold together with its privacy, and in which words the others are refused."""

from typing import Any

import pytest

from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError

CENTRAL = {"privacy": "central", "target_epsilon": 3}


def refused(**given: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_mapping(given, "settings")
    return str(raised.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"noise_multiplier": 1.0}, "without effect while privacy is none"),
        ({"target_epsilon": 3.0}, "without effect while privacy is none"),
        ({"sampling_rate": 0.5}, "sampling_rate: without effect while privacy is none"),
        ({"clipping": "per_layer"}, "clipping: without effect while privacy is none"),
        ({"counts_epsilon": 2}, "or set privacy to site"),
        ({"clip_norm": 2}, "clip_norm: without effect while privacy is none"),
        ({"delta": 1e-6}, "or set privacy to site or central"),
        ({"accountant": "rdp"}, "accountant: without effect while privacy is none"),
        (CENTRAL | {"sampling_rate": 0.5}, "sampling_rate: without effect while privacy is central"),
        (CENTRAL | {"clipping": "per_layer"}, "clipping: without effect while privacy is central"),
        (
            CENTRAL | {"counts_epsilon": 2, "clipping": "per_layer"},
            "clipping and counts_epsilon: without effect while privacy is central; leave them out, or set "
            "privacy to site",
        ),
        ({"privacy": "site"}, "give target_epsilon, or noise_multiplier"),
        ({"privacy": "central"}, "give target_epsilon, or noise_multiplier"),
        (
            {"privacy": "site", "target_epsilon": 3, "model": "swinunetr"},
            "model: swinunetr gives no gradients",
        ),
        ({"privacy": "site", "target_epsilon": 3, "preset": "reference"}, "preset: reference normalises"),
        ({"privacy": "site", "target_epsilon": 3, "weighting": "uncertainty"}, "weighting: learned loss"),
        ({"privacy": "site", "target_epsilon": 3, "counts": "local"}, "counts: a site's exact counts"),
        ({"privacy": "site", "target_epsilon": 3, "compile": True}, "compile: "),
        ({"privacy": "site", "target_epsilon": 3, "checkpointing": True}, "checkpointing: "),
        ({"privacy": "site", "target_epsilon": 3, "accumulate": 2}, "accumulate: sampling_rate decides"),
        ({"privacy": "site", "target_epsilon": 3, "precision": "bfloat16"}, "precision: clipping needs"),
        (
            {"privacy": "site", "target_epsilon": 3, "secure_statistics": True},
            "secure_statistics: each site's",
        ),
        (
            {"privacy": "central", "target_epsilon": 3, "strategy": "fedadam"},
            "strategy: the noise is that of",
        ),
        ({"privacy": "central", "target_epsilon": 3, "norm_limit": 5}, "norm_limit: one site's step"),
        ({"privacy": "central", "target_epsilon": 3, "keep_updates": True}, "keep_updates: the steps"),
        ({"privacy": "central", "target_epsilon": 3, "quorum": 2}, "quorum: a mean of less than 3"),
        ({"payload": "masked"}, "payload: masked: only with secure_aggregation"),
        ({"secure_aggregation": True, "strategy": "median"}, "median compares single updates"),
        ({"secure_aggregation": True, "strategy": "trimmed_mean"}, "trimmed_mean compares single updates"),
        ({"secure_aggregation": True, "strategy": "multikrum"}, "multikrum compares single updates"),
        ({"secure_aggregation": True, "payload": "int8"}, "payload: int8 is not masked"),
        ({"secure_aggregation": True, "norm_limit": 5.0}, "norm_limit: nobody sees the length"),
        ({"secure_aggregation": True, "keep_updates": True}, "keep_updates: there are no single updates"),
        ({"secure_aggregation": True, "quorum": 2}, "quorum: a masked sum needs 3 sites"),
        ({"secure_aggregation": True, "privacy": "central", "noise_multiplier": 1}, "central clips single"),
        ({"secure_statistics": True}, "secure_statistics: only with secure_aggregation"),
        (
            {"secure_statistics": True, "secure_aggregation": True, "find_duplicates": True},
            "find_duplicates: tells the server",
        ),
        ({"privacy": "site", "target_epsilon": 3, "delta": 0.5}, "delta"),
        ({"privacy": "site", "target_epsilon": 3, "sampling_rate": 0}, "sampling_rate"),
    ],
)
def test_what_does_not_go_with_privacy_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    assert words in refused(**given)


@pytest.mark.parametrize("privacy", ["none", "site", "central"])
def test_defaults_of_every_setting_go_with_every_kind_of_privacy(privacy: str) -> None:
    noise = {} if privacy == "none" else {"target_epsilon": 3}
    settings = RunConfig.from_mapping({"privacy": privacy, **noise}, "settings")
    assert RunConfig.model_validate_json(settings.model_dump_json()) == settings


def test_what_noise_of_any_kind_uses_goes_with_central_privacy() -> None:
    given = CENTRAL | {"delta": 1e-6, "clip_norm": 2.0, "accountant": "rdp"}
    assert RunConfig.from_mapping(given, "settings").clip_norm == 2.0


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedbn", "fedavgm", "fedadam", "fedyogi"])
def test_secure_aggregation_brings_its_payload_and_quorum_to_every_strategy_of_means(strategy: str) -> None:
    settings = RunConfig.from_mapping({"secure_aggregation": True, "strategy": strategy}, "settings")
    assert (settings.payload, settings.norm_limit, settings.quorum) == ("masked", 0.0, 3)
    again = RunConfig.model_validate_json(settings.model_dump_json())
    assert again == settings


@pytest.mark.parametrize(
    ("rate", "epochs", "steps"), [(0.1, 1, 10), (0.1, 3, 30), (0.3, 1, 3), (1.0, 1, 1), (0.7, 1, 1)]
)
def test_an_epoch_has_as_many_steps_as_see_each_patient_once_on_average(
    rate: float, epochs: int, steps: int
) -> None:
    settings = RunConfig(
        privacy="site", noise_multiplier=1, sampling_rate=rate, local_epochs=epochs, rounds=7
    )
    terms = settings.privacy_terms
    assert terms is not None
    assert (terms.steps_per_round, terms.steps) == (steps, 7 * steps)


def test_terms_are_of_private_training_alone() -> None:
    assert RunConfig().privacy_terms is None
    assert RunConfig(privacy="central", noise_multiplier=1).privacy_terms is None
    with pytest.raises(ConfigError, match="not derived"):
        _ = RunConfig(privacy="site", target_epsilon=3).privacy_terms


def test_private_training_weighs_tasks_equally() -> None:
    assert RunConfig().task_weighting == "uncertainty"
    assert RunConfig(privacy="site", noise_multiplier=1).task_weighting == "fixed"
