"""FedAvgM, FedAdam and FedYogi: to the bit what Flower's own strategies make of the same means."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedglioma.config.run import RunConfig
from fedglioma.errors import ProtocolError
from fedglioma.weights import GROUPS, digest_of
from fedglioma_server.aggregation import Update, combine, weighted_mean
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.inline import InlineGrid
from fedglioma_server.strategies import combiner_of
from tests.round_fixture import LAYOUT, moved, numbers, weights

OPTIMIZERS = {
    "fedavgm": {"server_lr": 0.7, "server_momentum": 0.9},
    "fedadam": {"server_lr": 0.01, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "fedyogi": {"server_lr": 0.02, "beta_1": 0.7, "beta_2": 0.9, "tau": 1e-3},
}


def flowers(name: str, settings: RunConfig) -> flower.FedAvg:
    if name == "fedavgm":
        return flower.FedAvgM(
            server_learning_rate=settings.server_learning_rate, server_momentum=settings.server_momentum
        )
    kind = flower.FedAdam if name == "fedadam" else flower.FedYogi
    return kind(
        eta=settings.server_learning_rate,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        tau=settings.tau,
    )


def record_of(arrays) -> ArrayRecord:
    return ArrayRecord({group: Array(np.asarray(array)) for group, array in arrays.items()})


def reply_of(mean) -> Message:
    question = Message(RecordDict(), dst_node_id=1, message_type="train", group_id="1")
    metrics = MetricRecord({"num-examples": 1.0})
    return Message(RecordDict({"arrays": record_of(mean), "metrics": metrics}), reply_to=question)


def updates(sent, number: int, **genes: float) -> list[Update]:
    return [
        Update(name, weights(2.0 + n, **genes), "float32", moved(sent, 10 * number + n, 0.05))
        for n, name in enumerate(("henan", "ningxia"))
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_five_rounds_are_flowers_to_the_bit(name):
    settings = RunConfig(strategy=name, **OPTIMIZERS[name])
    combiner, theirs = combiner_of(settings), flowers(name, settings)
    InlineGrid(ClientApp(), [{}], {})
    ours = numbers(0)
    for number in range(1, 6):
        sent = ours
        found = updates(sent, number)
        mean = combine(found, sent, weighted_mean)
        ours = combiner.combine(found, sent).arrays
        theirs.current_arrays = record_of(sent) if name == "fedavgm" else dict(sent)
        record, _ = theirs.aggregate_train(number, [reply_of(mean)])
        for group in GROUPS:
            expected = record[group].numpy().astype(np.float32)
            assert ours[group].tobytes() == expected.tobytes(), (number, group)


@pytest.mark.parametrize(("name", "rate"), [("fedavgm", 1.0), ("fedadam", 0.1), ("fedyogi", 0.01)])
def test_defaults_are_flowers(name, rate):
    settings = RunConfig(strategy=name)
    theirs = flowers(name, settings)
    stock = type(theirs)()
    assert settings.server_learning_rate == rate
    if name == "fedavgm":
        assert stock.server_learning_rate == rate
    else:
        kept = ("eta", "beta_1", "beta_2", "tau")
        assert {n: getattr(stock, n) for n in kept} == {n: getattr(theirs, n) for n in kept}


def test_fedavgm_without_momentum_is_the_mean():
    sent = numbers(0)
    found = updates(sent, 1)
    plain = combiner_of(RunConfig()).combine(found, sent).arrays
    still = combiner_of(RunConfig(strategy="fedavgm", server_momentum=0.0)).combine(found, sent).arrays
    assert digest_of(plain) == digest_of(still)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_group_without_weight_keeps_its_moments_and_its_clock(name):
    """It goes on as if the round had not been."""
    sent = numbers(0)
    paused, straight = (combiner_of(RunConfig(strategy=name, **OPTIMIZERS[name])) for _ in range(2))
    start = paused.combine(updates(sent, 1), sent).arrays
    straight.combine(updates(sent, 1), sent)
    between = paused.combine(updates(start, 2, atrx=0.0), start).arrays
    assert between["atrx"].tobytes() == start["atrx"].tobytes()
    assert between["idh"].tobytes() != start["idh"].tobytes()
    again = [combiner.combine(updates(start, 3), start).arrays["atrx"] for combiner in (paused, straight)]
    assert again[0].tobytes() == again[1].tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_survive_a_restart_to_the_bit(tmp_path, name):
    settings = RunConfig(strategy=name, **OPTIMIZERS[name])
    sent = numbers(0)
    one, other = combiner_of(settings), combiner_of(settings)
    first = one.combine(updates(sent, 1), sent).arrays
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    digest = checkpoints.save_state(1, one.state())
    other.restore(checkpoints.load_state(1))
    assert other.state().digest() == digest
    found = [combiner.combine(updates(first, 2), first).arrays for combiner in (one, other)]
    assert digest_of(found[0]) == digest_of(found[1])
    assert one.state().digest() == other.state().digest()


def test_state_before_the_first_round_is_empty_and_can_be_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    checkpoints.save_state(0, combiner_of(RunConfig(strategy="fedadam")).state())
    state = checkpoints.load_state(0)
    assert (state.tensors, state.counts) == ({}, {})


@pytest.mark.parametrize("change", ["bits", "round", "network", "size"])
def test_damaged_or_foreign_moments_are_refused(tmp_path, change):
    combiner = combiner_of(RunConfig(strategy="fedadam"))
    sent = numbers(0)
    combiner.combine(updates(sent, 1), sent)
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    state = combiner.state()
    if change == "size":
        state.tensors["m.idh"] = state.tensors["m.idh"][:-1]
    checkpoints.save_state(1, state)
    path = checkpoints.state_path(1)
    if change == "bits":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif change == "round":
        path.rename(checkpoints.state_path(2))
    elif change == "network":
        checkpoints = Checkpoints(tmp_path, type(LAYOUT)(LAYOUT.shapes[1:]))
    with pytest.raises(ProtocolError, match=r"damaged|of another network or round|another size"):
        checkpoints.load_state(2 if change == "round" else 1)


def test_moments_of_another_strategy_and_missing_ones_are_refused():
    sent = numbers(0)
    adam, momentum = combiner_of(RunConfig(strategy="fedadam")), combiner_of(RunConfig(strategy="fedavgm"))
    adam.combine(updates(sent, 1), sent)
    with pytest.raises(ProtocolError, match="of another one"):
        momentum.restore(adam.state())
    with pytest.raises(ProtocolError, match="were not saved"):
        momentum.restore(None)
    with pytest.raises(ProtocolError, match="remembers nothing"):
        combiner_of(RunConfig()).restore(adam.state())


def test_checkpoints_that_are_pruned_take_their_moments_with_them(tmp_path):
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    state = combiner_of(RunConfig(strategy="fedadam")).state()
    for number in range(3):
        checkpoints.save_state(number, state)
        checkpoints.save(number, numbers(number))
    checkpoints.save_state(3, state)  # the weights were never written
    assert checkpoints.rounds() == [0, 1, 2]
    checkpoints.prune({2})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-0002.safetensors",
        "round-0002.state.safetensors",
    ]
