import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from fedglioma.case import UNKNOWN
from fedglioma.errors import FedGliomaError
from fedglioma.metrics.bootstrap import resample_weights
from fedglioma.metrics.criterion import Criterion, Rows, fold_values, measurable, over_folds
from fedglioma.metrics.paired import SEED, compare, holm, interval, swap_test

GENE_CRITERIA = [criterion for criterion in Criterion if criterion is not Criterion.DICE]
SCIKIT = {
    Criterion.AUC: lambda y, p, w: roc_auc_score(y, p, sample_weight=w),
    Criterion.ACCURACY: lambda y, p, w: accuracy_score(y, p >= 0.5, sample_weight=w),
    Criterion.BALANCED_ACCURACY: lambda y, p, w: balanced_accuracy_score(y, p >= 0.5, sample_weight=w),
    Criterion.SENSITIVITY: lambda y, p, w: recall_score(y, p >= 0.5, sample_weight=w),
    Criterion.SPECIFICITY: lambda y, p, w: recall_score(1 - y, p < 0.5, sample_weight=w),
    Criterion.PPV: lambda y, p, w: precision_score(y, p >= 0.5, sample_weight=w, zero_division=np.nan),
    Criterion.NPV: lambda y, p, w: precision_score(1 - y, p < 0.5, sample_weight=w, zero_division=np.nan),
}


def study(n=40, folds=4, seeds=3, seed=0, signal=0.5):
    """A cross-validation: both classes in every fold, probabilities rounded so that some tie."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) // folds % 2
    scores = generator.normal(size=(n, seeds)) + signal * labels[:, None]
    return Rows(np.arange(n), np.arange(n) % folds, labels), np.round(1 / (1 + np.exp(-scores)), 2)


def by_hand(criterion, rows, predictions, weights=None):
    """The papers' way: scikit-learn's figure of each fold and seed, then two means."""
    weights = np.ones(len(rows.labels)) if weights is None else weights
    per_fold = []
    for fold in np.unique(rows.folds):
        here = rows.folds == fold
        if np.ptp(rows.labels[here & (weights > 0)]) if (weights[here] > 0).any() else 0:
            values = [SCIKIT[criterion](rows.labels[here], s[here], weights[here]) for s in predictions.T]
            per_fold.append(np.nanmean(values))
    return np.mean(per_fold)


# --- the measures


@pytest.mark.parametrize("criterion", GENE_CRITERIA)
def test_measures_are_scikit_learns_averaged_over_folds_then_seeds(criterion):
    rows, predictions = study()
    measure = interval(criterion, rows, predictions, resamples=0)
    assert measure.value == pytest.approx(by_hand(criterion, rows, predictions))


@pytest.mark.parametrize("criterion", [Criterion.AUC, Criterion.BALANCED_ACCURACY])
def test_weighted_measures_are_scikit_learns(criterion):
    rows, predictions = study()
    statistic = over_folds(criterion, rows, predictions)
    weights = np.random.default_rng(1).integers(0, 4, (20, 40)).astype(float)
    expected = [by_hand(criterion, rows, predictions, row) for row in weights]
    assert statistic.compute(weights) == pytest.approx(expected)


def test_seed_that_calls_nobody_mutant_has_no_ppv_and_takes_no_part_in_the_mean():
    labels = np.array([0, 1, 1, 0, 1, 1])
    rows = Rows(np.arange(6), np.array([0, 0, 0, 1, 1, 1]), labels)
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.1], [0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    # Fold 0: one of two called is mutant, and with the other seed nobody is called; fold 1: nobody at all.
    assert fold_values(Criterion.PPV, rows, scores) == pytest.approx(
        np.array([[0.5, np.nan], [np.nan, np.nan]]), nan_ok=True
    )
    assert interval(Criterion.PPV, rows, scores, resamples=0).value == 0.5
    assert interval(Criterion.NPV, rows, scores, resamples=0).value == pytest.approx(
        (0 + 1 / 3 + 2 * 1 / 3) / 4
    )
    nobody = interval(Criterion.PPV, rows, np.full(6, 0.1), resamples=0)
    assert (nobody.value, nobody.reason) == (None, "in every fold: nobody is called mutant or codeleted")


def test_swaps_that_leave_a_measure_undefined_are_no_evidence():
    rows = Rows(np.arange(6), np.zeros(6, dtype=int), np.array([1, 1, 1, 0, 0, 0]))
    a, b = np.array([0.9, 0.9, 0.9, 0.1, 0.1, 0.1]), np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.9])
    p = swap_test(Criterion.PPV, rows, a, b)
    swaps = [np.array(s, dtype=bool) for s in product([False, True], repeat=6)]
    different = []
    for swap in swaps:
        one, two = np.where(swap, b, a), np.where(swap, a, b)
        called = [scores >= 0.5 for scores in (one, two)]
        if not all(c.any() for c in called):
            different.append(True)
            continue
        first, second = (rows.labels[c].mean() for c in called)
        different.append(abs(first - second) >= 1)
    assert p == pytest.approx(np.mean(different))


def test_fold_values_are_those_of_each_fold_and_seed():
    rows, predictions = study()
    table = fold_values(Criterion.AUC, rows, predictions)
    here = rows.folds == 2
    assert table.shape == (4, 3)
    assert table[2, 1] == pytest.approx(roc_auc_score(rows.labels[here], predictions[here, 1]))


def test_dice_is_the_mean_of_the_cases_with_a_mask():
    rows = Rows(np.arange(4), np.array([0, 0, 1, 1]))
    dice = np.array([[0.8, 0.6], [0.4, 0.6], [0.9, 1.0], [np.nan, np.nan]])
    assert interval(Criterion.DICE, rows, dice).value == pytest.approx((0.6 + 0.95) / 2)


def test_a_fold_of_one_class_is_left_out_of_the_mean_and_counted():
    labels = np.array([0, 1, 0, 1, 1, 1])
    scores = np.array([0.1, 0.9, 0.6, 0.4, 0.3, 0.2])
    rows = Rows(np.arange(6), np.array([0, 0, 1, 1, 2, 2]), labels)
    assert fold_values(Criterion.AUC, rows, scores)[:, 0] == pytest.approx([1, 0, np.nan], nan_ok=True)
    result = compare(Criterion.AUC, rows, scores, scores, names=("x", "y"), resamples=10)
    assert (result.value_a.value, result.folds, result.undefined_folds) == (0.5, 3, 1)
    # Sensitivity of the last fold exists: both its cases are positive and missed.
    assert interval(Criterion.SENSITIVITY, rows, scores).value == pytest.approx((1 + 0 + 0) / 3)


def test_folds_that_all_have_one_class_have_no_mean_and_say_so():
    rows = Rows(np.arange(4), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    result = compare(Criterion.AUC, rows, scores, scores, names=("x", "y"))
    assert (result.value_a.value, result.p, result.undefined_folds) == (None, None, 2)
    assert result.difference.reason == "in every fold: one class only"


def test_cases_without_a_label_take_no_part():
    rows, predictions = study()
    hidden = np.where(np.arange(40) < 8, UNKNOWN, rows.labels)
    nan = np.where(np.arange(40)[:, None] < 8, np.nan, predictions)
    masked = Rows(rows.patients, rows.folds, hidden)
    fewer = rows.select(rows.patients >= 8)
    assert interval(Criterion.AUC, masked, nan) == interval(Criterion.AUC, fewer, predictions[8:])
    result = compare(Criterion.AUC, masked, nan, nan, names=("x", "y"), resamples=0)
    assert (result.n_patients, result.folds, result.seeds) == (32, 4, 3)


def test_nobody_known_is_a_reason_and_no_crash():
    rows = Rows(np.arange(3), np.zeros(3, dtype=int), np.full(3, UNKNOWN))
    result = compare(Criterion.AUC, rows, np.ones(3), np.ones(3), names=("x", "y"))
    assert (result.value_a.value, result.p, result.n_patients) == (None, None, 0)
    assert result.value_a.reason == "in every fold: no case with a known label"


def test_what_cannot_be_compared_is_refused():
    rows, predictions = study()
    with pytest.raises(FedGliomaError, match="one entry per case"):
        Rows(np.arange(3), np.arange(2))
    with pytest.raises(FedGliomaError, match=r"\(40, 3\) and \(40, 2\).*one column per seed"):
        measurable(Criterion.AUC, rows, predictions, predictions[:, :2])
    with pytest.raises(FedGliomaError, match="no number for a case"):
        measurable(Criterion.AUC, rows, np.where(predictions > 0.5, np.nan, predictions))
    with pytest.raises(FedGliomaError, match="no number for a case"):
        measurable(Criterion.DICE, rows, predictions, np.where(predictions > 0.5, np.nan, predictions))
    with pytest.raises(FedGliomaError, match="needs the cases' labels"):
        measurable(Criterion.AUC, Rows(rows.patients, rows.folds), predictions)


# --- intervals


def test_resamples_keep_each_folds_number_of_patients_and_a_patients_cases_together():
    patients, folds = np.array([5, 5, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 1, 1])
    weights = np.concatenate(list(resample_weights(patients, 200, 0, folds)))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 1:3].sum(axis=1) == 2).all()
    assert (weights[:, 3:].sum(axis=1) == 3).all()
    # A patient is drawn once on average, and is absent with probability (1 - 1/m)^m.
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.25)
    assert (weights[:, 5] == 0).mean() == pytest.approx((2 / 3) ** 3, abs=0.1)


def test_stratified_resamples_do_not_depend_on_the_chunks(monkeypatch):
    patients, folds = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    whole = np.concatenate(list(resample_weights(patients, 30, 1, folds)))
    monkeypatch.setattr("fedglioma.metrics.bootstrap.CHUNK_ELEMENTS", 25)
    assert np.array_equal(np.concatenate(list(resample_weights(patients, 30, 1, folds))), whole)


def test_interval_is_the_quantiles_of_scikit_learns_figure_on_resampled_patients():
    rows, predictions = study(n=24, seeds=2)
    ours = interval(Criterion.AUC, rows, predictions, resamples=40)
    draws = np.concatenate(list(resample_weights(rows.patients, 40, SEED, rows.folds)))
    expected = [by_hand(Criterion.AUC, rows, predictions, weights) for weights in draws]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))


def test_difference_is_of_the_same_resamples():
    rows, a = study()
    b = np.clip(a - 0.1 * (np.arange(40) % 8 == 1)[:, None], 0, 1)
    result = compare(Criterion.ACCURACY, rows, a, b, names=("whole", "ablated"), resamples=500)
    assert result.difference.value == pytest.approx(result.value_a.value - result.value_b.value)
    # Both arms agree on most patients: unpaired, the difference's interval would be the wider one.
    assert result.difference.width < result.value_a.width
    assert (result.a, result.b, result.seeds, result.n_patients) == ("whole", "ablated", 3, 40)


def test_a_patient_reported_in_several_folds_is_drawn_with_all_of_them():
    rows = Rows(np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 1, 0, 1, 1]))
    assert rows.strata is None
    assert np.array_equal(rows.select(rows.folds == 0).strata, [0, 0, 0])


def test_interval_of_a_difference_in_accuracy_matches_the_normal_one():
    generator = np.random.default_rng(0)
    n = 400
    rows = Rows(np.arange(n), np.arange(n) % 5, generator.integers(0, 2, n))
    right = generator.random((n, 2)) < (0.8, 0.7)
    a, b = (np.where(right[:, i], rows.labels, 1 - rows.labels).astype(float) for i in (0, 1))
    measure = compare(Criterion.ACCURACY, rows, a, b, names=("a", "b"), resamples=2000).difference
    each = right[:, 0].astype(float) - right[:, 1]
    half = 1.96 * each.std() / np.sqrt(n)
    assert measure.value == pytest.approx(each.mean())
    assert measure.low == pytest.approx(each.mean() - half, abs=0.15 * half)
    assert measure.high == pytest.approx(each.mean() + half, abs=0.15 * half)


def test_intervals_of_a_difference_cover_no_difference_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(150):
        labels = np.arange(80) // 4 % 2
        rows = Rows(np.arange(80), np.arange(80) % 4, labels)
        shared = generator.normal(size=80) + labels
        a, b = (stats.norm.cdf(shared + generator.normal(size=80)) for _ in range(2))
        one, two = (over_folds(Criterion.AUC, rows, arm[:, None]) for arm in (a, b))
        (weights,) = resample_weights(rows.patients, 200, trial, rows.folds)
        low, high = np.quantile(one.compute(weights) - two.compute(weights), (0.025, 0.975))
        covered += low <= 0 <= high
    assert 0.88 <= covered / 150 <= 0.99


# --- the swap test


def swapped_values(criterion, rows, a, b, swaps):
    for flips in swaps:
        flip = np.array(flips)[rows.patients][:, None]
        yield by_hand(criterion, rows, np.where(flip, b, a)) - by_hand(criterion, rows, np.where(flip, a, b))


@pytest.mark.parametrize("criterion", [Criterion.ACCURACY, Criterion.BALANCED_ACCURACY])
def test_small_swap_tests_try_every_swap(criterion):
    rows, a = study(n=6, folds=2, seeds=2, signal=2)
    b = a[:, ::-1][[1, 0, 3, 2, 5, 4]]
    values = list(swapped_values(criterion, rows, a, b, product([False, True], repeat=6)))
    expected = np.mean(np.abs(values) >= abs(values[0]) - 1e-12)
    assert swap_test(criterion, rows, a, b) == expected


def test_swap_test_of_the_auc_swaps_ranks_and_is_scipys_permutation_test():
    rows, a = study(n=8, folds=1, seeds=1, signal=2)
    b = np.random.default_rng(5).random((8, 1))
    ranks = [stats.rankdata(arm[:, 0]) for arm in (a, b)]

    def difference(x, y):
        return roc_auc_score(rows.labels, x) - roc_auc_score(rows.labels, y)

    theirs = stats.permutation_test(
        ranks, difference, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    spread = np.abs(theirs.null_distribution) * np.sqrt(8 / 7)  # both arms' ranks have the same sum
    expected = np.mean(spread >= abs(theirs.statistic) - 1e-12)
    assert swap_test(Criterion.AUC, rows, a, b) == pytest.approx(expected)
    assert swap_test(Criterion.AUC, rows, a / 100, b) == pytest.approx(expected)


def test_swap_test_of_dice_is_scipys_permutation_test():
    generator = np.random.default_rng(2)
    a, b = generator.random((2, 9))
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples", vectorized=False
    )
    rows = Rows(np.arange(9), np.zeros(9, dtype=int))
    assert swap_test(Criterion.DICE, rows, a, b) == pytest.approx(theirs.pvalue)


def test_random_swaps_come_near_the_exact_p_and_never_reach_zero():
    generator = np.random.default_rng(2)
    a = generator.random(12)
    b = a - 0.1 + 0.15 * generator.normal(size=12)
    rows = Rows(np.arange(12), np.arange(12) % 3)
    exact = swap_test(Criterion.DICE, rows, a, b, permutations=4096)
    drawn = swap_test(Criterion.DICE, rows, a, b, permutations=4000)
    assert exact * 4096 == round(exact * 4096)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / 4000) + 1 / 4000)
    assert swap_test(Criterion.DICE, Rows(np.arange(40), np.zeros(40, dtype=int)), np.ones(40), np.zeros(40),
                     permutations=99) == 0.01  # fmt: skip


def test_all_cases_and_seeds_of_a_patient_are_swapped_together():
    # One patient, whatever its cases and seeds, has two possible swaps, and both are as extreme.
    rows = Rows(np.zeros(4, dtype=int), np.zeros(4, dtype=int))
    assert swap_test(Criterion.DICE, rows, np.full((4, 3), 0.9), np.full((4, 3), 0.1)) == 1.0


def test_swap_test_does_not_depend_on_the_chunks(monkeypatch):
    rows, a = study()
    b = study(seed=9)[1]
    whole = swap_test(Criterion.AUC, rows, a, b, permutations=50)
    monkeypatch.setattr("fedglioma.metrics.paired.CHUNK_ELEMENTS", 500)
    assert swap_test(Criterion.AUC, rows, a, b, permutations=50) == whole


def test_arms_that_agree_have_a_p_of_one():
    rows, a = study()
    assert swap_test(Criterion.AUC, rows, a, a / 2, permutations=50) == 1.0


def test_p_values_of_arms_that_are_alike_are_uniform():
    generator = np.random.default_rng(0)
    rows = Rows(np.arange(30), np.arange(30) % 3, np.arange(30) // 3 % 2)
    p_values = []
    for trial in range(150):
        shared = generator.normal(size=30) + rows.labels
        a, b = (stats.norm.cdf(shared + generator.normal(size=30)) for _ in range(2))
        p_values.append(swap_test(Criterion.AUC, rows, a, b, permutations=99, seed=trial))
    # Discrete p-values may lie above the diagonal, never clearly below.
    assert stats.kstest(p_values, "uniform", alternative="greater").pvalue > 0.01
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def test_p_values_of_arms_that_are_alike_are_rarely_small_in_folds_of_few_cases():
    """Swapped ranks alone would find a difference in one of eight such comparisons."""
    generator = np.random.default_rng(0)
    folds, found = np.repeat(np.arange(15), 5), 0
    for trial in range(100):
        rows = Rows(np.arange(75), folds, generator.integers(0, 2, 75))
        shared = generator.normal(size=75) + rows.labels
        a, b = (stats.norm.cdf(shared + generator.normal(size=75) / 2) for _ in range(2))
        found += swap_test(Criterion.AUC, rows, a, b, permutations=99, seed=trial) <= 0.05
    assert found <= 10


def test_swapped_ranks_of_one_pair_are_stretched_to_the_spread_of_its_two_orders():
    """In order under one arm and out of order under the other: a swap of both is the only fair one."""
    rows = Rows(np.arange(8), np.repeat(np.arange(4), 2), np.tile([0, 1], 4))
    right, wrong = np.tile([0.1, 0.9], 4), np.tile([0.9, 0.1], 4)
    mixed = np.concatenate([right[:4], wrong[4:]])
    # Differences of 1, 0 and -1, a quarter, a half and a quarter of the swaps, have half the variance.
    sums = np.array([sum(signs) for signs in product((1, 0, 0, -1), repeat=4)]) / 4
    expected = np.mean(np.abs(sums) * np.sqrt(2) >= 1 - 1e-12)
    assert swap_test(Criterion.AUC, rows, right, wrong) == expected
    assert swap_test(Criterion.AUC, rows, mixed, mixed) == 1


def test_a_studys_comparison_takes_seconds_at_most():
    rows, a = study(n=121, folds=5, seeds=3)
    b = study(n=121, folds=5, seeds=3, seed=1)[1]
    start = time.process_time()
    compare(Criterion.AUC, rows, a, b, names=("a", "b"), permutations=1999)
    assert time.process_time() - start < 3


# --- classical tests


def delong_by_definition(labels, a, b):
    """Placement values by comparing every pair, as the paper of 1988 writes them."""
    hit, miss = labels == 1, labels == 0
    psi = [
        (x[hit][:, None] > x[miss][None]) + 0.5 * (x[hit][:, None] == x[miss][None]) for x in (a, b)
    ]  # fmt: skip
    s10 = np.cov([p.mean(axis=1) for p in psi])
    s01 = np.cov([p.mean(axis=0) for p in psi])
    covariance = s10 / hit.sum() + s01 / miss.sum()
    contrast = np.array([1, -1])
    return [p.mean() for p in psi], np.sqrt(contrast @ covariance @ contrast)


def test_delong_and_the_swap_test_agree_on_many_patients():
    generator = np.random.default_rng(4)
    labels = np.arange(300) % 2
    shared = generator.normal(size=300) + labels
    a, b = (stats.norm.cdf(shared + s * generator.normal(size=300)) for s in (0.7, 1.1))
    rows = Rows(np.arange(300), np.zeros(300, dtype=int), labels)
    p = swap_test(Criterion.AUC, rows, a, b, permutations=999)
    aucs, error = delong_by_definition(labels, a, b)
    assert p == pytest.approx(2 * stats.norm.sf(abs(aucs[0] - aucs[1]) / error), abs=0.04)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, which may not fall again.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.5, 0.9]) == (1, 1)
    assert holm([None, 0.01, None, 0.04]) == (None, pytest.approx(0.02), None, pytest.approx(0.04))
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_nor_exceeds_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1, len(p_values) * p)
