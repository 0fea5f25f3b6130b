"""Noise on sums: as much as theory asks for and no more, and the same whenever the same is asked."""

import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fedglioma.errors import IdentityError
from fedglioma.noise import DELTA, delta_of, sigma_for, steady_normals
from fedglioma.pseudonym import pseudonym

SECRET = bytes(range(32))


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
    drawn = np.array([steady_normals(SECRET, {"number": number}, 12) for number in range(2000)])
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert drawn.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(12)).max() < 0.1


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.lists(st.integers())), st.integers(1, 20))
def test_same_question_has_the_same_noise(about: dict[str, object], count: int) -> None:
    first = steady_normals(SECRET, about, count)  # type: ignore[arg-type]
    shuffled = dict(reversed(about.items()))
    assert np.array_equal(steady_normals(SECRET, shuffled, count), first)  # type: ignore[arg-type]
    assert np.array_equal(steady_normals(SECRET, about, count + 1)[:count], first)  # type: ignore[arg-type]
    assert np.isfinite(first).all()


def test_another_secret_or_another_value_is_another_noise() -> None:
    first = steady_normals(SECRET, {"sums": [1, 2]}, 4)
    assert not np.intersect1d(first, steady_normals(SECRET[::-1], {"sums": [1, 2]}, 4)).size
    assert not np.intersect1d(first, steady_normals(SECRET, {"sums": [1, 3]}, 4)).size


def test_noise_stays_what_it_is_with_every_version_of_the_libraries() -> None:
    """A changed stream would be a second draw over the same sums: the mean of both tells more."""
    found = steady_normals(SECRET, {"sums": {"t1": [1, -2, 3]}}, 3)
    np.testing.assert_allclose(found, KEPT, rtol=1e-12)


KEPT = [-0.8384054520711185, 0.782054140533493, -0.8187677203170481]


def test_no_patients_id_is_keyed_as_noise_is(monkeypatch: pytest.MonkeyPatch) -> None:
    keyed: list[bytes] = []

    def listen(secret: bytes, text: bytes, kind: object) -> object:
        keyed.append(text)
        return real(secret, text, kind)

    real = hmac.new
    monkeypatch.setattr("hmac.new", listen)
    steady_normals(SECRET, {}, 1)
    pseudonym(SECRET, keyed[0].decode())
    assert keyed[0] != keyed[1]


def test_short_secret_is_refused() -> None:
    with pytest.raises(IdentityError, match="32"):
        steady_normals(b"short", {}, 1)
