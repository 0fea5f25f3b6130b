"""The ledger run by run, and round by round: steps, terms, and what everything cost until then."""

import math
from collections.abc import Sequence
from typing import Final

from fedglioma.case import Frozen
from fedglioma.privacy.accounting import Mechanism
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import UPDATE, About, Budget, Release


class RunSummary(Frozen):
    """What one run cost this site's patients."""

    run: str
    rounds: tuple[int, ...]
    """Rounds whose update was committed, each once."""
    updates: int
    """Updates that were committed: more than rounds where one had to be made again."""
    releases: int
    """All that was committed, counts and landmarks too."""
    open: int
    steps: int
    mechanisms: tuple[Mechanism, ...]
    """Those of the updates, equal ones as one."""
    about: About
    """What the last update said of itself, as the clip."""
    first: str
    last: str
    patients: int
    """The most who were in one release."""
    epsilon: float
    """Of this run alone, of the patient who lost most by it; infinite is possible."""
    cumulative: float
    """Of everything until this run's last release."""


def runs_of(ledger: Ledger, limit: Budget) -> tuple[RunSummary, ...]:
    """Return the runs of a ledger, in the order of their first lines, at the limit's delta and accountant.

    Raises
    ------
    PrivacyError
        The ledger is not as it was written.
    """
    standing = [release for release in ledger.entries() if not release.voided]
    names = dict.fromkeys(release.key.run for release in standing)
    return tuple(_summary(ledger, standing, name, limit) for name in names)


class RoundSpending(Frozen):
    """What is spent of the patient who lost most after a round's update left.

    ``cumulative`` is of everything in the ledger until then; infinite is possible. ``at_most`` is whether it
    is a bound from above: of many rounds the accountant ``prv``, which takes its time, is asked of some.
    """

    run: str
    round: int
    attempt: int
    cumulative: float
    at_most: bool


MOST_EXACT: Final = 40


def rounds_of(ledger: Ledger, limit: Budget) -> tuple[RoundSpending, ...]:
    """Return what was spent by the end of each round, in the order in which updates were reserved.

    Between rounds of which the accountant ``prv`` is asked stands the smaller of what it says of the next of
    them and of what ``rdp``, which is quick, says of the round itself.

    Raises
    ------
    PrivacyError
        The ledger is not as it was written.
    """
    standing = [release for release in ledger.entries() if not release.voided]
    ends = [n for n, one in enumerate(standing) if one.key.what == UPDATE and one.committed is not None]
    exact = _spread(len(ends)) if limit.accountant == "prv" else set(range(len(ends)))
    found: list[RoundSpending] = []
    later = math.inf
    for number in reversed(range(len(ends))):
        key, until = standing[ends[number]].key, standing[: ends[number] + 1]
        if number in exact:
            later = epsilon = ledger.epsilon_of(until, limit.delta, limit.accountant)
        else:
            epsilon = min(later, ledger.epsilon_of(until, limit.delta, "rdp"))
        found.append(
            RoundSpending(
                run=key.run,
                round=key.round,
                attempt=key.attempt,
                cumulative=epsilon,
                at_most=number not in exact,
            )
        )
    return tuple(reversed(found))


def _spread(count: int) -> set[int]:
    """Return at most so many places as are worked out exactly, evenly from the first to the last."""
    if count <= MOST_EXACT:
        return set(range(count))
    return {round(step * (count - 1) / (MOST_EXACT - 1)) for step in range(MOST_EXACT)}


def _summary(ledger: Ledger, standing: Sequence[Release], name: str, limit: Budget) -> RunSummary:
    own = [release for release in standing if release.key.run == name]
    updates = [r for r in own if r.key.what == UPDATE and r.committed is not None]
    until = [release for release in standing if release.seq <= own[-1].seq]
    merged = merge([mechanism for release in updates for mechanism in release.reserved.mechanisms])
    return RunSummary(
        run=name,
        rounds=tuple(sorted({release.key.round for release in updates})),
        updates=len(updates),
        releases=sum(release.committed is not None for release in own),
        open=sum(release.open for release in own),
        steps=sum(mechanism.steps for mechanism in merged),
        mechanisms=merged,
        about=updates[-1].reserved.about if updates else {},
        first=own[0].time,
        last=own[-1].time,
        patients=max(release.reserved.patients for release in own),
        epsilon=ledger.epsilon_of(own, limit.delta, limit.accountant),
        cumulative=ledger.epsilon_of(until, limit.delta, limit.accountant),
    )


def merge(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Return mechanisms with the same noise and rate as one, in the order of their first appearance."""
    steps: dict[tuple[float, float], int] = {}
    for one in mechanisms:
        terms = (one.noise_multiplier, one.sampling_rate)
        steps[terms] = steps.get(terms, 0) + one.steps
    return tuple(
        Mechanism(noise_multiplier=noise, sampling_rate=rate, steps=count)
        for (noise, rate), count in steps.items()
    )
