"""A site's share of a round: which settings reach the loop, and that a round repeats itself to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedglioma.case import UNKNOWN, Task
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.training import local
from fedglioma.training.fit import FitSummary
from fedglioma.training.local import LocalWork, train_locally, training_set
from fedglioma.weights import GROUPS, FlatArrays, group_of, pack, shared_state
from tests.parallel_fixture import begun, made_up_cases, work_of

CPU = torch.device("cpu")
CROPS = {"mdpnet": 16, "sgpnet": 32}


def settings_of(model: str = "mdpnet", **changed: Any) -> RunConfig:
    return RunConfig.model_validate({"model": model, "width": 1, "crop": CROPS[model], "lr": 1e-2, **changed})


def trained(folder: Path, settings: RunConfig, *, mu: float = 0.0) -> tuple[FlatArrays, FitSummary]:
    """Return a site's weights after its second round."""
    masks = Task.SEGMENTATION in settings.tasks
    cases = made_up_cases(folder, 3, settings.crop + 2, masks=masks)
    learner = begun(settings)
    summary = train_locally(learner, work_of(cases, settings, mu), CPU)
    return pack(learner.model, learner.loss), summary


def assert_same(one: FlatArrays, other: FlatArrays) -> None:
    for group in GROUPS:
        assert one[group].tobytes() == other[group].tobytes(), group


@pytest.mark.parametrize(
    "changed",
    [
        {"deterministic": True},
        {"checkpointing": True},
        {"model": "sgpnet", "checkpointing": True},
        {"model": "sgpnet", "channels_last": False},
    ],
)
def test_options_of_speed_and_memory_train_the_same_weights(changed: dict[str, Any], tmp_path: Path) -> None:
    plain = {name: value for name, value in changed.items() if name == "model"}
    expected, _ = trained(tmp_path, settings_of(**plain))
    found, _ = trained(tmp_path, settings_of(**changed))
    for group in GROUPS:  # SGPNet's convolutions may add up in another order
        np.testing.assert_allclose(found[group], expected[group], rtol=0, atol=2e-3)
        if "channels_last" not in changed:
            assert found[group].tobytes() == expected[group].tobytes()


def test_round_twice_in_one_process_gives_the_same_bits(tmp_path: Path) -> None:
    settings = settings_of(deterministic=True, channels_last=True, checkpointing=True)
    assert_same(trained(tmp_path, settings)[0], trained(tmp_path, settings)[0])
    assert not torch.are_deterministic_algorithms_enabled()


def test_accumulated_batches_take_fewer_steps(tmp_path: Path) -> None:
    steps = {k: trained(tmp_path, settings_of(batch_size=1, accumulate=k))[1].steps for k in (1, 2, 3, 9)}
    assert steps == {1: 3, 2: 2, 3: 1, 9: 1}


def test_accumulated_batches_train_what_one_batch_of_all_trains(tmp_path: Path) -> None:
    # Without dropout, which is drawn batch by batch.
    found = []
    for changed in ({"batch_size": 4}, {"batch_size": 1, "accumulate": 4}):
        settings = settings_of(local_epochs=2, lr=1e-4, **changed)
        learner = begun(settings)
        for module in learner.model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout3d):
                module.p = 0.0
        cases = made_up_cases(tmp_path, 4, 18)
        train_locally(learner, work_of(cases, settings, 0.1), CPU)
        found.append(pack(learner.model, learner.loss))
    for group in GROUPS:
        apart = np.abs(found[0][group] - found[1][group])
        # Adam turns rounding errors, where a gradient is 0, into whole steps of 1e-4: a bias before a norm.
        assert (apart > 1e-6).mean() < 0.02 if apart.size else True
        assert apart.max(initial=0) < 5e-4


@pytest.mark.parametrize(("model", "scales"), [("mdpnet", {1.0}), ("sgpnet", {0.5, 1.0})])
def test_rates_follow_the_schedule_over_all_rounds(
    model: str, scales: set[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(model, rounds=4, local_epochs=3, schedule="cosine", lr=1.0)
    seen: list[dict[float, float]] = []

    def look(_objective: nn.Module, _tasks: Any, optimizer: Any, *_: Any, **_kw: Any) -> None:
        seen.append({group["scale"]: group["lr"] for group in optimizer.param_groups})

    monkeypatch.setattr(local, "fit_epoch", look)
    train_locally(begun(settings), LocalWork(settings, made_up_cases(tmp_path, 1), "north", 3), CPU)
    expected = [(1 + np.cos(np.pi * epoch / 12)) / 2 for epoch in (6, 7, 8)]
    for rates, rate in zip(seen, expected, strict=True):
        assert set(rates) == scales
        assert all(lr == pytest.approx(rate * scale) for scale, lr in rates.items())


def test_pull_of_fedprox_shortens_the_way(tmp_path: Path) -> None:
    settings = settings_of(strategy="fedprox", local_epochs=3)
    start = pack(begun(settings).model, begun(settings).loss)
    ways = []
    for mu in (0.0, 100.0):
        arrays, _ = trained(tmp_path, settings, mu=mu)
        ways.append(sum(float(np.square(arrays[group] - start[group]).sum()) for group in GROUPS))
    assert ways[1] < 0.5 * ways[0]


@pytest.mark.parametrize(("targets", "frozen"), [("idh", "segmentation"), ("seg", "idh")])
def test_block_that_is_not_asked_does_not_move(targets: str, frozen: str, tmp_path: Path) -> None:
    settings = settings_of("sgpnet", targets=targets, weight_decay=0.1)
    learner = begun(settings)
    before = {name: tensor.clone() for name, tensor in shared_state(learner.model, learner.loss).items()}
    cases = made_up_cases(tmp_path, 3, 34, masks=True)
    train_locally(learner, work_of(cases, settings, 0.1), CPU)
    moved = {
        group_of(name)
        for name, tensor in shared_state(learner.model, learner.loss).items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"trunk", targets.replace("seg", "segmentation")}
    assert frozen not in moved


@pytest.mark.parametrize(
    ("changed", "masks", "known"),
    [
        ({"model": "mdpnet"}, None, None),
        ({"model": "sgpnet", "targets": "idh"}, None, None),
        ({"model": "sgpnet", "targets": "both"}, True, [True, False, True]),
        ({"model": "sgpnet", "targets": "random"}, True, [True, True, True]),
    ],
)
def test_masks_are_read_where_they_are_learned(
    changed: dict[str, Any], masks: bool | None, known: list[bool] | None, tmp_path: Path
) -> None:
    settings = settings_of(**changed)
    dataset = training_set(work_of(made_up_cases(tmp_path, 3, 34, masks=True), settings))
    samples = [dataset.training_sample(index, 0) for index in range(3)]
    if masks is None:
        assert all(sample.mask is None for sample in samples)
        return
    found = [sample.mask for sample in samples]
    assert [bool((mask != UNKNOWN).all()) for mask in found if mask is not None] == known


def test_augmentation_is_what_the_settings_say(tmp_path: Path) -> None:
    cases = made_up_cases(tmp_path, 1)

    def chosen(**changed: Any) -> tuple[float, ...]:
        augment = training_set(work_of(cases, settings_of(**changed))).augment
        assert augment is not None
        return augment.flip, augment.one_flip_p, augment.scale, augment.shift, augment.shift_voxels

    assert chosen() == (0.5, 0.0, 0.0, 0.0, 0)
    assert chosen(flips=False, intensity=True) == (0.0, 0.0, 0.1, 0.1, 0)
    assert chosen(model="sgpnet", crop=144) == (0.0, 0.5, 0.0, 0.0, 10)
    assert chosen(model="sgpnet", crop=32) == (0.0, 0.5, 0.0, 0.0, 2)
    assert chosen(model="sgpnet", flips=False, shift_voxels=0) == (0.0, 0.0, 0.0, 0.0, 0)


def test_what_the_device_cannot_do_is_refused_before_training(tmp_path: Path) -> None:
    cases = made_up_cases(tmp_path, 1)
    for changed, said in (({"precision": "float16"}, "^precision: float16"), ({}, "^checkpointing: ")):
        settings = settings_of(checkpointing=True, **changed)
        learner = begun(settings)
        learner.model.__class__ = type("Plain", (type(learner.model),), {"checkpointed": ()})
        with pytest.raises(ConfigError, match=said):
            train_locally(learner, work_of(cases, settings), CPU)
