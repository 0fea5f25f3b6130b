"""What is spent of the patient who lost most: releases composed over each patient's own part in them."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from fedglioma.privacy.accounting import Mechanism, epsilon_of
from fedglioma.privacy.ledger_entries import Budget, Release

History = tuple[Mechanism, ...]
MOST_ROUNDS = 100_000


def histories(
    releases: Sequence[Release], sets: Mapping[str, Collection[str]], members: Collection[str] | None
) -> list[History]:
    """Return what was done with each group of patients who were in the same releases.

    Parameters
    ----------
    releases : sequence of Release
        Those that count.
    sets : mapping
        The tags of each release's patients, by the set's digest.
    members : collection of tags or None
        Of whom; None for everybody who was ever in a release. Groups who were in fewer releases than
        another group, and in no other, are left out: they lost less.
    """
    part: defaultdict[str, set[str]] = defaultdict(set)
    for digest in {release.reserved.members for release in releases}:
        for tag in sets[digest] if members is None else set(members).intersection(sets[digest]):
            part[tag].add(digest)
    groups = {frozenset(group) for group in part.values()}
    most = [group for group in groups if not any(group < other for other in groups)]
    return [
        tuple(
            mechanism
            for release in releases
            if release.reserved.members in group
            for mechanism in release.reserved.mechanisms
        )
        for group in most
    ]


def worst(found: Sequence[History], more: Sequence[Mechanism], limit: Budget) -> float:
    """Return the largest epsilon of the histories, each with ``more`` after it, at the limit's delta."""
    return max(epsilon_of((*history, *more), limit.delta, limit.accountant) for history in found or [()])


def rounds_left(found: Sequence[History], more: Sequence[Mechanism], limit: Budget) -> int:
    """Return how often ``more`` can be done before the limit, at most 100,000 times."""
    if math.isinf(limit.epsilon):
        return MOST_ROUNDS

    def fits(times: int) -> bool:
        many = [one.model_copy(update={"steps": one.steps * times}) for one in more]
        return worst(found, many, limit) <= limit.epsilon

    low, high = 0, 1
    while high < MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, MOST_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
