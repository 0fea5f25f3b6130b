"""Epsilon against Google's dp-accounting, closed forms and integrals; bounds on attacks by what they mean."""

import itertools
import logging
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from fedglioma.errors import PrivacyError
from fedglioma.privacy.accounting import (
    Mechanism,
    _divergence,
    epsilon_of,
    epsilons_of,
    gaussian_equivalent,
    noise_for,
)
from fedglioma.privacy.tradeoff import delta_curve, largest_auc, largest_tpr

ORDERS = [*(1 + k / 10 for k in range(1, 100)), *range(11, 64), *range(64, 200)]
NEAR_ONE = [1 + 0.02 * 1.1**k for k in range(60)]
GRID = [
    (noise, rate, steps, delta)
    for noise, (rate, (steps, delta)) in itertools.product(
        (0.6, 1.0, 2.0, 4.0),
        itertools.product((0.01, 0.1, 0.5, 1.0), ((1, 1e-5), (100, 1e-3), (5000, 1e-5))),
    )
]
mechanisms = st.builds(
    Mechanism,
    noise_multiplier=st.sampled_from([0.8, 1.0, 1.6, 3.0]),
    sampling_rate=st.sampled_from([0.02, 0.1, 1.0]),
    steps=st.integers(1, 300),
)


def one(noise: float, rate: float = 1.0, steps: int = 1) -> Mechanism:
    return Mechanism(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def google_rdp(parts: list[Mechanism], delta: float) -> float:
    accountant = RdpAccountant(ORDERS)
    for part in parts:
        event: dp_event.DpEvent = dp_event.GaussianDpEvent(part.noise_multiplier)
        if part.sampling_rate < 1:
            event = dp_event.PoissonSampledDpEvent(part.sampling_rate, event)
        accountant.compose(event, part.steps)
    return float(accountant.get_epsilon(delta))


def integrated_divergence(noise: float, rate: float, order: float) -> float:
    """Return one step's Renyi divergence by its definition: log of an integral over the noise."""
    x = np.linspace(-14 * noise - order, 14 * noise + 2 * order, 20_001)
    ratio = (2 * x - 1) / (2 * noise**2)
    if rate < 1:
        ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + ratio)
    logs = order * ratio + stats.norm.logpdf(x, scale=noise)
    return float((special.logsumexp(logs) + math.log(x[1] - x[0])) / (order - 1))


def integrated_rdp(noise: float, rate: float, steps: int, delta: float) -> float:
    """Return epsilon by the conversion of Canonne, Kamath and Steinke 2020, proposition 12."""
    return min(
        steps * integrated_divergence(noise, rate, order)
        + math.log1p(-1 / order)
        - math.log(delta * order) / (order - 1)
        for order in NEAR_ONE
    )


def google_pld(parts: list[Mechanism], delta: float, mesh: float = 1e-3) -> float:
    losses = [
        pld.from_gaussian_mechanism(
            part.noise_multiplier, sampling_prob=part.sampling_rate, value_discretization_interval=mesh
        ).self_compose(part.steps)
        for part in parts
    ]
    whole = losses[0]
    for loss in losses[1:]:
        whole = whole.compose(loss)
    return float(whole.get_epsilon_for_delta(delta))


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Do not hear which orders dp-accounting gives up."""
    logging.getLogger("absl").setLevel(logging.ERROR)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), GRID)
def test_rdp_is_that_of_google_within_one_percent(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    ours = epsilon_of([one(noise, rate, steps)], delta, "rdp")
    # dp-accounting leaves out orders near 1, whose sums are slow, and is too high for large epsilons
    theirs = min(google_rdp([one(noise, rate, steps)], delta), integrated_rdp(noise, rate, steps, delta))
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), GRID)
def test_prv_is_that_of_google_within_five_percent(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    ours = epsilon_of([one(noise, rate, steps)], delta, "prv")
    if math.isinf(ours):
        assert google_rdp([one(noise, rate, steps)], delta) > 300
        return
    mesh = min(max(2e-4, ours / 1000 / math.sqrt(steps)), 0.1)
    theirs = google_pld([one(noise, rate, steps)], delta, mesh) if ours < 300 else ours
    assert ours == pytest.approx(theirs, rel=0.05, abs=0.002)
    assert ours >= theirs * (1 - 1e-4) - 1e-6


def test_different_mechanisms_are_composed_as_google_does() -> None:
    parts = [one(1.1, 0.1, 80), one(2.0, 0.05, 300), one(5.0), one(0.9, 0.02, 40)]
    assert epsilon_of(parts, 1e-5, "prv") == pytest.approx(google_pld(parts, 1e-5), rel=0.02)
    assert epsilon_of(parts, 1e-5, "rdp") == pytest.approx(google_rdp(parts, 1e-5), rel=0.01)


@pytest.mark.parametrize("delta", [1e-8, 1e-10])
def test_small_delta_is_not_lost_in_rounding(delta: float) -> None:
    parts = [one(1.0, 0.05, 500)]
    assert epsilon_of(parts, delta, "prv") == pytest.approx(google_pld(parts, delta, 1e-4), rel=0.05)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.6, 4), st.floats(0.005, 0.95), st.floats(1.05, 12))
def test_divergence_is_the_integral_that_defines_it(noise: float, rate: float, order: float) -> None:
    expected = integrated_divergence(noise, rate, order)
    assert _divergence(noise, rate, order) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_gaussian_mechanisms_alone_have_the_closed_form() -> None:
    """Gaussian privacy: k mechanisms of noise s are one of mu = sqrt(k)/s (Dong, Roth and Su 2022)."""
    for steps, noise, delta in ((1, 1.0, 1e-5), (40, 6.0, 1e-3), (5000, 30.0, 1e-8)):
        mu = math.sqrt(steps) / noise

        def excess(epsilon: float, mu: float = mu, delta: float = delta) -> float:
            upper = stats.norm.cdf(-epsilon / mu + mu / 2)
            return float(upper - math.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2) - delta)

        expected = optimize.brentq(excess, 0, 60)
        assert epsilon_of([one(noise, 1.0, steps)], delta, "prv") == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=6)
@given(st.lists(mechanisms, min_size=1, max_size=3), mechanisms, st.sampled_from(["prv", "rdp"]))
def test_whatever_is_added_never_makes_epsilon_smaller(
    parts: list[Mechanism], more: Mechanism, accountant: str
) -> None:
    before = epsilon_of(parts, 1e-5, accountant)  # type: ignore[arg-type]
    after = epsilon_of([*parts, more], 1e-5, accountant)  # type: ignore[arg-type]
    assert after >= before * (1 - 0.005) - 0.001


@settings(deadline=None, max_examples=6)
@given(mechanisms, st.sampled_from(["prv", "rdp"]))
def test_less_noise_more_sampling_less_delta_cost_more(part: Mechanism, accountant: str) -> None:
    def cost(delta: float = 1e-5, **changed: float) -> float:
        return epsilon_of([part.model_copy(update=changed)], delta, accountant)  # type: ignore[arg-type]

    slack = cost() * (1 - 0.005) - 0.001
    assert cost(noise_multiplier=part.noise_multiplier * 0.8) >= slack
    assert cost(sampling_rate=min(1.0, part.sampling_rate * 1.5)) >= slack
    assert cost(delta=1e-6) >= slack
    assert cost(steps=part.steps * 2) >= slack


@settings(deadline=None, max_examples=5)
@given(st.lists(mechanisms, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_order_and_division_make_no_difference_at_all(parts: list[Mechanism], chance: object) -> None:
    mixed = [*parts]
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    single = [
        part.model_copy(update={"steps": steps})
        for part in mixed
        for steps in ([1, part.steps - 1] if part.steps > 1 else [1])
    ]
    assert epsilon_of(parts, 1e-5, "prv") == epsilon_of(single, 1e-5, "prv")
    assert epsilon_of(parts, 1e-5, "rdp") == epsilon_of(single, 1e-5, "rdp")


def test_nothing_costs_nothing() -> None:
    assert epsilon_of([], 1e-5, "prv") == 0
    assert largest_tpr([], 0.01, "prv") == pytest.approx(0.01, abs=1e-6)
    assert largest_auc([], "prv") == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("delta", [0, 1e-12, 1, 2, float("nan")])
def test_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon_of([one(1)], delta, "prv")


def test_failure_of_one_accountant_is_told_and_no_other_is_asked() -> None:
    with pytest.raises(PrivacyError, match="prv accountant"):
        epsilon_of([one(50.0, 0.001, 10**9)], 1e-5, "prv")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(1.0, 0.1, 200), (3.0, 0.05, 1000), (8.0, 1.0, 10)])
def test_noise_for_a_target_is_the_least_that_keeps_it(
    accountant: str, target: float, rate: float, steps: int
) -> None:
    noise = noise_for(target, 1e-5, rate, steps, accountant)  # type: ignore[arg-type]
    assert round(noise * 10_000) == pytest.approx(noise * 10_000, abs=1e-6)
    assert epsilon_of([one(noise, rate, steps)], 1e-5, accountant) <= target  # type: ignore[arg-type]
    assert epsilon_of([one(noise - 1e-4, rate, steps)], 1e-5, accountant) > target  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0, -1, float("nan"), 1e-6])
def test_target_that_no_noise_reaches_is_refused(target: float) -> None:
    with pytest.raises(PrivacyError, match="target epsilon"):
        noise_for(target, 1e-5, 1.0, 5000, "prv")


def test_noise_of_an_epsilon_has_that_epsilon_as_a_mechanism() -> None:
    for epsilon, delta in ((0.5, 1e-5), (1.0, 1e-5), (8.0, 1e-3)):
        again = epsilon_of([one(gaussian_equivalent(epsilon, delta))], delta, "prv")
        assert again == pytest.approx(epsilon, rel=1e-6)


def test_many_deltas_at_once_are_those_one_by_one() -> None:
    parts, deltas = [one(1.0, 0.1, 100)], [1e-6, 1e-4, 1e-2]
    together = epsilons_of(parts, deltas, "prv")
    apart = [epsilon_of(parts, delta, "prv") for delta in deltas]
    assert together == pytest.approx(apart, rel=0.02)


def test_bound_on_attacks_on_a_gaussian_mechanism_is_just_above_the_best_attack() -> None:
    """The best attack on one Gaussian mechanism has the ROC curve of two normals (Neyman and Pearson)."""
    for noise in (0.7, 1.0, 3.0):
        mu = 1 / noise
        for fpr in (0.001, 0.01, 0.1, 0.5):
            best = stats.norm.sf(stats.norm.isf(fpr) - mu)
            assert best <= largest_tpr([one(noise)], fpr, "prv") <= best * 1.1 + 0.005
        best_area = stats.norm.cdf(mu / math.sqrt(2))
        assert best_area <= largest_auc([one(noise)], "prv") <= best_area + 0.02


def test_attack_of_a_sampled_mechanism_stays_below_the_bound() -> None:
    part, fpr = one(1.0, 0.2), 0.01
    # to say "present" above a threshold is the best attack on one step: the ratio of densities rises
    threshold = stats.norm.isf(fpr)
    reached = 0.8 * fpr + 0.2 * stats.norm.sf(threshold - 1)
    assert reached <= largest_tpr([part], fpr, "prv") <= largest_tpr([part], fpr, "rdp") + 1e-9


def test_area_is_that_below_the_bound_on_rates() -> None:
    part = one(1.2, 0.1, 50)
    rates = np.linspace(0, 1, 401)
    heights = [largest_tpr([part], float(rate), "rdp") for rate in rates]
    assert largest_auc([part], "rdp") == pytest.approx(np.trapezoid(heights, rates), abs=1e-3)


@given(st.floats(allow_nan=True).filter(lambda rate: not 0 <= rate <= 1))
@settings(max_examples=10)
def test_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="false-positive rate"):
        largest_tpr([one(1)], rate, "rdp")


def test_curve_falls() -> None:
    curve = delta_curve([one(1.0, 0.1, 30)], "prv")
    assert all(a[0] >= b[0] - 1e-9 and a[1] < b[1] for a, b in itertools.pairwise(curve))
