import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedglioma.case import Modality
from fedglioma.data.fields import Grid
from fedglioma.data.synthetic import FULL_SIZE, Recipe, synthetic_cases
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.errors import ConfigError

SITES = make_sites(("ningxia", "zhengzhou", "henan"))


@pytest.fixture(scope="module")
def cohort():
    return synthetic_cases(60, seed=1)


def describe(case):
    """Return what a radiologist would measure: the tumour's parts, and how bright they are."""
    volumes = [np.log1p((case.mask == label).sum()) for label in (1, 2, 4)]
    lesion = case.image[:, case.mask > 0]
    return [*volumes, *lesion.mean(axis=1), *lesion.std(axis=1)]


def predicted(features, labels):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    return cross_val_predict(model, np.array(features), labels, cv=5, method="predict_proba")[:, 1]


def test_case_has_the_shape_that_the_networks_take(cohort):
    case = cohort[0]
    assert case.image.shape == (4, 32, 32, 32)
    assert case.image.dtype == np.float32
    assert case.mask.shape == (32, 32, 32)


def test_present_channels_are_standardised_and_absent_ones_are_zero(cohort):
    for case in cohort:
        for channel, there in zip(case.image, case.present, strict=True):
            inside = channel[channel != 0]
            assert there == bool(inside.size)
            if there:
                assert (inside.mean(), inside.std()) == pytest.approx((0, 1), abs=1e-3)


def test_channels_stand_in_their_order(cohort):
    complete = [case for case in cohort if all(case.present)]
    flair, t1ce, t1, t2 = np.mean([case.image[:, case.mask > 0].mean(axis=1) for case in complete], axis=0)
    assert min(flair, t2) > max(t1ce, t1)
    ringed = [case.image[:, case.mask == 4].mean(axis=1) for case in complete if 4 in case.mask]
    _, t1ce, t1, _ = np.mean(ringed, axis=0)
    assert t1ce > t1 + 1


def test_genotype_can_be_told_from_the_image(cohort):
    idh = [case.genotype.idh for case in cohort]
    assert roc_auc_score(idh, predicted([describe(case) for case in cohort], idh)) > 0.85


def test_missing_sequences_tell_nothing_about_the_genotype_within_a_site():
    site = SITES[0]
    recipes = Recipe(patients=1, sites=(site,))
    patients = [recipes.sample(number) for number in range(3000)]
    idh = np.array([p.genotype.idh for p in patients])
    without_t1ce = np.array([Modality.T1CE not in site.draw_present(p.seed) for p in patients])
    assert np.corrcoef(idh, without_t1ce)[0, 1] == pytest.approx(0, abs=0.05)


def test_patients_are_dealt_to_the_sites_in_turn(cohort):
    assert [case.site for case in cohort[:4]] == ["ningxia", "zhengzhou", "henan", "ningxia"]


def test_same_seed_gives_the_same_bytes_and_another_seed_other_patients():
    first, again, other = (synthetic_cases(2, size=16, seed=seed) for seed in (5, 5, 6))
    assert [c.image.tobytes() for c in first] == [c.image.tobytes() for c in again]
    assert first[0].image.tobytes() != other[0].image.tobytes()


def test_patient_does_not_depend_on_how_many_others_there_are(cohort):
    few = synthetic_cases(3, seed=1)
    for alone, among in zip(few, cohort, strict=False):
        assert alone.image.tobytes() == among.image.tobytes()
        assert (alone.name, alone.genotype, alone.outcome) == (among.name, among.genotype, among.outcome)


def test_progress_counts_the_patients():
    seen = []
    synthetic_cases(2, size=16, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_full_size_is_the_grid_of_brats():
    assert Recipe(patients=1, sites=SITES, size=FULL_SIZE).grid == Grid.full()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"patients": 0}, "patients: 0"),
        ({"size": 15}, "size: 15"),
        ({"size": 177}, "size: 177"),
        ({"seed": -1}, "seed: -1"),
        ({"overlap": 1.1}, "overlap: 1.1"),
        ({"label_noise": -0.1}, "label_noise: -0.1"),
        ({"unknown_labels": float("nan")}, "unknown_labels: nan"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Recipe(**{"patients": 1, "sites": SITES} | wrong)
