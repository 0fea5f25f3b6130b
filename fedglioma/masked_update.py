"""What goes into a masked sum: a site's weighted step and its weights, or its counts, in agreed ranges.

The server divides the sum of the weighted steps by that of the weights, so that it needs nobody's weight by
itself. A weight is told as the site's share of what all sites' weights add up to, and a step times it is
never longer than the step.

Each group is a sum of its own: where one site alone had a weight in it, it would be that site's step. So the
server names a total only of groups to which ``FEWEST_SITES`` sites add; to any other a site adds zeros.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedglioma.errors import PrivacyError
from fedglioma.pooled import LANDMARKS, LENGTH
from fedglioma.privacy.fixed_point import Part, Words, decode_parts, encode_parts
from fedglioma.weights import GROUPS, TRUNK, FlatArrays, Packed

MOST_SHARE: Final = 4.0
"""A site that joins late has a share of what the others' weights add up to, which may be above 1."""
MOST_OWN: Final = 0.95
"""A site whose share of a group is above it takes no part: the sum would be nearly its own step."""
COUNTS_RANGE: Final = 2.0**21
LANDMARKS_RANGE: Final = 2.0**26
"""Whole numbers up to these are exact in a sum of up to 32 sites: of a million cases, and of the landmarks of
ten thousand."""


def update_parts(sizes: Mapping[str, int], largest: float) -> tuple[Part, ...]:
    """Return the parts of a masked update: of each group its weighted step, and behind it its weight.

    Parameters
    ----------
    sizes : mapping
        Numbers of each group.
    largest : float
        The largest weighted change of one number that fits.
    """
    parts = []
    for group in GROUPS:
        parts.append(Part(name=group, size=sizes[group], range=largest))
        parts.append(Part(name=f"{group} weight", size=1, range=MOST_SHARE))
    return tuple(parts)


def statistics_parts() -> tuple[Part, ...]:
    """Return the parts of a site's masked numbers (``pooled.py``): counts, and sums of landmarks."""
    return (
        Part(name="counts", size=LENGTH - LANDMARKS, range=COUNTS_RANGE),
        Part(name="landmarks", size=LANDMARKS, range=LANDMARKS_RANGE),
    )


def subject(purpose: str, run: str, round_number: int) -> str:
    """Return what a masked sum is of; of one subject a site helps to unmask one set of sites alone."""
    return f"{purpose}:{hashlib.sha256(run.encode()).hexdigest()[:32]}:{round_number}"


def coded_update(
    local: FlatArrays,
    received: FlatArrays,
    weights: Mapping[str, float],
    totals: Mapping[str, float],
    parts: tuple[Part, ...],
    sites: int,
) -> Words:
    """Return a site's update as one vector of whole numbers, ready to be masked.

    Parameters
    ----------
    local, received : arrays
        Weights after and before training.
    weights, totals : mapping
        Per group: the site's aggregation weight, and that of all sites (``shares``).
    parts, sites
        What was agreed on, and of how many sites at most.

    Raises
    ------
    PrivacyError
        The sum would be nearly this site's step.
    ProtocolError
        A number is outside its range.
    Diverged
        A step is not a finite number.
    """
    numbers: dict[str, NDArray[np.float32]] = {}
    for group, share in shares(weights, totals).items():
        step = np.subtract(local[group], received[group])
        step *= np.float32(share)
        numbers[group] = step
        numbers[f"{group} weight"] = np.array([share], np.float32)
    return encode_parts(parts, sites, numbers)


def shares(weights: Mapping[str, float], totals: Mapping[str, float]) -> dict[str, float]:
    """Return per group the site's share of what all sites' weights add up to; 0 where nothing is summed.

    A site that is nearly alone in a group refuses, and does not stay in the sum with zeros: by the total that
    it names, the server would choose who is silent, and could tell one step from two sums of the same sites.

    Raises
    ------
    PrivacyError
        A group's sum would be nearly this site's step.
    """
    found = {}
    for group in GROUPS:
        weight, total = weights.get(group, 0.0), totals.get(group, 0.0)
        if nearly_alone(weight, total) or (group == TRUNK and weight > 0 and not total > 0):
            raise PrivacyError(
                "secure sum: by the server's totals this hospital has nearly all cases of the run, or of one "
                "head, so that the sum would be nearly its own update; masks cannot hide it, and it takes no "
                "part"
            )
        found[group] = weight / total if weight > 0 and total > 0 else 0.0
    return found


def nearly_alone(weight: float, total: float) -> bool:
    """Return whether a group's sum would be nearly one site's step."""
    # Of a site that joined late the total has nothing, and the share may be above 1.
    return weight > 0 and total > 0 and MOST_OWN < weight / total <= 1


def by_group(vector: Words, parts: tuple[Part, ...]) -> Packed:
    """Return a vector as it travels: one array a group, its weight last; views, nothing is copied."""
    packed: Packed = {}
    start = 0
    for group, part in zip(GROUPS, parts[::2], strict=True):
        packed[group] = vector[start : start + part.size + 1]
        start += part.size + 1
    return packed


def one_vector(packed: Packed) -> Words:
    """Return what travelled as one vector."""
    return np.concatenate([packed[group] for group in GROUPS])


def moved(
    sent: FlatArrays, total: Words, parts: tuple[Part, ...], sites: int, count: int
) -> tuple[FlatArrays, dict[str, float]]:
    """Return the weights moved by the weighted mean of ``count`` sites' steps, and what their shares sum to.

    A group that none of them has a weight for stays as it was, to the bit.

    Raises
    ------
    AggregationError
        The sums are not those of numbers inside the agreed ranges.
    """
    sums = decode_parts(parts, sites, total, count)
    shares = {group: float(sums[f"{group} weight"][0]) for group in GROUPS}
    arrays = {
        group: (sent[group] + sums[group] / share).astype(np.float32) if share > 0 else sent[group].copy()
        for group, share in shares.items()
    }
    return arrays, shares


def coded_statistics(numbers: NDArray[np.int64], sites: int) -> Words:
    """Return a site's numbers as a vector of whole numbers modulo 2^32, ready to be masked.

    Raises
    ------
    ProtocolError
        More cases than such a sum is made for.
    """
    counts, landmarks = np.split(numbers.astype(np.float64), [LENGTH - LANDMARKS])
    return encode_parts(statistics_parts(), sites, {"counts": counts, "landmarks": landmarks})


def summed_statistics(total: Words, sites: int, count: int) -> NDArray[np.int64]:
    """Return the sum of ``count`` sites' numbers.

    Raises
    ------
    AggregationError
        The sums are not those of numbers inside the agreed ranges.
    """
    sums = decode_parts(statistics_parts(), sites, total, count)
    numbers: NDArray[np.int64] = np.rint(np.concatenate([sums["counts"], sums["landmarks"]])).astype(np.int64)
    return numbers
