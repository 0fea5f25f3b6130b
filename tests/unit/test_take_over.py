"""A released model's weights in the network that a run starts from."""

import json
from pathlib import Path

import pytest

from fedglioma.case import Modality
from fedglioma.config.run import RunConfig
from fedglioma.data.prepare import PIPELINE_VERSION
from fedglioma.errors import ProtocolError
from fedglioma.scale import LandmarkSums, fit_scale
from fedglioma.training.learner import EQUAL_COUNTS, initial_learner
from fedglioma.training.released import networks_apart, read_config, take_over, taken_scale
from fedglioma.weights import pack
from tests.federation_fixture import assert_same_bits
from tests.release_fixture import run_record, small_settings, write_release


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet", "unet"])
def test_run_begins_with_the_released_weights_whatever_its_seed_and_counts(
    model: str, tmp_path: Path
) -> None:
    released = small_settings(model)
    write_release(tmp_path / "model", released)
    asked = released.model_copy(update={"seed": 7, "lr": 1e-5, "rounds": 2, "precision": "float32"})
    learner = initial_learner(asked, EQUAL_COUNTS)
    take_over(tmp_path / "model", learner)
    expected = initial_learner(released, EQUAL_COUNTS)
    assert_same_bits(pack(learner.model, learner.loss), pack(expected.model, expected.loss))


def test_model_of_fedbn_gives_what_is_shared_and_leaves_the_norms(tmp_path: Path) -> None:
    settings = small_settings(preset="reference", strategy="fedbn")
    write_release(tmp_path / "model", settings)
    learner = initial_learner(settings.model_copy(update={"seed": 7}), EQUAL_COUNTS)
    take_over(tmp_path / "model", learner)
    expected = initial_learner(settings, EQUAL_COUNTS)
    assert_same_bits(pack(learner.model, learner.loss), pack(expected.model, expected.loss))


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 2},
        {"crop": 24},
        {"guide": "none"},
        {"path2": "t2"},
        {"preset": "reference"},
        {"model": "sgpnet"},
    ],
)
def test_another_network_is_refused_and_nothing_is_copied(changed: dict[str, object], tmp_path: Path) -> None:
    write_release(tmp_path / "model", small_settings())
    table = {"model": "mdpnet", **changed}
    asked = small_settings(str(table.pop("model")), **table)
    learner = initial_learner(asked, EQUAL_COUNTS)
    before = pack(learner.model, learner.loss)
    with pytest.raises(ProtocolError, match="holds another network than the run trains; start from one of"):
        take_over(tmp_path / "model", learner)
    assert_same_bits(pack(learner.model, learner.loss), before)


def test_damaged_weights_are_refused_and_nothing_is_copied(tmp_path: Path) -> None:
    settings = small_settings()
    folder = write_release(tmp_path / "model", settings)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    learner = initial_learner(settings, EQUAL_COUNTS)
    before = pack(learner.model, learner.loss)
    with pytest.raises(ProtocolError, match="damaged"):
        take_over(folder, learner)
    assert_same_bits(pack(learner.model, learner.loss), before)


def test_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    settings = small_settings()
    learner = initial_learner(settings, EQUAL_COUNTS)
    (tmp_path / "config.json").write_text(json.dumps({"format": "other"}), encoding="utf-8")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ProtocolError, match="not a released model"):
            take_over(folder, learner)


COMMON = {"standardize": "federated"}


def released(folder: Path, pipeline: int | None = None, **others: object) -> RunConfig:
    """Write a model that knows images on a scale of two hospitals, and return its settings."""
    settings = small_settings(**COMMON | others)
    scale = fit_scale([{Modality.FLAIR: LandmarkSums(cases=6, sums=(180, 300, 420))}])
    write_release(folder, settings, run_record(settings, scale=scale, scale_id=scale.id))
    if pipeline is not None:
        config = read_config(folder) | {"pipeline": pipeline}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return settings


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({"lr": 1e-5, "rounds": 9}, True),
        ({"spacing_mm": 6.0}, True),
        ({"standardize": "zscore"}, False),
        ({"preprocessing": "fusion"}, False),
        ({"preprocessing": "mdpnet"}, False),
        ({"bias_correction": True}, False),
    ],
)
def test_scale_is_taken_over_where_images_are_prepared_alike(
    changed: dict[str, object], taken: bool, tmp_path: Path
) -> None:
    settings = released(tmp_path / "model")
    found = taken_scale(tmp_path / "model", settings.model_copy(update=changed))
    assert (found is not None) == taken
    if found is not None:
        assert found.id == read_config(tmp_path / "model")["scale_id"]


def test_scale_of_another_preparation_or_of_none_is_not_taken_over(tmp_path: Path) -> None:
    settings = released(tmp_path / "old", pipeline=PIPELINE_VERSION - 1)
    assert taken_scale(tmp_path / "old", settings) is None
    write_release(tmp_path / "own", small_settings())
    assert taken_scale(tmp_path / "own", settings) is None


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"head_act": "none"}, {}, "head_act none there, leaky_relu here"),
        ({"guide_mode": "max_prob"}, {}, "guide_mode max_prob there, p_mut here"),
        ({"path2": "t2"}, {"path2": "flair"}, "path2 t2 there, flair here"),
        ({"guide": "idh"}, {"guide": "atrx"}, "guide idh there, atrx here"),
    ],
)
def test_networks_that_use_the_same_weights_otherwise_are_apart(
    one: dict[str, object], other: dict[str, object], said: str
) -> None:
    assert networks_apart(small_settings(**one), small_settings(**other)) == said


@pytest.mark.parametrize(
    "changed",
    [
        {"head_act": "leaky_relu", "guide_mode": "p_mut", "norm": "group"},
        {"guide_detach": True},
        {"ldam_input": "logit"},
        {"lr": 1e-5, "seed": 7},
    ],
)
def test_runs_go_on_from_a_network_that_was_only_trained_otherwise(changed: dict[str, object]) -> None:
    assert networks_apart(small_settings(), small_settings(**changed)) is None
