"""Many steps into one: exact references, laws, and what must not count."""

from fractions import Fraction
from itertools import pairwise, permutations
from math import ulp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import AggregationError
from fedglioma.weights import GROUPS
from fedglioma_server.aggregation import WORK, Update, combine, parts, update_norm, weighted_mean
from fedglioma_server.robust import median, trimmed_mean


def arrays(*numbers):
    return {group: np.array(numbers, np.float32) for group in GROUPS}


def same_weight(value):
    return dict.fromkeys(GROUPS, float(value))


def update(local, weights, site="henan"):
    return Update(site, weights, "float32", local)


def mean_of(pairs, sent):
    return combine([update(local, weights) for local, weights in pairs], sent, weighted_mean)


def test_mean_is_weighted_by_labelled_cases():
    mean = mean_of([(arrays(1, 0), same_weight(1)), (arrays(5, 8), same_weight(3))], arrays(0, 0))
    assert all(mean[group].tolist() == [4.0, 6.0] for group in GROUPS)


def test_site_without_labels_of_a_gene_does_not_move_its_head():
    unlabelled = same_weight(10) | {"codel_1p19q": 0.0}
    mean = mean_of([(arrays(9), unlabelled), (arrays(1), same_weight(1))], arrays(0))
    assert mean["codel_1p19q"].tolist() == [1.0]
    assert mean["trunk"][0] > 8


def test_head_that_no_site_has_labels_for_stays_to_the_bit():
    nobody = same_weight(2) | {"atrx": 0.0}
    before = arrays(0.1, np.pi)
    mean = mean_of([(arrays(7, 7), nobody), (arrays(8, 8), nobody)], before)
    assert mean["atrx"].tobytes() == before["atrx"].tobytes()


numbers = st.floats(-1e6, 1e6, width=32)
magnitudes = st.floats(
    width=32, allow_nan=False, allow_infinity=False, max_value=2.0**100, min_value=-(2.0**100)
)


@given(
    values=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5),
    weights=st.lists(st.integers(0, 1000), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=60)
def test_mean_stays_inside_the_updates_range_and_agrees_with_numpy(values, weights):
    used = weights[: len(values)]
    if sum(used) == 0:
        return
    pairs = [(arrays(*v), same_weight(w)) for v, w in zip(values, used, strict=True)]
    mean = mean_of(pairs, arrays(0, 0, 0))["trunk"]
    counted = np.array([v for v, w in zip(values, used, strict=True) if w > 0], np.float32)
    slack = np.abs(counted).max() * 1e-6
    assert (mean >= counted.min(0) - slack).all()
    assert (mean <= counted.max(0) + slack).all()
    expected = np.average(np.array(values, np.float64), axis=0, weights=used)
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=slack)


@given(
    local=st.lists(magnitudes, min_size=1, max_size=6),
    sent=magnitudes,
    weights=st.lists(st.integers(1, 10**6), min_size=6, max_size=6),
)
@settings(deadline=None, max_examples=300)
def test_mean_is_off_the_exact_one_by_no_more_than_is_stated(local, sent, weights):
    """Up to six sites: half a unit in the last place of float32, and 2^-50 of the mean magnitude."""
    used = weights[: len(local)]
    pairs = [(arrays(value), same_weight(weight)) for value, weight in zip(local, used, strict=True)]
    found = float(mean_of(pairs, arrays(sent))["trunk"][0])
    steps = [Fraction(value) - Fraction(sent) for value in local]
    total = sum(used)
    exact = Fraction(sent) + sum(w * s for w, s in zip(used, steps, strict=True)) / total
    magnitude = abs(Fraction(sent)) + sum(w * abs(s) for w, s in zip(used, steps, strict=True)) / total
    half_ulp = Fraction(max(float(np.spacing(np.float32(abs(found)))), ulp(0.0))) / 2
    assert abs(Fraction(found) - exact) <= half_ulp + magnitude / 2**50


@given(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_median_and_trimmed_mean_stay_inside_the_range(values):
    steps = np.array(values, np.float64)
    weights = np.ones(len(values))
    low, high = steps.min(0), steps.max(0)
    for found in (median(steps.copy(), weights), trimmed_mean(steps.copy(), weights, trim=0.3)):
        slack = 1e-9 * np.abs(steps).max()
        assert (found >= low - slack).all()
        assert (found <= high + slack).all()


@given(
    st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 2**17), min_size=1, max_size=20),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=50)
def test_mean_of_equal_updates_is_the_update(values, weights):
    local = arrays(*values)
    sent = {group: array * np.float32(0.5) + np.float32(0.01) for group, array in local.items()}
    found = mean_of([(local, same_weight(w)) for w in weights], sent)
    for group in GROUPS:
        np.testing.assert_array_equal(found[group], local[group])


def test_order_of_summation_is_the_order_given():
    """The strategy sorts by name; here the same order gives the same bits and another may not."""
    rng = np.random.default_rng(3)
    pairs = [({g: rng.normal(size=50).astype(np.float32) for g in GROUPS}, same_weight(w)) for w in (3, 5, 7)]
    sent = {group: rng.normal(size=50).astype(np.float32) for group in GROUPS}
    again = [mean_of(pairs, sent)["trunk"].tobytes() for _ in range(2)]
    assert again[0] == again[1]
    for other in permutations(pairs):
        np.testing.assert_allclose(
            mean_of(other, sent)["trunk"], np.frombuffer(again[0], np.float32), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_weight_is_refused(bad):
    with pytest.raises(AggregationError, match="weights"):
        mean_of([(arrays(1), same_weight(bad))], arrays(0))


def test_result_beyond_float32_is_refused():
    most = float(np.finfo(np.float32).max)
    far = Update("a", same_weight(1), "bfloat16", {g: np.array([0x7F7F], np.uint16) for g in GROUPS})
    with pytest.raises(AggregationError, match="not finite"):
        combine([far], arrays(most), weighted_mean)


def test_update_norm_is_the_length_of_the_step():
    one, other = arrays(0), arrays(0)
    other["trunk"], other["idh"] = np.array([3.0], np.float32), np.array([4.0], np.float32)
    assert update_norm(update(other, same_weight(1)), one) == 5.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm_of_an_update_that_is_not_finite_is_not_finite(bad):
    local = arrays(0, 1)
    local["atrx"][1] = bad
    assert not np.isfinite(update_norm(update(local, same_weight(1)), arrays(0, 0)))


@given(size=st.integers(0, 5 * WORK), sites=st.integers(1, 50))
@settings(deadline=None, max_examples=30)
def test_parts_cover_an_array_once_and_are_never_more_work_than_one(size, sites):
    found = list(parts(size, sites))
    assert sum(part.stop - part.start for part in found) == size
    assert all(one.stop == other.start for one, other in pairwise(found))
    assert all((part.stop - part.start) * sites <= WORK for part in found)


def test_result_does_not_depend_on_the_parts(monkeypatch):
    rng = np.random.default_rng(1)
    pairs = [({g: rng.normal(size=5000).astype(np.float32) for g in GROUPS}, same_weight(w)) for w in (2, 3)]
    sent = {group: rng.normal(size=5000).astype(np.float32) for group in GROUPS}
    whole = mean_of(pairs, sent)
    monkeypatch.setattr("fedglioma_server.aggregation.WORK", 2048)
    assert len(list(parts(5000, 2))) == 5
    assert mean_of(pairs, sent)["trunk"].tobytes() == whole["trunk"].tobytes()
