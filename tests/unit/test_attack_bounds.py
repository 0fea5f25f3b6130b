"""What epsilon leaves an attacker, against numerical integration and mechanisms that reach the bound."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fedglioma.attack.bounds import Bound, auc_bound, tpr_bound
from fedglioma.errors import ConfigError
from fedglioma.noise import delta_of

EPSILON = st.floats(0, 12)
DELTA = st.floats(0, 0.2)
RATE = st.floats(0, 1)


@settings(deadline=None, max_examples=60)
@given(EPSILON, DELTA)
def test_largest_auc_is_the_area_under_the_largest_rates(epsilon: float, delta: float) -> None:
    corner = (1 - delta) / (1 + math.exp(epsilon))
    area, _ = quad(lambda a: tpr_bound(a, epsilon, delta), 0, 1, points=[corner, 1 - delta], limit=200)
    assert auc_bound(epsilon, delta) == pytest.approx(area, abs=1e-6)


@settings(deadline=None, max_examples=100)
@given(EPSILON, DELTA, RATE)
def test_largest_rate_keeps_both_inequalities_of_privacy(epsilon: float, delta: float, fpr: float) -> None:
    tpr = tpr_bound(fpr, epsilon, delta)
    assert fpr - 1e-12 <= tpr <= 1
    assert tpr <= math.exp(epsilon) * fpr + delta + 1e-9
    assert (1 - fpr) <= math.exp(epsilon) * (1 - tpr) + delta + 1e-9


def test_randomised_response_reaches_the_bound() -> None:
    epsilon = 1.3
    keep = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert tpr_bound(1 - keep, epsilon, 0.0) == pytest.approx(keep)
    assert auc_bound(epsilon, 0.0) == pytest.approx(0.5 * (1 - keep) * keep + keep * (1 + keep) / 2)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_best_attack_on_a_gaussian_mechanism_stays_within_every_epsilon_of_it(sigma: float) -> None:
    rates = np.linspace(0.001, 0.999, 99)
    best = norm.cdf(norm.ppf(rates) + 1 / sigma)
    for epsilon in (0.1, 1.0, 4.0):
        delta = delta_of(sigma, epsilon, 1.0)
        allowed = np.array([tpr_bound(float(rate), epsilon, delta) for rate in rates])
        assert (best <= allowed + 1e-9).all()
        assert norm.cdf(1 / (sigma * math.sqrt(2))) <= auc_bound(epsilon, delta)


def test_no_privacy_loss_leaves_only_guessing() -> None:
    assert tpr_bound(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert auc_bound(0.0, 0.0) == 0.5


def test_huge_epsilon_allows_everything_without_overflow() -> None:
    assert tpr_bound(1e-3, 5000.0, 0.0) == 1.0
    assert tpr_bound(0.0, 5000.0, 0.25) == 0.25
    assert auc_bound(5000.0, 0.0) == 1.0


@pytest.mark.parametrize(("epsilon", "delta"), [(-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, 1.5)])
def test_what_is_no_privacy_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError, match=r"epsilon|delta"):
        Bound.of(epsilon, delta)


def test_rate_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="false-positive rate"):
        tpr_bound(1.1, 1.0, 0.0)
