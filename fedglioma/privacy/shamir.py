"""Secrets in shares: any ``threshold`` of them give it back, fewer say nothing at all about it.

A. Shamir, "How to share a secret", Communications of the ACM 22(11), 1979: the secret is the value at 0 of a
random polynomial of degree ``threshold - 1`` over a prime field, a share its value at another point. The
field has 2^521 - 1 elements, a Mersenne prime, so that keys of 256 bits fit whole.

Python's integers take a time that depends on their value: shares are made and joined where nobody else can
measure that.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, islice
from typing import Final

from fedglioma.errors import AggregationError, ProtocolError

PRIME: Final = 2**521 - 1
SHARE_BYTES: Final = 66
_TRIES: Final = 2000
"""Sets of shares that are tried when some of them are wrong."""


def coefficients(seed: bytes, count: int, prime: int = PRIME) -> tuple[int, ...]:
    """Return numbers of the field that follow from a secret seed, and are random to whoever lacks it.

    They are off from uniform by less than 2^-250: 32 bytes more are drawn than the field needs.
    """
    size = (prime.bit_length() + 7) // 8 + 32
    stream = hashlib.shake_256(seed).digest(size * count)
    return tuple(int.from_bytes(stream[i * size : (i + 1) * size], "big") % prime for i in range(count))


def split(secret: int, rest: Sequence[int], points: Sequence[int], prime: int = PRIME) -> dict[int, int]:
    """Return a share of the secret for each point; ``len(rest) + 1`` of them give it back.

    Parameters
    ----------
    secret : int
        0 to prime - 1.
    rest : sequence of int
        The polynomial's other coefficients: fresh, secret and uniform.
    points : sequence of int
        Where the polynomial is taken: distinct, 1 to prime - 1.

    Raises
    ------
    ProtocolError
        A number is outside the field, a point stands twice, or there are fewer points than are needed.
    """
    if not all(0 <= number < prime for number in (secret, *rest)):
        raise ProtocolError("shares: a number lies outside the field")
    if len(set(points)) != len(points) or not all(0 < point < prime for point in points):
        raise ProtocolError("shares: the points must be distinct and above 0")
    if len(points) <= len(rest):
        raise ProtocolError(f"shares: {len(rest) + 1} are needed and only {len(points)} are made")
    return {point: _value((secret, *rest), point, prime) for point in points}


def join(shares: Mapping[int, int], prime: int = PRIME, at: int = 0) -> int:
    """Return the secret, or the polynomial's value at another point, from exactly as many shares as needed.

    With too few shares, or a wrong one, the answer is some number: check what comes back.
    """
    points = tuple(sorted(shares))
    weights = _weights(points, at, prime)
    return sum(shares[point] * weight for point, weight in zip(points, weights, strict=True)) % prime


def join_checked(
    shares: Mapping[int, int], threshold: int, right: Callable[[int], bool]
) -> tuple[int, frozenset[int]]:
    """Return the secret that passes a check, and the points of the shares found to be wrong on the way.

    Shares above the threshold serve to do without wrong ones. Where the first ones pass, the others are not
    looked at. Several wrong shares whose errors cancel out give the right secret too: then who is named is no
    proof against a site.

    Raises
    ------
    AggregationError
        There are too few shares, or no set of them gives a secret that passes.
    """
    if len(shares) < threshold:
        raise AggregationError(f"shares: {len(shares)} came back, {threshold} are needed")
    for number, chosen in enumerate(_sets(tuple(sorted(shares)), threshold)):
        base = {point: shares[point] for point in chosen}
        secret = join(base)
        if right(secret):
            others = () if number == 0 else [point for point in shares if point not in base]
            return secret, frozenset(point for point in others if join(base, at=point) != shares[point])
    raise AggregationError(f"shares: no {threshold} of {len(shares)} give what was announced")


def to_bytes(share: int) -> bytes:
    """Return a share as it travels: 66 bytes, the most significant first."""
    return share.to_bytes(SHARE_BYTES, "big")


def from_bytes(content: bytes) -> int:
    """Return the share in 66 bytes.

    Raises
    ------
    ProtocolError
        The bytes are no share.
    """
    share = int.from_bytes(content, "big")
    if len(content) != SHARE_BYTES or share >= PRIME:
        raise ProtocolError(f"shares: {len(content)} bytes that are no number of the field")
    return share


def _sets(points: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Give sets of ``threshold`` points: the first ones, then without one of them, without two, ..."""

    def each() -> Iterator[tuple[int, ...]]:
        for fewer in range(len(points) - threshold + 1):
            for left_out in combinations(points, fewer):
                yield tuple(point for point in points if point not in left_out)[:threshold]

    return islice(each(), _TRIES)


def _value(polynomial: Sequence[int], point: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % prime
    return value


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...], at: int, prime: int) -> tuple[int, ...]:
    """Return Lagrange's weights of the values at ``points`` for the value at ``at``."""
    weights = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * (at - other) % prime
                below = below * (point - other) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)
