import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import expit

from fedglioma.errors import ConfigError, DataError
from fedglioma.metrics import simple
from fedglioma.metrics.genotype import gene_metrics
from fedglioma.metrics.segmentation import dice
from fedglioma.metrics.simple import (
    age_probabilities,
    covariate_probabilities,
    majority_probabilities,
    volume_probabilities,
)
from fedglioma.metrics.threshold import best_threshold, segment_by_threshold

NAN = np.nan


def cohort(seed=0, n=60):
    generator = np.random.default_rng(seed)
    age = generator.uniform(20, 80, n)
    labels = (generator.random(n) < expit((50 - age) / 8)).astype(np.int64)
    return age, labels


def penalised(train, labels, asked):
    """Minimise the penalised likelihood directly, standardised by hand."""
    x = (train - train.mean()) / train.std()
    sign = 2 * labels - 1

    def cost(beta):
        return np.logaddexp(0, -sign * (beta[0] + beta[1] * x)).sum() + beta[1] ** 2 / 2

    intercept, slope = minimize(cost, np.zeros(2), method="BFGS", tol=1e-12).x
    return expit(intercept + slope * (asked - train.mean()) / train.std())


def test_majority_is_the_training_share_of_known_labels_and_calls_the_larger_class():
    given_labels = np.array([1, 0, 0, -1, -1, -1, 0])
    probabilities = majority_probabilities(given_labels, 3)
    assert probabilities == pytest.approx([0.25] * 3)
    measured = gene_metrics(np.array([0, 0, 1]), probabilities, resamples=0)
    assert measured.accuracy.value == pytest.approx(2 / 3)
    assert measured.auc.value == 0.5


def test_age_regression_minimises_the_penalised_likelihood():
    age, labels = cohort()
    asked = np.linspace(10, 90, 9)
    ours = age_probabilities(age, labels, asked)
    assert ours == pytest.approx(penalised(age, labels, asked), abs=1e-5)
    assert (np.diff(ours) < 0).all()


def test_two_groups_of_equal_size_follow_the_closed_form():
    # x = -1 and +1 with 3 of 10 and 7 of 10 positive: no intercept, and the slope b solves
    # 20 (expit(b) - 0.7) + b = 0.
    x = np.repeat([-1.0, 1.0], 10)
    labels = np.r_[np.repeat([1, 0], [3, 7]), np.repeat([1, 0], [7, 3])]
    low, high = covariate_probabilities(x, labels, np.array([-1.0, 1.0]))
    slope = np.log(high / (1 - high))
    assert low + high == pytest.approx(1, abs=1e-7)
    assert 20 * (expit(slope) - 0.7) + slope == pytest.approx(0, abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 5))
def test_unit_and_origin_of_age_do_not_matter(scale, shift, seed):
    age, labels = cohort(seed)
    asked = np.array([25.0, 40, NAN, 70])
    changed = age_probabilities(scale * age + shift, labels, scale * asked + shift)
    assert changed == pytest.approx(age_probabilities(age, labels, asked), abs=1e-5)


def test_volume_enters_as_its_logarithm_and_its_unit_does_not_matter():
    volumes, labels = np.exp(cohort()[0] / 20), cohort()[1]
    asked = np.array([1.0, 10, 100])
    ours = volume_probabilities(volumes, labels, asked)
    assert ours == pytest.approx(penalised(np.log(volumes), labels, np.log(asked)), abs=1e-5)
    assert volume_probabilities(1000 * volumes, labels, 1000 * asked) == pytest.approx(ours, abs=1e-5)
    nothing, little = volume_probabilities(volumes, labels, np.array([0.0, simple.SMALLEST_ML]))
    assert nothing == little


def test_swapping_the_classes_swaps_the_probabilities():
    age, labels = cohort()
    asked = np.array([30.0, 60])
    assert age_probabilities(age, 1 - labels, asked) == pytest.approx(
        1 - age_probabilities(age, labels, asked), abs=1e-5
    )


def test_missing_values_become_the_median_of_the_labelled_training_patients():
    age, labels = cohort()
    unlabelled = np.append(labels, [-1, -1])
    known = np.append(age[1:], [1000.0, NAN])
    ours = age_probabilities(np.append(NAN, known), unlabelled, np.array([NAN, 40.0]))
    median = np.median(age[1:])
    filled = np.append(median, age[1:])
    assert ours == pytest.approx(penalised(filled, labels, np.array([median, 40.0])), abs=1e-5)


def test_patients_without_a_label_take_no_part():
    age, labels = cohort()
    asked = np.array([30.0, 60])
    more = age_probabilities(np.append(age, [5.0, 110]), np.append(labels, [-1, -1]), asked)
    assert np.array_equal(more, age_probabilities(age, labels, asked))


def test_a_held_out_patient_does_not_change_the_others_probabilities():
    age, labels = cohort()
    alone = age_probabilities(age, labels, np.array([33.0]))
    among = age_probabilities(age, labels, np.array([33.0, 99, NAN, 1]))
    assert among[0] == alone[0]


@pytest.mark.parametrize(
    ("train", "labels", "share"),
    [
        ([20.0, 50, 60], [1, 1, 1], 1.0),
        ([20.0, 50, 60], [0, -1, 0], 0.0),
        ([NAN, NAN, NAN, NAN], [0, 0, 0, 1], 0.25),
        ([40.0, 40, NAN, 40], [1, 0, 1, 1], 0.75),
    ],
)
def test_one_class_or_no_information_gives_the_majority(train, labels, share):
    ours = covariate_probabilities(np.array(train), np.array(labels), np.array([30.0, NAN]))
    assert ours == pytest.approx([share, share])


def test_separated_classes_keep_probabilities_between_0_and_1():
    ours = covariate_probabilities(np.arange(10.0), np.arange(10) // 5, np.array([-1e6, 0, 9, 1e6]))
    assert np.isfinite(ours).all()
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert 0.01 < ours[1] < 0.5 < ours[2] < 0.99


def test_what_cannot_be_learnt_from_is_refused():
    labels = np.array([0, 1])
    with pytest.raises(DataError, match="no training patient has a known label"):
        age_probabilities(np.zeros(2), np.array([-1, -1]), np.zeros(1))
    with pytest.raises(DataError, match="a tumour volume is negative"):
        volume_probabilities(np.array([1.0, -2]), labels, np.ones(1))
    with pytest.raises(DataError, match="covariate is infinite"):
        age_probabilities(np.array([1.0, np.inf]), labels, np.ones(1))
    with pytest.raises(DataError, match="3 covariates for 2 training labels"):
        age_probabilities(np.zeros(3), labels, np.ones(1))
    assert len(age_probabilities(np.array([1.0, 2]), labels, np.empty(0))) == 0


def test_missing_scikit_learn_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(simple, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"scikit-learn is not installed; run: pip install 'fedglioma\[server\]'"
    ):
        age_probabilities(*cohort(), np.ones(1))


def test_threshold_marks_bright_brain_and_never_the_background():
    flair = np.array([[[0.0, -0.5, 0.5, 1.5]]])
    assert segment_by_threshold(flair, 1).tolist() == [[[False, False, False, True]]]
    assert segment_by_threshold(flair, -1).tolist() == [[[False, True, True, True]]]


FLAIRS = arrays(
    np.float32, (2, 3, 4), elements=st.sampled_from([-1.0, -0.1, 0, 0.1, 0.25, 1, 2.5]).map(np.float32)
)


@settings(deadline=None, max_examples=80)
@given(
    cases=st.lists(st.tuples(FLAIRS, arrays(np.bool_, (2, 3, 4))), min_size=1, max_size=4),
    candidates=st.lists(st.sampled_from([-2.0, -0.1, 0.0, 0.1, 0.3, 1.0, 5.0]), min_size=1, max_size=6),
)
def test_best_threshold_has_the_highest_mean_dice_of_segmentations_made_one_by_one(cases, candidates):
    cases = [(flair, mask) for flair, mask in cases if mask.any()]
    if not cases:
        return
    flairs, masks = zip(*cases, strict=True)

    def mean_dice(threshold):
        return np.mean([dice(segment_by_threshold(f, threshold), m) for f, m in cases])

    chosen = best_threshold(flairs, masks, candidates)
    scores = {threshold: mean_dice(threshold) for threshold in candidates}
    assert scores[chosen] == pytest.approx(max(scores.values()))
    assert all(scores[lower] < scores[chosen] + 1e-12 for lower in scores if lower < chosen)


def test_threshold_of_a_bright_tumour_finds_it():
    generator = np.random.default_rng(0)
    flair = np.zeros((20, 20, 20), dtype=np.float32)
    flair[2:18, 2:18, 2:18] = generator.normal(0, 0.3, (16, 16, 16))
    mask = np.zeros(flair.shape, dtype=np.int8)
    mask[5:10, 5:10, 5:10] = 1
    flair[mask == 1] += 3
    chosen = best_threshold([flair], [mask], np.linspace(-1, 4, 51))
    assert 0.9 < chosen < 2.5
    assert dice(segment_by_threshold(flair, chosen), mask) == 1


def test_threshold_cannot_be_chosen_from_nothing():
    flair, mask = np.ones((2, 2, 2)), np.ones((2, 2, 2))
    for flairs, masks, candidates, message in [
        ([flair], [mask], [], "at least one candidate"),
        ([flair], [mask], [NAN], "numbers only"),
        ([flair], [0 * mask], [0.5], "no training case has an outlined tumour"),
        ([flair], [], [0.5], "0 masks for 1 FLAIR"),
        ([flair], [mask[:1]], [0.5], "mask of shape"),
    ]:
        with pytest.raises(DataError, match=message):
            best_threshold(flairs, masks, candidates)
