"""Noise on sums: as much as theory asks for and no more, drawn by a key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fedglioma.errors import PrivacyError
from fedglioma.noise import DELTA, delta_of, keyed_normals, sigma_for


@pytest.mark.parametrize(
    ("epsilon", "delta", "sensitivity", "sigma"),
    [
        (1.0, 1e-5, 1.0, 3.730631634816464),  # published code of Balle and Wang, as diffprivlib has it
        (1.0, 1e-5, 2.0, 2 * 3.730631634816464),
    ],
)
def test_known_amounts_of_noise(epsilon: float, delta: float, sensitivity: float, sigma: float) -> None:
    assert sigma_for(epsilon, sensitivity, delta) == pytest.approx(sigma, rel=1e-10)


def hockey_stick(sigma: float, epsilon: float) -> float:
    """Return delta by its definition: what one normal density has above e^epsilon times the other's."""
    here, there = stats.norm(0, sigma), stats.norm(1, sigma)

    def above(x: float) -> float:
        return max(float(there.pdf(x) - np.exp(epsilon) * here.pdf(x)), 0.0)

    start = 0.5 + epsilon * sigma**2  # where the two are equal
    return float(integrate.quad(above, start, start + 14 * sigma, epsabs=1e-13, limit=200)[0])


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-5, 1e-3])
def test_amount_is_what_the_definition_of_privacy_asks_for(epsilon: float, delta: float) -> None:
    sigma = sigma_for(epsilon, 1.0, delta)
    assert hockey_stick(sigma, epsilon) == pytest.approx(delta, rel=1e-4)
    assert hockey_stick(0.99 * sigma, epsilon) > delta


@given(st.floats(1e-3, 100), st.floats(1e-3, 1e6), st.floats(1e-12, 0.5))
def test_least_noise_is_private_and_a_little_less_is_not(
    epsilon: float, sensitivity: float, delta: float
) -> None:
    sigma = sigma_for(epsilon, sensitivity, delta)
    rounding = 1e-14
    assert delta_of(sigma, epsilon, sensitivity) <= delta * (1 + 1e-6) + rounding
    assert delta_of(sigma * 0.98, epsilon, sensitivity) > delta - rounding


@given(st.floats(0.01, 50), st.floats(0.01, 50))
def test_more_privacy_is_more_noise(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert sigma_for(low, 1.0) >= sigma_for(high, 1.0) > 0


@pytest.mark.parametrize(
    ("epsilon", "sensitivity", "delta"),
    [(0.0, 1.0, DELTA), (-1.0, 1.0, DELTA), (1.0, 0.0, DELTA), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)],
)
def test_amounts_that_mean_nothing_are_refused(epsilon: float, sensitivity: float, delta: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        sigma_for(epsilon, sensitivity, delta)


def test_noise_is_normal_and_no_two_numbers_hang_together() -> None:
    drawn = np.array([keyed_normals(number.to_bytes(32), 12) for number in range(2000)])
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert drawn.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(12)).max() < 0.1


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=64), st.integers(1, 20))
def test_a_key_gives_one_stream_of_finite_numbers(key: bytes, count: int) -> None:
    first = keyed_normals(key, count)
    assert np.array_equal(keyed_normals(key, count + 1)[:count], first)
    assert np.isfinite(first).all()
    assert not np.intersect1d(first, keyed_normals(key + b"\0", count)).size


def test_short_key_is_refused() -> None:
    with pytest.raises(PrivacyError, match="32"):
        keyed_normals(b"short", 1)
