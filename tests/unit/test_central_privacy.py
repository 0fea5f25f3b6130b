"""Central privacy: Flower's wrapper keeps what it says, and the noisy mean is what the terms say."""

import inspect
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.serverapp.strategy.dp_fixed_clipping import DifferentialPrivacyFixedClippingBase
from flwr.supercore import differential_privacy as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedglioma.config.run import RunConfig
from fedglioma.errors import AggregationError
from fedglioma.payload import update as packed
from fedglioma.weights import GROUPS
from fedglioma_server.aggregation import Update
from fedglioma_server.central import (
    FEWEST_SITES,
    SHORTEST,
    CentralPrivacy,
    OwnNoise,
    clipped_step,
    fresh_normals,
    noisy,
)
from fedglioma_server.inline import InlineGrid
from fedglioma_server.spending import epsilon_after

CENTRAL = "server/fedglioma_server/central.py"
SIZES = dict(zip(GROUPS, (7, 3, 0, 2, 4), strict=True))
NOTHING = 1e-9
"""A noise multiplier whose noise is far below what is looked at."""


@pytest.fixture(autouse=True)
def task() -> None:
    InlineGrid(ClientApp(), [{}], {})  # Flower lets a message be made only inside a task


def terms(**changes: object) -> RunConfig:
    told = {
        "strategy": "fedavg",
        "quorum": 1,
        "norm_limit": 0.0,
        "keep_updates": False,
        "noise_multiplier": NOTHING,
        "clip_norm": 1.0,
        "delta": 1e-5,
        "accountant": "prv",
        "rounds": 10,
    }
    return SimpleNamespace(**told | changes)  # type: ignore[return-value]


def split(vector) -> dict:
    ends = np.cumsum(list(SIZES.values()))[:-1]
    return dict(zip(GROUPS, np.split(np.asarray(vector, np.float32), ends), strict=True))


def joined(arrays) -> np.ndarray:
    return np.concatenate([arrays[group] for group in GROUPS]).astype(np.float64)


SENT = split(np.random.default_rng(0).normal(size=16))


def site(number: int, step, weights=None) -> Update:
    local = split(joined(SENT) + np.asarray(step, float))
    given = dict.fromkeys(GROUPS, 1.0) if weights is None else weights
    return Update(f"site-{number}", given, "float32", local)


def sites(steps) -> list[Update]:
    return [site(number, step) for number, step in enumerate(steps)]


def steps_of(scale: float, count: int = 4, seed: int = 1) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(count, 16))


def moved(combined) -> np.ndarray:
    return joined(combined.arrays) - joined(SENT)


def clipped(steps, clip: float) -> np.ndarray:
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    return steps * np.minimum(1, clip / np.maximum(lengths, 1e-300))


# What is taken from inside Flower


def test_flowers_wrapper_still_has_the_names_that_are_used() -> None:
    made = inspect.signature(DifferentialPrivacyServerSideFixedClipping).parameters
    assert {"strategy", "noise_multiplier", "clipping_norm", "num_sampled_clients"} <= set(made), CENTRAL
    adds = DifferentialPrivacyFixedClippingBase._add_noise_to_aggregated_arrays
    assert list(inspect.signature(adds).parameters) == ["self", "aggregated_arrays"], CENTRAL
    source = inspect.getsource(DifferentialPrivacyServerSideFixedClipping.aggregate_train)
    assert "self._add_noise_to_aggregated_arrays(aggregated_arrays)" in source, CENTRAL
    assert "self.current_arrays.to_numpy_ndarrays()" in source, CENTRAL
    assert OwnNoise.aggregate_train is DifferentialPrivacyServerSideFixedClipping.aggregate_train


def test_flowers_deviation_is_noise_times_clip_over_sites() -> None:
    assert flower.compute_stdv(1.5, 4.0, 3) == pytest.approx(2.0)


@pytest.mark.parametrize(("scale", "factor"), [(0.1, 1.0), (10.0, None)])
def test_flower_clips_over_all_arrays_together(scale, factor) -> None:
    step = steps_of(scale, 1)[0].astype(np.float32)
    found = [step[:5].copy(), step[5:].copy()]
    flower.compute_clip_model_update(found, [np.zeros(5, np.float32), np.zeros(11, np.float32)], 2.0)
    wanted = step if factor else step * (2.0 / np.linalg.norm(step))
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-6)


def test_flowers_own_wrapper_gives_the_same_mean_and_adds_numpys_noise_to_it() -> None:
    steps = steps_of(1.0, 3)
    stock = DifferentialPrivacyServerSideFixedClipping(FedAvg(weighted_by_key="weight"), 0.5, 2.0, 3)
    stock.current_arrays = ArrayRecord({"all": Array(np.zeros(16, np.float32))})
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"all": Array(step.astype(np.float32))}),
                    "metrics": MetricRecord({"weight": 1.0}),
                }
            ),
            dst_node_id=1,
            message_type="train",
        )
        for step in steps
    ]
    before = np.random.get_state()  # noqa: NPY002 - Flower draws from the global generator
    try:
        np.random.seed(5)  # noqa: NPY002 - as above
        found, _ = stock.aggregate_train(1, replies)
    finally:
        np.random.set_state(before)  # noqa: NPY002 - as above
    noise = np.random.RandomState(5).normal(0, 0.5 * 2.0 / 3, 16)
    wanted = clipped(steps, 2.0).mean(axis=0)
    np.testing.assert_allclose(found["all"].numpy(), wanted + noise, atol=1e-6)
    ours = CentralPrivacy(terms(clip_norm=2.0)).combine(sites(steps), SENT)
    np.testing.assert_allclose(moved(ours), wanted, atol=1e-6)


def test_flower_would_divide_by_the_length_of_no_step_at_all() -> None:
    with pytest.raises(ZeroDivisionError):
        flower.clip_inputs_inplace([np.zeros(3, np.float32)], 1.0)


# What is combined


@settings(deadline=None, max_examples=20)
@given(
    scale=st.floats(1e-6, 1e6),
    clip=st.floats(1e-3, 100.0),
    count=st.integers(3, 7),
    seed=st.integers(0, 10**6),
)
def test_without_noise_it_is_the_mean_of_the_clipped_steps(scale, clip, count, seed) -> None:
    updates = sites(steps_of(scale, count, seed))
    # what float32 weights leave of the steps is what the sites sent
    sent = np.stack([joined(update.packed) - joined(SENT) for update in updates])
    found = CentralPrivacy(terms(clip_norm=clip)).combine(updates, SENT)
    np.testing.assert_allclose(moved(found), clipped(sent, clip).mean(axis=0), atol=1e-6 * (1 + clip))


@pytest.mark.parametrize("payload", ["bfloat16", "int8"])
def test_rounded_steps_are_combined_too(payload) -> None:
    steps = steps_of(0.05, 3)
    updates = [
        Update(f"site-{n}", {}, payload, packed(payload, split(joined(SENT) + step), SENT))
        for n, step in enumerate(steps)
    ]
    found = CentralPrivacy(terms()).combine(updates, SENT)
    np.testing.assert_allclose(moved(found), steps.mean(axis=0), atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(
    one=st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=16, max_size=16),
    other=st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=16, max_size=16),
    count=st.integers(3, 6),
    clip=st.floats(1e-3, 10.0),
)
def test_one_site_moves_the_mean_by_no_more_than_twice_its_share(one, other, count, clip) -> None:
    rest = steps_of(0.3, count - 1)
    privacy = CentralPrivacy(terms(clip_norm=clip))
    first, second, absent = (
        moved(privacy.combine(sites([*rest, step]), SENT)) for step in (one, other, np.zeros(16))
    )
    room = 1e-6 * (1 + clip)
    assert np.linalg.norm(first - second) <= 2 * clip / count + room
    assert np.linalg.norm(first - absent) <= clip / count + room


def test_a_step_is_cut_to_the_clip_norm_exactly_and_a_short_one_is_left_as_it_is() -> None:
    for scale in (1e-3, 1.0, 1e30):
        step = steps_of(scale, 1)[0]
        found = joined(clipped_step(site(0, step), SENT, 0.5))
        assert np.linalg.norm(found) <= 0.5 * (1 + 1e-7)
    short = np.full(16, 2.0**-6)
    zero = {group: np.zeros_like(array) for group, array in SENT.items()}
    short_update = Update("site-0", {}, "float32", split(short))
    np.testing.assert_array_equal(joined(clipped_step(short_update, zero, 1.0)), short)


def test_a_site_that_sends_no_step_at_all_counts_as_one_that_moves_nothing() -> None:
    steps = [np.zeros(16), *steps_of(0.1, 2)]
    found = CentralPrivacy(terms()).combine(sites(steps), SENT)
    np.testing.assert_allclose(moved(found), np.mean(steps, axis=0), atol=1e-6)
    none = CentralPrivacy(terms()).combine(sites([np.zeros(16)] * 3), SENT)
    np.testing.assert_allclose(moved(none), 0, atol=1e-6)
    nudged = joined(clipped_step(site(0, np.zeros(16)), SENT, 1.0))
    assert np.linalg.norm(nudged) == pytest.approx(SHORTEST)


def test_all_sites_count_alike_whatever_their_cases_and_labels() -> None:
    steps = steps_of(0.1, 3)
    uneven = [
        site(0, steps[0], {"trunk": 500.0, "idh": 0.0}),
        site(1, steps[1], {"trunk": 5.0}),
        site(2, steps[2], {"trunk": 1.0, "idh": 3.0}),
    ]
    found = CentralPrivacy(terms()).combine(uneven, SENT)
    np.testing.assert_allclose(moved(found), steps.mean(axis=0), atol=1e-6)


def test_noise_has_the_deviation_that_the_terms_say() -> None:
    rng = np.random.default_rng(3)
    size = 40_000
    sent = {group: np.zeros(size if group == "trunk" else 0, np.float32) for group in GROUPS}
    local = rng.normal(size=(4, size)).astype(np.float32)
    updates = [Update(f"site-{n}", {}, "float32", {**sent, "trunk": step}) for n, step in enumerate(local)]
    found = CentralPrivacy(terms(noise_multiplier=3.0, clip_norm=8.0)).combine(updates, sent)
    rest = found.arrays["trunk"] - clipped(local.astype(float), 8.0).mean(axis=0)
    low, high = stats.chi2.ppf([1e-10, 1 - 1e-10], size) / size  # the noise is another every time
    assert low < rest.var() / (3.0 * 8.0 / 4) ** 2 < high
    assert abs(rest.mean()) < 7 * 6.0 / sqrt(size)
    again = CentralPrivacy(terms(noise_multiplier=3.0, clip_norm=8.0)).combine(updates, sent)
    assert abs(np.corrcoef(rest, again.arrays["trunk"])[0, 1]) < 7 / sqrt(size), "noise is fresh every time"


def test_every_group_gets_noise_also_one_that_nobody_has_labels_for() -> None:
    unlabelled = [site(n, np.zeros(16), {"trunk": 5.0}) for n in range(3)]
    found = CentralPrivacy(terms(noise_multiplier=1.0)).combine(unlabelled, SENT)
    assert all((found.arrays[group] != SENT[group]).all() for group in GROUPS if SIZES[group])


def test_fresh_noise_is_normal_and_numpys_generator_is_not_touched() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - it is what must not be touched
    drawn = fresh_normals(50_000)
    assert stats.kstest(drawn, "norm").pvalue > 1e-10
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002 - as above
    assert fresh_normals(4).tolist() != fresh_normals(4).tolist()


def test_noisy_numbers_lie_on_a_grid_that_does_not_tell_what_they_were() -> None:
    one, other = (noisy(np.full(200, value, np.float32), 1.0) for value in (0.1, 0.3))
    for found in (one, other):
        np.testing.assert_array_equal(found * 2.0**20, np.rint(found * 2.0**20))


def test_nothing_is_combined_of_fewer_sites_than_three() -> None:
    privacy = CentralPrivacy(terms())
    assert privacy.quorum() == FEWEST_SITES == 3
    with pytest.raises(AggregationError, match="2 updates, at least 3 are needed"):
        privacy.combine(sites(steps_of(1.0, 2)), SENT)


def test_an_update_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AggregationError, match="site-2: the update is not made of finite numbers"):
        CentralPrivacy(terms()).combine(sites([*steps_of(1.0, 2), np.full(16, np.nan)]), SENT)


# Terms


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (2.0, 10), (8.0, 50), (0.7, 3)])
def test_epsilon_is_that_of_an_independent_accountant(noise, rounds) -> None:
    one = privacy_loss_distribution.from_gaussian_mechanism(noise, value_discretization_interval=1e-3)
    wanted = one.self_compose(rounds).get_epsilon_for_delta(1e-5)
    settings = RunConfig(privacy="central", noise_multiplier=noise, rounds=rounds)
    assert epsilon_after(settings, rounds) == pytest.approx(wanted, rel=1e-2)
    assert epsilon_after(settings, rounds) <= wanted + 1e-9, "the accountant rounds up"
