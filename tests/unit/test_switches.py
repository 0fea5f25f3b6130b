"""Switches of the papers' networks and losses as run settings: what each of them changes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedglioma.case import GENES, Gene
from fedglioma.config.run import RunConfig
from fedglioma.data.cache import content_key
from fedglioma.data.frame import stretched
from fedglioma.data.normalize import zscore_in_volume
from fedglioma.data.prepare import PrepareSettings
from fedglioma.losses.multitask import GenotypeLoss
from fedglioma.losses.segmentation import dynamic_balance
from fedglioma.losses.tasks import Targets
from fedglioma.models.mdpnet import MDPNet
from fedglioma.training.learner import EQUAL_COUNTS, build_learner, parameter_count
from tests.federation_fixture import TINY, make_plan, run

PAPER = "idh=109/57,atrx=133/33,codel_1p19q=153/13"
"""The training cases of MDPNet's paper."""


def config(**given: Any) -> RunConfig:
    return RunConfig.from_mapping({"crop": 32} | given, "test")


def mdpnet(**given: Any) -> MDPNet:
    model = build_learner(config(width=1, **given), EQUAL_COUNTS).model
    assert isinstance(model, MDPNet)
    return model


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        ({"norm": "batch"}, 66_885_206),
        ({"preset": "reference"}, 66_885_206),
        ({"preset": "reference", "norm": "group"}, 66_885_202),
        ({"guide_mode": "max_prob", "guide_detach": True, "head_act": "none"}, 66_885_202),
        ({"model": "sgpnet"}, 2_442_296),
        ({"model": "sgpnet", "head_1x1": "none"}, 2_442_296 - 128),
    ],
)
def test_network_has_the_parameters_of_the_specification(given: dict[str, Any], parameters: int) -> None:
    assert parameter_count(RunConfig.from_mapping(given, "test")) == parameters


@pytest.mark.parametrize(
    ("name", "by_preset", "other"),
    [
        ("guide_mode", {"recommended": "p_mut", "reference": "max_prob"}, ("p_mut", "max_prob")),
        ("head_act", {"recommended": "leaky_relu", "reference": "none"}, ("leaky_relu", "none")),
        ("norm", {"recommended": "group", "reference": "batch"}, ("group", "batch")),
    ],
)
def test_switch_stands_above_the_preset(name: str, by_preset: dict[str, str], other: tuple[str, ...]) -> None:
    for preset, expected in by_preset.items():
        assert getattr(mdpnet(preset=preset).config, name) == expected
        for value in other:
            assert getattr(mdpnet(preset=preset, **{name: value}).config, name) == value


def test_detached_guidance_sends_no_gradient_to_the_genes_that_guide() -> None:
    for detach in (False, True):
        model = mdpnet(guide_detach=detach)
        model(torch.randn(2, 4, 32, 32, 32))["codel_1p19q"].sum().backward()
        told = model.get_submodule("heads.idh").fc3.weight.grad
        assert (told is None) == detach


def lmf(z: Tensor, label: int, counts: tuple[float, float], mode: str) -> float:
    """LDAM plus focal of one case by their definitions, not weighed by class."""
    n = np.array(counts)
    margins = 0.5 * (n.min() / n) ** 0.25
    p = np.exp(z) / np.exp(z).sum()
    u = {"prob": p, "double_softmax": p, "logit": np.array(z)}[mode].copy()
    q = np.exp(u) / np.exp(u).sum() if mode == "double_softmax" else p
    u[label] -= margins[label]
    ldam = math.log(np.exp(30 * u).sum()) - 30 * u[label]
    return float(ldam - (1 - q[label]) ** 2 * math.log(q[label]))


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "prob"),
        ({"preset": "reference"}, "double_softmax"),
        ({"preset": "reference", "ldam_input": "prob"}, "prob"),
        ({"ldam_input": "double_softmax"}, "double_softmax"),
        ({"ldam_input": "logit"}, "logit"),
    ],
)
def test_margins_are_applied_to_what_was_asked(given: dict[str, Any], mode: str) -> None:
    settings = config(width=1, **given)
    loss = build_learner(settings, {**EQUAL_COUNTS, Gene.ATRX: (133.0, 33.0)}).loss
    for z in ((2.0, -1.0), (-1.0, 2.0), (0.0, 0.0)):
        outputs = {gene.value: torch.tensor([z, z]) for gene in GENES}
        labels = torch.tensor([[-1, 0, -1], [-1, 1, -1]])
        found = loss.per_task(outputs, Targets(labels))[:, 1]
        weights = 166 / (2 * np.array([133, 33]))
        expected = [weights[label] * lmf(np.array(z), label, (133, 33), mode) for label in (0, 1)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "on_loss", "on_s", "best"),
    [("reference", 0.5, 1.0, lambda loss: loss / 2), ("kendall", 1.0, 0.5, lambda loss: 2 * loss)],
)
def test_learned_weights_have_the_form_that_was_asked(
    form: str, on_loss: float, on_s: float, best: Any
) -> None:
    loss = build_learner(config(width=1, weighting_form=form), EQUAL_COUNTS).loss
    assert isinstance(loss, GenotypeLoss)
    outputs = {gene.value: torch.tensor([[0.3, -0.2]]) for gene in GENES}
    targets = Targets(torch.tensor([[0, 1, -1]]))
    each = loss.per_task(outputs, targets)[0].detach()
    starts = {Gene.IDH: 5.0, Gene.ATRX: 6.0}
    expected = sum(
        on_loss * math.exp(-s) * each[GENES.index(gene)].item() + on_s * s for gene, s in starts.items()
    )
    assert loss.per_sample(outputs, targets).item() == pytest.approx(expected, rel=1e-5)
    # Where the derivative vanishes: s = ln(L / 2), and by Kendall ln(2 L).
    with torch.no_grad():
        loss.weights["idh"].log_variance.fill_(math.log(best(each[0].item())))
    loss.per_sample(outputs, targets).sum().backward()
    assert loss.weights["idh"].log_variance.grad.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("first", "second", "r"), [(0.7, 0.9, 0.5625), (0.05, 0.2, 0.8)])
def test_balance_that_is_a_number_has_the_gradients_one_and_r(first: float, second: float, r: float) -> None:
    pair = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (first, second)]
    value = dynamic_balance(*pair, detach=True)
    assert value.item() == pytest.approx(first + r * second)
    slopes = torch.autograd.grad(value.sum(), pair)
    assert [slope.item() for slope in slopes] == pytest.approx([1, r])
    for detach in (False, True):
        loss = build_learner(config(model="sgpnet", width=1, detach_k=detach), EQUAL_COUNTS).loss
        assert loss.detach_k == detach


def test_counts_that_are_given_make_the_margins_and_weights_of_the_paper() -> None:
    settings = config(width=1, counts=PAPER)
    assert settings.given_counts is not None
    loss = build_learner(settings, settings.given_counts).loss
    expected = {
        "idh": ((0.4252, 0.5), (0.7615, 1.4561)),
        "atrx": ((0.3529, 0.5), (0.6241, 2.5152)),
        "codel_1p19q": ((0.2699, 0.5), (0.5425, 6.3846)),
    }
    for name, (margins, weights) in expected.items():
        torch.testing.assert_close(loss.lmf[name].margins, torch.tensor(margins), atol=5e-5, rtol=0)
        torch.testing.assert_close(loss.lmf[name].weights, torch.tensor(weights), atol=5e-5, rtol=0)


def test_run_trains_on_the_counts_that_are_given_and_records_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)
    settings = TINY.model_copy(update={"rounds": 1, "counts": PAPER})
    heard: list[str] = []
    real = build_learner

    def listening(asked: RunConfig, counts: Any) -> Any:
        heard.append(str(counts))
        return real(asked, counts)

    monkeypatch.setattr("fedglioma_client.round.build_learner", listening)
    record = run(make_plan(tmp_path, settings)).read()
    assert record.class_counts == settings.given_counts
    assert set(heard) == {str(settings.given_counts)}


@pytest.mark.parametrize(
    "counts",
    ["100,50", "idh=1/2", f"{PAPER},idh=1/2", PAPER.replace("/57", "/-1"), PAPER.replace("109/57", "0/0")],
)
def test_counts_that_cannot_be_read_are_refused_with_an_example(counts: str) -> None:
    with pytest.raises(Exception, match=r"^test: counts: .* is not allowed \(global, local, or .*idh=109/57"):
        config(counts=counts)


def test_z_score_of_the_whole_volume_is_that_but_for_one_number_by_which_outside_is_0() -> None:
    rng = np.random.default_rng(0)
    brain = rng.random((8, 9, 7)) < 0.4
    array = np.where(brain, rng.uniform(200, 900, brain.shape), 0).astype(np.float32)
    plain = (array - array.mean(dtype=float)) / array.std(dtype=float)
    found = zscore_in_volume(array, brain)
    np.testing.assert_allclose(found, plain - plain[~brain][0], atol=1e-5)
    assert not found[~brain].any()
    # A factor, as of a scanner, changes nothing; what was not acquired counts as outside.
    np.testing.assert_allclose(zscore_in_volume(3 * array, brain), found, rtol=1e-5)
    gone = np.where(array > 800, np.nan, array).astype(np.float32)
    assert not zscore_in_volume(gone, brain)[array > 800].any()


def test_stretched_cube_has_the_deviation_of_the_whole_volume() -> None:
    image = np.zeros((1, 10, 12, 8), np.float16)
    image[0, 2:8, 3:9, 1:7] = np.random.default_rng(1).uniform(1, 3, (6, 6, 6))
    cube, _ = stretched(image, np.eye(4), 16, of_volume=True)
    assert cube[0].astype(float).std() == pytest.approx(1, abs=1e-3)
    assert (cube[0][cube[0] != 0] > 0).all()


def test_choice_of_the_z_score_leaves_what_was_prepared_before_under_its_key() -> None:
    brain = PrepareSettings.of(config(model="sgpnet")).model_dump(mode="json")
    volume = PrepareSettings.of(config(model="sgpnet", zscore="volume")).model_dump(mode="json")
    assert "zscore" not in brain
    assert volume == brain | {"zscore": "volume"}
    assert content_key({}, brain) != content_key({}, volume)
    assert PrepareSettings.model_validate(volume).zscore == "volume"


IDLE = [
    ({"guide": "none", "guide_mode": "max_prob"}, "guide_mode: without effect while guide is none"),
    ({"guide": "none", "guide_detach": True}, "guide_detach: without effect while guide is none"),
    (
        {"model": "sgpnet", "targets": "idh", "detach_k": True},
        "detach_k: without effect while targets is idh",
    ),
    ({"model": "sgpnet", "targets": "seg", "head_1x1": "none"}, "head_1x1: without effect"),
    ({"model": "sgpnet", "norm": "batch"}, "norm: without effect while model is sgpnet"),
    ({"model": "unet", "ldam_input": "logit"}, "ldam_input: without effect while model is unet"),
    ({"weighting": "fixed", "weighting_form": "kendall"}, "or set weighting to uncertainty"),
    ({"zscore": "volume"}, "zscore: without effect while preprocessing is standard"),
    ({"model": "resnet50", "head_act": "none"}, "head_act: a switch of mdpnet only"),
    ({"detach_k": True}, "detach_k: a switch of sgpnet only"),
    ({"norm": "batch", "privacy": "site", "target_epsilon": 3}, "norm: batch normalises over the batch"),
]


@pytest.mark.parametrize(("given", "words"), IDLE)
def test_switch_of_what_is_not_there_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match="test: ") as raised:
        config(**given)
    assert words in str(raised.value)
