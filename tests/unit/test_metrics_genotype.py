import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fedglioma.metrics.genotype import gene_metrics, roc_points

# Few distinct scores, so that most examples have ties; sums of powers of two are exact.
scored = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.sampled_from([0.125, 0.25, 0.5, 0.75, 0.875])),
    min_size=1,
    max_size=30,
)


def arrays(cases):
    return np.array([c[0] for c in cases]), np.array([c[1] for c in cases])


@settings(deadline=None, max_examples=60)
@given(cases=scored)
def test_every_measure_agrees_with_scikit_learn(cases):
    labels, scores = arrays(cases)
    ours = gene_metrics(labels, scores, resamples=0)
    called = scores >= 0.5
    assert ours.accuracy.value == pytest.approx(reference.accuracy_score(labels, called))
    assert ours.log_loss.value == pytest.approx(reference.log_loss(labels, scores, labels=[0, 1]))
    if labels.any():
        assert ours.sensitivity.value == pytest.approx(reference.recall_score(labels, called))
    if not labels.all():
        assert ours.specificity.value == pytest.approx(reference.recall_score(labels, called, pos_label=0))
    if 0 < labels.sum() < len(labels):
        assert ours.auc.value == pytest.approx(reference.roc_auc_score(labels, scores))


@settings(deadline=None, max_examples=40)
@given(cases=scored)
def test_roc_curve_agrees_with_scikit_learn(cases):
    labels, scores = arrays(cases)
    false_rate, true_rate = roc_points(labels, scores)
    if not 0 < labels.sum() < len(labels):
        assert len(false_rate) == len(true_rate) == 0
        return
    expected = reference.roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(false_rate, expected[0])
    assert np.allclose(true_rate, expected[1])


def test_auc_counts_a_tie_half():
    assert gene_metrics(np.array([1, 0, 0]), np.array([0.5, 0.5, 0.2]), resamples=0).auc.value == 0.75


def test_a_probability_of_one_half_is_called_positive():
    assert gene_metrics(np.array([1]), np.array([0.5]), resamples=0).accuracy.value == 1


def test_unknown_labels_take_no_part():
    ours = gene_metrics(np.array([1, -1, 0, -1]), np.array([0.9, 0.0, 0.1, 1.0]), resamples=0)
    assert (ours.n, ours.positives, ours.unknown) == (2, 1, 2)
    assert ours.accuracy.value == 1


def test_one_class_only_gives_no_auc_and_says_why():
    ours = gene_metrics(np.array([0, 0, 0]), np.array([0.1, 0.2, 0.9]))
    assert ours.auc.value is None
    assert ours.auc.reason == "one class only: none of the 3 known cases is positive"
    assert ours.sensitivity.value is None
    assert ours.sensitivity.reason == "none of the 3 known cases is positive"
    assert ours.specificity.value == pytest.approx(2 / 3)
    only_mutants = gene_metrics(np.array([1, 1]), np.array([0.1, 0.2]))
    assert only_mutants.auc.reason == "one class only: all 2 known cases are positive"


def test_no_known_label_gives_no_number_at_all():
    ours = gene_metrics(np.array([-1, -1]), np.array([0.1, 0.2]))
    measures = (ours.auc, ours.accuracy, ours.majority, ours.sensitivity, ours.specificity, ours.log_loss)
    assert all(m.value is None and m.reason == "no case with a known label" for m in measures)
    assert ours.caution == "no patient has a known status"


def test_majority_stands_beside_the_accuracy():
    ours = gene_metrics(np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.6, 0.7]))
    assert ours.accuracy.value == 0.5
    assert ours.majority.value == 0.75
    assert ours.gain.value == -0.25


def test_log_loss_of_a_certain_mistake_is_finite():
    assert gene_metrics(np.array([1]), np.array([0.0]), resamples=0).log_loss.value == pytest.approx(
        -np.log(1e-7)
    )


def test_few_patients_are_called_few():
    labels = np.array([1] * 9 + [0] * 91)
    assert gene_metrics(labels, np.linspace(0, 1, 100)).caution == (
        "100 patients with a known status, 9 in the rarer class"
    )
    assert gene_metrics(np.array([1]), np.array([0.5])).caution == (
        "1 patient with a known status, 0 in the rarer class"
    )


def test_a_wide_interval_is_called_wide_and_a_good_one_is_not():
    labels = np.array([1] * 12 + [0] * 24)
    noise = np.random.default_rng(0).random(36)
    assert "AUC's interval" in (gene_metrics(labels, noise).caution or "")
    many = np.array([0, 1] * 100)
    assert gene_metrics(many, 0.4 * many + 0.6 * np.random.default_rng(0).random(200)).caution is None


def test_many_visits_of_few_patients_are_few_patients():
    labels = np.tile([0, 1], 50)
    ours = gene_metrics(labels, np.linspace(0, 1, 100), np.tile(np.arange(4), 25))
    assert (ours.n, ours.n_patients) == (100, 4)
    assert ours.caution == "4 patients with a known status, 2 in the rarer class"


def test_metrics_raise_no_warning_on_the_smallest_tables():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(3):
            gene_metrics(np.ones(n, dtype=np.int64), np.full(n, 0.3))
