import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fedglioma.survival.cox import Covariate, fit_cox
from fedglioma.survival.curves import log_rank


def binary(name, values):
    return Covariate(name, "mutant", "wild-type", np.asarray(values, dtype=np.float64))


def cohort(n=60):
    generator = np.random.default_rng(0)
    mutant = generator.integers(0, 2, n)
    time = generator.exponential(1.0, n) * np.exp(mutant)
    return time, generator.random(n) < 0.8, mutant


def test_hazard_ratio_maximises_the_partial_likelihood():
    time, died, mutant = cohort()

    def minus_log_likelihood(beta):
        risk = np.exp(beta * mutant)
        return -sum(beta * mutant[i] - np.log(risk[time >= time[i]].sum()) for i in np.flatnonzero(died))

    expected = np.exp(minimize_scalar(minus_log_likelihood, bounds=(-5, 5), method="bounded").x)
    (row,) = fit_cox(time, died, [binary("IDH", mutant)]).rows
    assert row.ratio == pytest.approx(expected, rel=1e-4)
    assert row.low < row.ratio < row.high


def test_hazard_ratio_with_ties_is_efrons_of_the_textbook():
    # Leukaemia remissions (see test_survival_curves.py): placebo against treatment 4.82 by Efron's method.
    text = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+ "
    text += "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"
    time = np.array([float(w.rstrip("+")) for w in text.split()])
    died = np.array([not w.endswith("+") for w in text.split()])
    placebo = Covariate("arm", "placebo", "treatment", np.repeat([0.0, 1.0], 21))
    (row,) = fit_cox(time, died, [placebo]).rows
    assert row.ratio == pytest.approx(4.817, abs=1e-3)
    assert (row.low, row.high) == (pytest.approx(2.147, abs=2e-3), pytest.approx(10.81, abs=1e-2))


def test_wald_and_log_rank_agree_roughly_on_a_plain_cohort():
    time, died, mutant = cohort(400)
    (row,) = fit_cox(time, died, [binary("IDH", mutant)]).rows
    test, _ = log_rank(time, died, mutant)
    assert np.log10(row.p) == pytest.approx(np.log10(test.p), rel=0.1)


def test_patients_with_an_unknown_covariate_take_no_part():
    time, died, mutant = cohort()
    age = np.where(np.arange(60) < 10, np.nan, np.linspace(3, 7, 60))
    model = fit_cox(time, died, [binary("IDH", mutant), Covariate("age", "older", "same", age, binary=False)])
    assert (model.n, model.events) == (50, int(died[10:].sum()))
    assert [row.covariate for row in model.rows] == ["IDH", "age"]


def test_few_deaths_for_the_covariates_are_remarked_on():
    time, died, mutant = cohort(60)
    assert fit_cox(time, died, [binary("IDH", mutant)]).caution is None
    few = np.zeros(60, dtype=bool)
    few[:8] = True
    assert fit_cox(time, few, [binary("IDH", mutant)]).caution == "8 deaths for 1 covariate"


def test_proportional_hazards_are_doubted_where_the_effect_reverses():
    # Mutants die late or never, the others all in the middle, after every early mutant death.
    time = np.concatenate([np.linspace(1, 2, 40), np.linspace(8, 9, 40), np.linspace(3, 4, 80)])
    model = fit_cox(time, np.ones(160, dtype=bool), [binary("IDH", np.repeat([1.0, 0.0], 80))])
    assert model.rows[0].ph_p < 1e-4
    time, died, mutant = cohort(300)
    assert fit_cox(time, died, [binary("IDH", mutant)]).rows[0].ph_p > 0.01


@pytest.mark.parametrize(
    ("died", "values", "reason"),
    [
        ([1, 1, 0, 1], [1, 1, 1, 1], "IDH is the same in all 4 patients"),
        ([1, 0, 1, 0], [0, 1, 0, 1], "nobody with IDH mutant died"),
        ([1, 0, 1, 0], [1, 0, 1, 0], "nobody with IDH wild-type died"),
        ([0, 0, 0, 0], [0, 1, 0, 1], "nobody died"),
        ([1, 0, 1, 0], [np.nan] * 4, "no patient has every covariate"),
    ],
)
def test_a_ratio_that_does_not_exist_is_none_with_its_reason(died, values, reason):
    model = fit_cox(np.array([1.0, 2, 3, 4]), np.array(died, dtype=bool), [binary("IDH", values)])
    assert model.rows == ()
    assert reason in model.reason


def test_deaths_that_separate_the_classes_give_no_ratio():
    time = np.arange(1.0, 9)
    model = fit_cox(time, np.ones(8, dtype=bool), [binary("IDH", time <= 4)])
    assert model.rows == ()
    assert model.reason == "the deaths separate the classes: no finite estimate"


def test_covariates_that_determine_each_other_give_no_ratio():
    time, died, mutant = cohort()
    model = fit_cox(time, died, [binary("IDH", mutant), binary("copy", 1 - mutant)])
    assert model.rows == ()
    assert "no finite estimate" in model.reason


def test_a_covariate_without_an_estimate_can_be_spared_and_is_named():
    time, died, mutant = cohort()
    nothing = binary("1p/19q", np.where(np.arange(60) < 30, 0.0, np.nan))
    model = fit_cox(time, died, [binary("IDH", mutant), nothing], spare=True)
    assert [row.covariate for row in model.rows] == ["IDH"]
    assert model.n == 60
    assert model.omitted == ("without 1p/19q, since 1p/19q is the same in all 30 patients",)
    assert fit_cox(time, died, [binary("IDH", mutant), nothing]).rows == ()


@pytest.mark.parametrize("time", [[5.0, 5, 5, 5], [3.0, 5, 5, 5]])
def test_deaths_that_all_fall_on_one_day_give_no_ratio(time):
    died = np.array(time) == 5
    model = fit_cox(np.array(time), died, [binary("IDH", [0, 1, 0, 1])])
    assert model.rows == ()
    assert model.reason is not None
