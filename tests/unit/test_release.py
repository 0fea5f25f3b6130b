"""The released model: a folder that stands alone, and is not taken for another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.errors import ProtocolError
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.tables import Evaluation, evaluate
from fedglioma.training.learner import initial_learner, layout_of
from fedglioma.training.released import load_model
from fedglioma.weights import GROUPS, pack
from fedglioma_server.records import HeldOutRound, RoundRecord, RunRecord, SiteData
from fedglioma_server.release import measure_text, results_text, write_card, write_model

SETTINGS = RunConfig(width=1, crop=16, spacing_mm=5.5, rounds=3)
COUNTS = dict.fromkeys(GENES, (7.5, 4.0))
EMPTY = dict.fromkeys(GENES)
CHOSEN = RoundRecord(
    round=2, heldout=HeldOutRound(cases=3, loss=1.0, loss_by_task=EMPTY, auc=EMPTY, accuracy=EMPTY)
)


def run_record(*, synthetic: bool = True) -> RunRecord:
    data = SiteData(cases=5, labels=dict.fromkeys(GENES, (5, 5, 0)), modalities={}, small_cell_limit=5)
    return RunRecord(
        run_id="demo",
        created="2026-01-01T00:00:00+00:00",
        engine="inline",
        command="tests",
        synthetic=synthetic,
        versions={"fedglioma": "9.9"},
        settings=SETTINGS,
        cohorts=["a"],
        data_digest="0" * 64,
        parameters=262_799,
        payload_bytes=20,
        splits={},
        sites={"ningxia": data, "henan": data},
        class_counts=COUNTS,
    )


def evaluation(cases: int = 6) -> Evaluation:
    rng = np.random.default_rng(0)
    return evaluate(
        Predictions(
            labels=np.tile(np.arange(cases)[:, None] % 2, (1, 3)).astype(np.int64),
            probabilities=rng.uniform(size=(cases, 3)),
            sites=("henan",) * cases,
            modalities=("flair",) * cases,
            split=("report",) * cases,
            patients=np.arange(cases),
        ),
        split="report",
        synthetic=True,
        resamples=100,
    )


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A model's folder as a run writes it."""
    learner = initial_learner(SETTINGS, COUNTS)
    arrays = pack(learner.model, learner.loss)
    write_model(tmp_path / "model", run_record(), CHOSEN, arrays, layout_of(SETTINGS))
    return tmp_path / "model"


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    how(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_released_model_is_loaded_to_the_bit_and_ready_to_predict(released: Path) -> None:
    expected = initial_learner(SETTINGS, COUNTS)
    learner, settings, _ = load_model(released)
    assert settings == SETTINGS
    assert not learner.model.training
    one, other = pack(expected.model, expected.loss), pack(learner.model, learner.loss)
    assert all(one[group].tobytes() == other[group].tobytes() for group in GROUPS)
    image = torch.randn(2, 4, 16, 16, 16)
    with torch.no_grad():
        assert {name: z.shape for name, z in learner.model(image).items()} == {g.value: (2, 2) for g in GENES}


def test_folder_can_be_moved(released: Path, tmp_path: Path) -> None:
    released.rename(tmp_path / "elsewhere")
    assert load_model(tmp_path / "elsewhere")[1] == SETTINGS


def test_config_says_how_to_build_the_network_and_names_no_path(released: Path) -> None:
    text = (released / "config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["format"] == "fedglioma-model"
    assert (config["run_id"], config["round"], config["synthetic"]) == ("demo", 2, True)
    assert config["channels"] == ["flair", "t1ce", "t1", "t2"]
    assert config["genes"] == ["idh", "atrx", "codel_1p19q"]
    assert str(released.parent) not in text


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda c: c.clear(), "not a released model"),
        (lambda c: c.pop("layout"), "not a released model"),
        (lambda c: c.update(settings=None), "not a released model"),
        (lambda c: c.update(settings=["width"]), "not a released model"),
        (lambda c: c["settings"].update(rounds=0), "rounds: 0 is not allowed"),
        (lambda c: c.update(class_counts={"idh": 3}), "not a released model"),
        (lambda c: c.update(class_counts={"egfr": [1, 2]}), "not a released model"),
        (lambda c: c["class_counts"].update(idh=["many", 2]), "not a released model"),
        (lambda c: c["class_counts"].pop("idh"), "class counts lack idh"),
        (lambda c: c["channels"].reverse(), "made for channels"),
        (lambda c: c.update(genes=["idh"]), "made for channels"),
        (lambda c: c["settings"].update(crop=32), "of another network"),
        (lambda c: c.update(layout="0" * 64), "of another network"),
        (lambda c: c.update(digest="0" * 64), "model.safetensors is damaged"),
    ],
)
def test_config_that_does_not_belong_is_refused(
    released: Path, how: Callable[[dict[str, Any]], object], said: str
) -> None:
    change(released, how)
    with pytest.raises(ProtocolError, match=said) as raised:
        load_model(released)
    assert "\n" not in str(raised.value)


def test_every_byte_of_the_weights_counts(released: Path) -> None:
    path = released / "model.safetensors"
    content = bytearray(path.read_bytes())
    for place in (-1, -1000, len(content) // 2):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(ProtocolError, match=r"model.safetensors is damaged"):
            load_model(released)
        content[place] ^= 1
    path.write_bytes(content)
    load_model(released)


def test_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ProtocolError, match="not a released model"):
            load_model(folder)


def test_card_says_what_the_model_is_and_what_it_is_not(tmp_path: Path) -> None:
    write_card(tmp_path, run_record(), CHOSEN, evaluation(), "Not differentially private.")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for words in (
        "Research use only. Not a medical device.",
        "Trained on SYNTHETIC patients",
        "2 sites (henan, ningxia)",
        "round 2 had the lowest held-out loss",
        "in this order: flair, t1ce, t1, t2",
        "idh, atrx, codel_1p19q",
        "5.5 mm grid",
        "Not differentially private.",
        "Too few patients to judge the model",
        "majority class",
    ):
        assert words in card, words
    assert "{" not in card


def test_card_of_real_patients_claims_no_synthetic_ones(tmp_path: Path) -> None:
    write_card(tmp_path, run_record(synthetic=False), CHOSEN, evaluation(), "Not differentially private.")
    assert "SYNTHETIC" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_result_table_has_a_line_for_every_gene() -> None:
    lines = results_text(evaluation()).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| IDH", "| ATRX", "| 1p/19q"]
    assert all(line.count("|") == 6 for line in lines)


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (Measure(value=0.856, low=0.779, high=0.931), "0.86 [0.78-0.93]"),
        (Measure(value=0.856, low=None, high=None), "0.86"),
        (Measure(value=None, reason="one class only"), "-"),
    ],
)
def test_measures_are_told_with_their_interval_where_there_is_one(measure: Measure, text: str) -> None:
    assert measure_text(measure) == text
    assert measure_text(measure, interval=False) == text.split(" ")[0]
