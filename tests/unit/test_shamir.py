"""Secrets in shares: enough give them back, fewer say nothing."""

from collections import Counter
from fractions import Fraction
from hashlib import sha256
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedglioma.errors import AggregationError, ProtocolError
from fedglioma.privacy import shamir

secrets = st.integers(0, 2**256 - 1)


@settings(deadline=None, max_examples=40)
@given(secrets, st.integers(2, 9), st.integers(0, 4), st.binary(min_size=32, max_size=32), st.randoms())
def test_any_shares_that_are_enough_give_the_secret_back(secret, threshold, more, seed, random) -> None:  # type: ignore[no-untyped-def]
    points = random.sample(range(1, 200), threshold + more)
    shares = shamir.split(secret, shamir.coefficients(seed, threshold - 1), points)
    chosen = random.sample(points, threshold)
    assert shamir.join({point: shares[point] for point in chosen}) == secret


@pytest.mark.parametrize(
    ("prime", "threshold", "points"), [(5, 2, (1, 2, 3)), (5, 3, (1, 2, 4)), (7, 3, (2, 3, 6))]
)
def test_one_share_too_few_is_equally_likely_with_every_secret(
    prime: int, threshold: int, points: tuple[int, ...]
) -> None:
    for held in combinations(points, threshold - 1):
        views = {
            secret: Counter(
                tuple(shamir.split(secret, rest, points, prime)[point] for point in held)
                for rest in product(range(prime), repeat=threshold - 1)
            )
            for secret in range(prime)
        }
        assert all(view == views[0] for view in views.values())
        assert set(views[0].values()) == {1}
        assert len(views[0]) == prime ** (threshold - 1)


def lagrange_at_zero(shares: dict[int, int]) -> Fraction:
    """Return the polynomial's value at 0 in rational numbers."""
    total = Fraction(0)
    for x, y in shares.items():
        term = Fraction(y)
        for other in shares:
            if other != x:
                term *= Fraction(-other, x - other)
        total += term
    return total


def test_shares_are_the_polynomials_values() -> None:
    shares = shamir.split(1234, (166, 94), (1, 2, 3, 4, 5, 6))  # the example on Wikipedia's page
    assert shares == {1: 1494, 2: 1942, 3: 2578, 4: 3402, 5: 4414, 6: 5614}
    few = {2: 1942, 4: 3402, 5: 4414}
    assert shamir.join(few) == lagrange_at_zero(few) == 1234
    assert shamir.join(few, at=6) == 5614


def test_field_is_one() -> None:
    # Lucas and Lehmer: 2^p - 1 is prime when s_(p-2) is 0, with s_0 = 4 and s_n = s_(n-1)^2 - 2
    s = 4
    for _ in range(521 - 2):
        s = (s * s - 2) % shamir.PRIME
    assert s == 0


def test_coefficients_are_spread_over_the_field() -> None:
    drawn = shamir.coefficients(b"seed", 4000, 7)
    assert stats.chisquare(list(Counter(drawn).values())).pvalue > 1e-3
    large = shamir.coefficients(b"seed", 2000)
    assert stats.kstest([float(Fraction(number, shamir.PRIME)) for number in large], "uniform").pvalue > 1e-3
    assert len(set(large)) == 2000
    assert shamir.coefficients(b"another", 2000) != large


@settings(deadline=None, max_examples=25)
@given(secrets, st.integers(2, 5), st.integers(1, 2), st.data())
def test_wrong_shares_are_done_without_and_named_where_enough_are_right(
    secret: int, threshold: int, wrong: int, data: st.DataObject
) -> None:
    points = tuple(range(1, threshold + wrong + 1))
    shares = shamir.split(secret, shamir.coefficients(b"x", threshold - 1), points)
    forged = data.draw(st.sets(st.sampled_from(points), max_size=wrong))
    for point in forged:
        error = sha256(bytes([point])).digest()  # errors that were chosen could cancel out in the secret
        shares[point] = (shares[point] + int.from_bytes(error, "big")) % shamir.PRIME
    found, named = shamir.join_checked(shares, threshold, lambda number: number == secret)
    assert found == secret
    assert named <= forged
    if forged & set(points[:threshold]):
        assert named == forged


def test_too_few_or_too_many_wrong_shares_give_no_secret() -> None:
    shares = shamir.split(5, (7, 8), (1, 2, 3, 4))
    with pytest.raises(AggregationError, match="2 came back, 3 are needed"):
        shamir.join_checked({1: shares[1], 2: shares[2]}, 3, lambda number: True)
    with pytest.raises(AggregationError, match="no 3 of 4 give what was announced"):
        shamir.join_checked(shares | {1: 0, 2: 0}, 3, lambda number: number == 5)


def test_shares_travel_as_66_bytes_and_nothing_else_is_one() -> None:
    for share in (0, 1, shamir.PRIME - 1):
        assert shamir.from_bytes(shamir.to_bytes(share)) == share
    for content in (b"", bytes(65), bytes(67), shamir.PRIME.to_bytes(66, "big"), b"\xff" * 66):
        with pytest.raises(ProtocolError, match="no number of the field"):
            shamir.from_bytes(content)


@pytest.mark.parametrize(
    ("secret", "rest", "points"),
    [
        (-1, (1,), (1, 2)),
        (shamir.PRIME, (1,), (1, 2)),
        (1, (1,), (0, 1)),
        (1, (1,), (1, 1)),
        (1, (1, 1), (1, 2)),
    ],
)
def test_secret_outside_the_field_or_points_that_give_it_away_are_refused(
    secret: int, rest: tuple[int, ...], points: tuple[int, ...]
) -> None:
    with pytest.raises(ProtocolError, match="shares:"):
        shamir.split(secret, rest, points)
