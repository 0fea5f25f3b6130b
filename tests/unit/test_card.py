"""The model card: true for every network, and silent about none of a run's circumstances."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedglioma.case import GENES
from fedglioma.config.run import MODEL_NAMES, RunConfig
from fedglioma.metrics.bootstrap import Measure
from fedglioma_server.card import card_text, limits, write_card
from fedglioma_server.card_tables import measure_text, never_seen, results_text, sites_text
from fedglioma_server.card_words import FORMS
from fedglioma_server.network_words import TITLES
from fedglioma_server.records import RoundRecord
from tests.release_fixture import CHOSEN, SMALL, evaluation_of, run_record, site_data, small_settings


def card_of(settings: RunConfig, rounds_done: int = 3, chosen: RoundRecord = CHOSEN, **record: Any) -> str:
    told = run_record(settings, **record)
    return card_text(told, chosen, evaluation_of(settings), "Not differentially private.", rounds_done)


def tables_in(card: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)]


def test_card_says_what_the_model_is_and_what_it_is_not(tmp_path: Path) -> None:
    settings = small_settings()
    write_card(tmp_path, run_record(settings), CHOSEN, evaluation_of(settings), "Not differentially private.")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for words in (
        "Research use only. Not a medical device.",
        "Trained on SYNTHETIC patients",
        "2 sites (henan, ningxia)",
        "round 2 had the lowest held-out loss",
        "in this order: flair, t1ce, t1, t2",
        "reads IDH, ATRX and 1p/19q status",
        "5.5 mm grid",
        "Not differentially private.",
        "Too few patients to judge the model",
        "majority class",
        "WHO CNS5 class",
        "TRIPOD+AI",
    ):
        assert words in card, words
    assert "{" not in card


def test_card_of_real_patients_claims_no_synthetic_ones() -> None:
    card = card_of(small_settings(), synthetic=False)
    assert "SYNTHETIC" not in card
    assert "ade-up" not in card


@pytest.mark.parametrize("model", SMALL)
def test_front_matter_is_yaml_with_the_tags_that_hubs_look_for(model: str) -> None:
    _, front, _ = card_of(small_settings(model)).split("---\n", 2)
    found = yaml.safe_load(front)
    assert {"monai", "medical"} <= set(found["tags"])
    assert found["pipeline_tag"] == ("image-segmentation" if model == "unet" else "image-classification")


@pytest.mark.parametrize("model", SMALL)
def test_every_table_has_as_many_cells_in_each_row(model: str) -> None:
    tables = tables_in(card_of(small_settings(model)))
    assert len(tables) > 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1, lines


def test_card_tells_of_each_network_what_it_reads_and_no_more() -> None:
    cards = {model: card_of(small_settings(model)) for model in SMALL}
    assert "MDPNet (recommended preset, width 1, path2 t2+flair" in cards["mdpnet"]
    assert "SGPNet (width 1)" in cards["sgpnet"]
    assert "reads IDH status and outlines the whole tumour" in cards["sgpnet"]
    assert "It says nothing of ATRX and 1p/19q." in cards["sgpnet"]
    assert "brain, which is stretched to 32 voxels per axis" in cards["sgpnet"]
    assert "windows of 16 voxels per axis" in cards["unet"]
    assert "mean Dice" in cards["unet"]
    assert " AUC " not in cards["unet"]
    assert "not calibrated" not in cards["unet"]
    assert "mean Dice" not in cards["resnet50"]
    assert "centre crop of 16 voxels" in cards["resnet50"]


def test_every_network_has_a_title_and_a_form() -> None:
    assert set(TITLES) == set(FORMS) == set(MODEL_NAMES)


@pytest.mark.parametrize(
    ("settings", "record", "done", "words"),
    [
        ({"ema": 0.9}, {}, 3, "running mean over the rounds (decay 0.9)"),
        ({"early_stopping": 1}, {}, 2, "3 rounds were planned, and none of the last 1 had a lower"),
        ({}, {}, 2, "Of 3 planned rounds 2 were done"),
        ({}, {"initial_digest": "ab" * 32}, 3, "started from another released model (weights abababababab)"),
        (
            {},
            {"division": "fold 2", "division_digest": "cd" * 32},
            3,
            "by a file: fold 2 (digest cdcdcdcdcdcd)",
        ),
        ({"strategy": "fedbn"}, {}, 3, "Normalisation layers stayed at the sites"),
        ({"average_flips": True}, {}, 3, "averaged over the eight mirror images"),
        ({"inference": "sliding"}, {}, 3, "windows of 16 voxels"),
        ({"preprocessing": "mdpnet"}, {}, 3, "cut to 240 x 240 x 155 mm about the brain"),
        ({"preprocessing": "fusion"}, {}, 3, "laid over T2"),
    ],
)
def test_card_tells_the_circumstances_of_a_run(
    settings: dict[str, Any], record: dict[str, Any], done: int, words: str
) -> None:
    assert words in card_of(small_settings(**settings), done, **record)
    assert words not in card_of(small_settings())


def test_outline_learned_on_noise_is_disowned() -> None:
    card = card_of(small_settings("sgpnet", targets="random"))
    assert "trained on noise and must not be looked at" in card


def test_choice_without_a_loss_is_told_as_it_was() -> None:
    blind = CHOSEN.model_copy(update={"heldout": CHOSEN.heldout.model_copy(update={"loss": None})})
    card = card_of(small_settings(), chosen=blind)
    assert "the last, round 2, is released" in card
    assert "lowest held-out loss" not in card


def test_small_cells_stay_suppressed() -> None:
    text = sites_text(run_record(small_settings()))
    assert "| henan | 10 | 5 / &lt;5 / 0 |" in text


def test_sequences_that_were_always_there_are_named() -> None:
    assert never_seen(run_record(small_settings())) == ["flair"]
    everywhere = {"ningxia": site_data(modalities={"flair+t1ce+t1+t2": 10})}
    assert never_seen(run_record(small_settings(), sites=everywhere)) == ["flair", "t1ce", "t1", "t2"]
    varied = {"ningxia": site_data(modalities={"flair": None, "t2": 5})}
    assert never_seen(run_record(small_settings(), sites=varied)) == []


def test_held_out_patients_of_trained_and_of_other_hospitals_are_told_apart() -> None:
    record = run_record(small_settings())
    of_trained = evaluation_of(record.settings)
    of_another = evaluation_of(record.settings, site="zhengzhou")
    assert any("hospital that trained, too" in line for line in limits(record, of_trained))
    assert not any("hospital that trained, too" in line for line in limits(record, of_another))


def test_names_from_outside_cannot_break_a_table() -> None:
    card = card_of(small_settings(), cohorts=["a | b\n# c <script>"])
    assert "a / b?# c &lt;script>" in card
    assert all(len({line.count("|") for line in lines}) == 1 for lines in tables_in(card))


def test_result_table_has_a_line_for_every_gene() -> None:
    lines = results_text(evaluation_of(small_settings())).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| IDH", "| ATRX", "| 1p/19q"]
    assert len(lines) == 2 + len(GENES)


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
