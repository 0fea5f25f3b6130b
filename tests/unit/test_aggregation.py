import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import AggregationError
from fedglioma.weights import GROUPS
from fedglioma_server.aggregation import update_norm, weighted_mean


def arrays(*numbers):
    return {group: np.array(numbers, np.float32) for group in GROUPS}


def same_weight(value):
    return dict.fromkeys(GROUPS, float(value))


def test_mean_is_weighted_by_labelled_cases():
    mean = weighted_mean([(arrays(1, 0), same_weight(1)), (arrays(5, 8), same_weight(3))], arrays(0, 0))
    assert all(mean[group].tolist() == [4.0, 6.0] for group in GROUPS)


def test_site_without_labels_of_a_gene_does_not_move_its_head():
    unlabelled = same_weight(10) | {"codel_1p19q": 0.0}
    mean = weighted_mean([(arrays(9), unlabelled), (arrays(1), same_weight(1))], arrays(0))
    assert mean["codel_1p19q"].tolist() == [1.0]
    assert mean["trunk"][0] > 8


def test_head_that_no_site_has_labels_for_stays_to_the_bit():
    nobody = same_weight(2) | {"atrx": 0.0}
    before = arrays(0.1, np.pi)
    mean = weighted_mean([(arrays(7, 7), nobody), (arrays(8, 8), nobody)], before)
    assert mean["atrx"].tobytes() == before["atrx"].tobytes()


numbers = st.floats(-1e6, 1e6, width=32)


@given(
    values=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5),
    weights=st.lists(st.integers(0, 1000), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=60)
def test_mean_stays_inside_the_updates_range_and_agrees_with_numpy(values, weights):
    used = weights[: len(values)]
    if sum(used) == 0:
        return
    updates = [(arrays(*v), same_weight(w)) for v, w in zip(values, used, strict=True)]
    mean = weighted_mean(updates, arrays(0, 0, 0))["trunk"]
    counted = np.array([v for v, w in zip(values, used, strict=True) if w > 0], np.float32)
    slack = np.abs(counted).max() * 1e-6
    assert (mean >= counted.min(0) - slack).all()
    assert (mean <= counted.max(0) + slack).all()
    expected = np.average(np.array(values, np.float64), axis=0, weights=used)
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=slack)


def test_mean_of_equal_updates_is_the_update():
    rng = np.random.default_rng(0)
    update = {group: rng.normal(size=1000).astype(np.float32) for group in GROUPS}
    mean = weighted_mean([(update, same_weight(w)) for w in (3, 5, 8)], update)
    for group in GROUPS:
        np.testing.assert_allclose(mean[group], update[group], rtol=1e-7)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_weight_is_refused(bad):
    with pytest.raises(AggregationError, match="weights"):
        weighted_mean([(arrays(1), same_weight(bad))], arrays(0))


def test_update_of_another_size_is_refused():
    with pytest.raises(AggregationError, match="size"):
        weighted_mean([(arrays(1, 2), same_weight(1))], arrays(0))


def test_update_norm_is_the_length_of_the_step():
    one, other = arrays(0), arrays(0)
    other["trunk"], other["idh"] = np.array([3.0], np.float32), np.array([4.0], np.float32)
    assert update_norm(other, one) == 5.0
