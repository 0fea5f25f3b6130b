import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedglioma.metrics import bootstrap as module
from fedglioma.metrics.bootstrap import Statistic, bootstrap, resample_weights
from fedglioma.metrics.genotype import gene_metrics, mean_statistic


def mean_of(values):
    numbers = np.asarray(values, dtype=np.float64)
    return {"mean": mean_statistic(numbers, np.ones(len(numbers), dtype=bool), "no case")}


def test_a_resample_draws_as_many_patients_as_there_are_with_all_their_cases():
    patients = np.array([7, 7, 3, 9])
    weights = np.concatenate(list(resample_weights(patients, 50, seed=0)))
    assert weights.shape == (50, 4)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 1:].sum(axis=1) == 3).all()


def test_resamples_depend_on_the_seed_and_not_on_the_chunks(monkeypatch):
    patients = np.arange(5)
    whole = np.concatenate(list(resample_weights(patients, 40, seed=1)))
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 35)
    assert np.array_equal(np.concatenate(list(resample_weights(patients, 40, seed=1))), whole)
    assert not np.array_equal(np.concatenate(list(resample_weights(patients, 40, seed=2))), whole)


def test_interval_of_a_mean_matches_the_normal_one():
    values = np.random.default_rng(0).random(400)
    measure = bootstrap(mean_of(values), np.arange(400), resamples=4000)["mean"]
    half = 1.96 * values.std() / 20
    assert measure.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert measure.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_auc_of_a_resample_is_scikit_learns_auc_of_the_repeated_cases():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 20), generator.integers(0, 5, 20) / 5
    ours = gene_metrics(labels, scores, resamples=300, seed=3)
    expected = []
    for weights in next(resample_weights(np.arange(20), 300, seed=3)).astype(int):
        drawn, drawn_scores = np.repeat(labels, weights), np.repeat(scores, weights)
        if 0 < drawn.sum() < len(drawn):
            expected.append(roc_auc_score(drawn, drawn_scores))
    assert ours.auc.dropped == 300 - len(expected)
    assert (ours.auc.low, ours.auc.high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))


def test_resamples_without_a_class_are_dropped_and_counted():
    labels = np.array([1, 1] + [0] * 8)
    ours = gene_metrics(labels, np.linspace(0, 0.9, 10)[::-1] % 0.37, resamples=1000)
    # No positive is drawn with probability 0.8 ** 10 = 0.107.
    assert ours.auc.dropped == pytest.approx(107, abs=40)
    assert ours.accuracy.dropped == 0


def test_too_few_defined_resamples_give_no_interval_and_say_why():
    mostly_undefined = Statistic(
        lambda w: np.where(np.arange(len(w)) % 4 == 0, np.arange(len(w)), np.nan), undefined="never"
    )
    measure = bootstrap({"m": mostly_undefined}, np.arange(3), resamples=100)["m"]
    assert measure.value == 0
    assert (measure.low, measure.high, measure.dropped) == (None, None, 75)
    assert measure.reason == "defined in 25 of 100 resamples only: too few patients of one class"


def test_a_flawless_small_set_gets_no_interval_of_width_zero():
    ours = gene_metrics(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert ours.accuracy.value == 1
    assert ours.accuracy.low is None
    assert ours.accuracy.reason == "no exception among 4 patients: every resample gives the same value"


def test_one_patient_gives_no_interval():
    measure = bootstrap(mean_of([0, 1]), np.array([5, 5]))["mean"]
    assert (measure.value, measure.reason) == (0.5, "one patient only: nothing to resample")


def test_repeated_visits_of_a_patient_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).random(20), 10)
    alone = bootstrap(mean_of(values), np.arange(200))["mean"]
    together = bootstrap(mean_of(values), np.repeat(np.arange(20), 10))["mean"]
    assert together.width > 2.5 * alone.width


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        labels = (generator.random(80) < 0.5).astype(np.int64)
        # Normal scores one standard deviation apart: the true AUC is Phi(1 / sqrt 2) = 0.7602.
        scores = 1 / (1 + np.exp(-(generator.normal(size=80) + labels)))
        auc = gene_metrics(labels, scores, resamples=200, seed=seed).auc
        covered += auc.low <= 0.7602 <= auc.high
    assert 0.89 <= covered / 200 <= 0.985


def test_a_thousand_resamples_of_a_hundred_patients_take_well_under_a_second():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 100), generator.random(100)
    start = time.process_time()
    for _ in range(3):
        gene_metrics(labels, scores)
    assert time.process_time() - start < 0.5
