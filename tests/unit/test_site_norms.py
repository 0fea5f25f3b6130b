"""What a site keeps of its own normalisation layers, and which of it a round starts from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedglioma.config.run import RunConfig
from fedglioma.errors import FedGliomaError
from fedglioma.training.learner import EQUAL_COUNTS, build_learner
from fedglioma.weights import keep_norms_local, local_state, pack, shared_state, unpack
from fedglioma_client.norms import OwnNorms, norms_of


class Small(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, channels, 1)
        self.batch = nn.BatchNorm3d(channels)
        self.group = nn.GroupNorm(2, channels)
        self.layer = nn.LayerNorm(3)


def model_of(value: float, channels: int = 4) -> nn.Module:
    model = Small(channels)
    keep_norms_local(model)
    with torch.no_grad():
        for tensor in local_state(model).values():
            tensor.fill_(int(value) if tensor.dtype == torch.int64 else value)
    return model


def value_in(model: nn.Module) -> float:
    (found,) = {float(tensor.flatten()[0]) for tensor in local_state(model).values()}
    return found


def norms(folder: Path, run: str = "a") -> OwnNorms:
    return OwnNorms(folder, run, "layout")


def test_batch_and_group_norms_stay_and_layer_norms_travel() -> None:
    model = model_of(1)
    assert set(local_state(model)) == {
        "model.batch.weight",
        "model.batch.bias",
        "model.batch.running_mean",
        "model.batch.running_var",
        "model.batch.num_batches_tracked",
        "model.group.weight",
        "model.group.bias",
    }
    assert set(shared_state(model, nn.Module())) == {
        "model.conv.weight",
        "model.conv.bias",
        "model.layer.weight",
        "model.layer.bias",
    }


def test_without_fedbn_everything_travels() -> None:
    learner = build_learner(RunConfig(width=1, crop=16, preset="reference"), EQUAL_COUNTS)
    assert local_state(learner.model) == {}
    shared, whole = (set(shared_state(learner.model, learner.loss, whole=w)) for w in (False, True))
    assert shared == whole


def test_released_weights_hold_the_norms_and_come_back_to_the_bit() -> None:
    one, other = model_of(3), model_of(5)
    loss = nn.Module()
    unpack(pack(one, loss), other, loss)
    assert value_in(other) == 5
    unpack(pack(one, loss, whole=True), other, loss, whole=True)
    floats = {n: t for n, t in local_state(other).items() if t.is_floating_point()}
    assert {float(tensor.flatten()[0]) for tensor in floats.values()} == {3.0}


def test_round_starts_from_what_the_last_one_left(tmp_path: Path) -> None:
    own = norms(tmp_path)
    first = model_of(7)
    own.restore(first, 1)
    assert value_in(first) == 7  # nothing was kept yet
    own.save(norms_of(model_of(1)), 1)
    own.save(norms_of(model_of(4)), 4)
    for number, expected in ((2, 1), (4, 1), (5, 4), (9, 4)):
        model = model_of(0)
        own.restore(model, number)
        assert value_in(model) == expected


def test_round_that_is_asked_for_again_starts_where_it_started(tmp_path: Path) -> None:
    own = norms(tmp_path)
    for number in (1, 2, 3):
        own.save(norms_of(model_of(number)), number)
    again = model_of(0)
    own.restore(again, 3)
    assert value_in(again) == 2
    own.save(norms_of(model_of(33)), 3)
    last = model_of(0)
    own.restore(last, 4)
    assert value_in(last) == 33


def test_only_a_round_and_its_start_are_kept(tmp_path: Path) -> None:
    own = norms(tmp_path)
    for number in range(1, 6):
        own.save(norms_of(model_of(number)), number)
    assert sorted(path.name for path in own.folder.iterdir()) == [
        "round-0004.safetensors",
        "round-0005.safetensors",
    ]


def test_runs_do_not_see_each_others_norms(tmp_path: Path) -> None:
    norms(tmp_path).save(norms_of(model_of(1)), 1)
    model = model_of(0)
    norms(tmp_path, "b").restore(model, 2)
    assert value_in(model) == 0


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "x" * 1000])
def test_name_of_a_run_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    norms(tmp_path / "state", name).save(norms_of(model_of(1)), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_norms_of_another_network_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    own = norms(tmp_path)
    own.save(norms_of(model_of(1, channels=8)), 1)
    with pytest.raises(FedGliomaError, match="another network"):
        own.restore(model_of(0), 2)
    (own.folder / "round-0001.safetensors").write_bytes(b"half")
    with pytest.raises(FedGliomaError, match="not a readable safetensors file"):
        own.restore(model_of(0), 2)
