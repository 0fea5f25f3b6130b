"""Median, trimmed mean and Multi-Krum against Flower's own, and against what they promise."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.config.run import RunConfig
from fedglioma.errors import AggregationError
from fedglioma.weights import GROUPS
from fedglioma_server.aggregation import Update
from fedglioma_server.inline import InlineGrid
from fedglioma_server.robust import krum_choice, squared_distances
from fedglioma_server.strategies import combiner_of
from tests.round_fixture import moved, numbers, weights

SENT = numbers(0)


def updates(locals_, by_group=None) -> list[Update]:
    return [
        Update(f"site-{n}", by_group[n] if by_group else weights(), "float32", local)
        for n, local in enumerate(locals_)
    ]


def contents(locals_, cases=None) -> list[RecordDict]:
    return [
        RecordDict(
            {
                "arrays": ArrayRecord({group: Array(local[group]) for group in GROUPS}),
                "metrics": MetricRecord({"num-examples": float(cases[n] if cases else 1)}),
            }
        )
        for n, local in enumerate(locals_)
    ]


def of_flower(strategy, locals_, cases=None) -> dict[str, np.ndarray]:
    """Return what Flower's strategy makes of the same updates."""
    InlineGrid(ClientApp(), [{}], {})
    replies = []
    for node, content in enumerate(contents(locals_, cases), start=1):
        question = Message(RecordDict(), dst_node_id=node, message_type="train", group_id="1")
        replies.append(Message(content, reply_to=question))
    record, _ = strategy.aggregate_train(1, replies)
    return {group: record[group].numpy() for group in GROUPS}


@pytest.mark.parametrize(
    ("config", "theirs", "counts"),
    [
        ({"strategy": "fedavg"}, lambda _n: flower.FedAvg(), (1, 2, 5, 8)),
        ({"strategy": "median"}, lambda _n: flower.FedMedian(), (1, 2, 5, 8)),
        ({"strategy": "trimmed_mean", "trim": 0.0}, lambda _n: flower.FedTrimmedAvg(beta=0.0), (1, 2, 5)),
        ({"strategy": "trimmed_mean", "trim": 0.2}, lambda _n: flower.FedTrimmedAvg(beta=0.2), (5, 6, 11)),
        ({"strategy": "trimmed_mean", "trim": 0.4}, lambda _n: flower.FedTrimmedAvg(beta=0.4), (3, 5, 8)),
        (
            {"strategy": "multikrum", "byzantine": 1},
            lambda n: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=n - 1),
            (5, 8),
        ),
    ],
)
def test_result_is_flowers_on_equal_weights(config, theirs, counts):
    combiner = combiner_of(RunConfig(**config))
    for sites in counts:
        locals_ = [moved(SENT, n, 0.1) for n in range(sites)]
        found = combiner.combine(updates(locals_), SENT).arrays
        for group, expected in of_flower(theirs(sites), locals_).items():
            np.testing.assert_allclose(found[group], expected, rtol=2e-6, atol=2e-7)


def test_mean_is_flowers_on_unequal_weights():
    locals_, cases = [moved(SENT, n, 0.1) for n in range(4)], [3, 10, 1, 7]
    found = combiner_of(RunConfig()).combine(updates(locals_, [weights(c) for c in cases]), SENT).arrays
    for group, expected in of_flower(flower.FedAvg(), locals_, cases).items():
        np.testing.assert_allclose(found[group], expected, rtol=2e-6, atol=2e-7)


@given(seed=st.integers(0, 10**6), sites=st.integers(5, 9), byzantine=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_choice_of_multikrum_is_flowers(seed, sites, byzantine):
    if sites < 2 * byzantine + 3:
        return
    locals_ = [moved(SENT, seed + n, 0.1 * (1 + n % 3)) for n in range(sites)]
    chosen = krum_choice(squared_distances(updates(locals_), SENT), byzantine)
    steps = [{g: local[g].astype(np.float64) - SENT[g] for g in GROUPS} for local in locals_]
    records = contents(steps)
    theirs = select_multikrum(records, byzantine, sites - byzantine)
    assert chosen == sorted(next(i for i, r in enumerate(records) if r is t) for t in theirs)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "multikrum"])
@pytest.mark.parametrize("lie", [1e3, -1e3, 1e20])
def test_one_liar_of_five_moves_nothing_beyond_the_others(name, lie):
    honest = [moved(SENT, n) for n in range(4)]
    liar = {group: np.full_like(array, lie) for group, array in SENT.items()}
    found = combiner_of(RunConfig(strategy=name)).combine(updates([*honest, liar]), SENT).arrays
    for group in GROUPS:
        stack = np.stack([local[group] for local in honest])
        assert (found[group] >= stack.min(0) - 1e-6).all()
        assert (found[group] <= stack.max(0) + 1e-6).all()


def test_median_counts_small_and_large_sites_alike():
    locals_ = [moved(SENT, n) for n in range(3)]
    combiner = combiner_of(RunConfig(strategy="median"))
    one = combiner.combine(updates(locals_), SENT).arrays
    other = combiner.combine(updates(locals_, [weights(w) for w in (1, 1000, 3)]), SENT).arrays
    assert one["trunk"].tobytes() == other["trunk"].tobytes()


def test_distances_are_those_of_the_whole_updates():
    locals_ = [moved(SENT, n) for n in range(3)]
    found = squared_distances(updates(locals_), SENT)
    flat = [np.concatenate([local[g] for g in GROUPS]).astype(np.float64) for local in locals_]
    for one in range(3):
        for other in range(3):
            assert found[one, other] == pytest.approx(np.square(flat[one] - flat[other]).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("config", "least"),
    [
        ({"strategy": "multikrum", "byzantine": 0}, 3),
        ({"strategy": "multikrum", "byzantine": 2}, 7),
        ({"strategy": "trimmed_mean", "trim": 0.2}, 5),
        ({"strategy": "trimmed_mean", "trim": 0.34}, 3),
        ({"strategy": "trimmed_mean", "trim": 0.0}, 1),
        ({"strategy": "median"}, 1),
    ],
)
def test_fewer_updates_than_the_promise_needs_are_refused(config, least):
    combiner = combiner_of(RunConfig(**config))
    assert combiner.least() == least
    with pytest.raises(AggregationError, match=f"{least - 1} updates, at least {least} are needed"):
        combiner.combine(updates([moved(SENT, n) for n in range(least - 1)]), SENT)
