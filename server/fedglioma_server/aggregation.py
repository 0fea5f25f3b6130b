"""Many sites' steps into one, part by part, so that memory does not grow with the number of sites.

Every site's step, local - sent, is read in float64 from wherever it lies, in the fixed order of the sites'
names; ``new = float32(sent + step of all)``. The same updates in the same order give the same bits, on any
machine that rounds as IEEE 754 says.

With n sites of weight w_i and steps s_i the weighted mean is off the exact one by at most half a unit in
the last place of the float32 result, plus (n + 2) * 2^-53 * sum(w_i |s_i|) / sum(w_i) + 2^-52 * |sent|
from the arithmetic before that one rounding: for up to six sites at most 2^-50 of the mean magnitude.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedglioma.config.run import Payload
from fedglioma.errors import AggregationError
from fedglioma.machine import usable_cores
from fedglioma.payload import BLOCK, Sliceable, step_part
from fedglioma.weights import GROUPS, FlatArrays

WORK = 1 << 18
"""Numbers in work at a time, over all sites together: 2 MB of float64, which a processor's cache holds."""

MOST_THREADS = 8

Result = TypeVar("Result")

Steps = Sequence[NDArray[np.float64]]
"""A part of each site's step, arrays of one length (numbers,)."""

Rule = Callable[[Steps, NDArray[np.float64]], NDArray[np.float64]]
"""Steps, which it may overwrite, and the sites' weights (sites,) -> the step of all (numbers,)."""


@dataclass(frozen=True)
class Update:
    """A site's update as it travelled, in memory or on disk, and its weight per group."""

    site: str
    weights: Mapping[str, float]
    payload: Payload
    packed: Mapping[str, Sliceable]

    def step(self, group: str, part: slice, sent: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return part of the site's step away from what it was sent."""
        return step_part(self.payload, self.packed[group], sent.size, part, sent)


def combine(updates: Sequence[Update], sent: FlatArrays, rule: Rule) -> FlatArrays:
    """Return the new global weights, group by group.

    Only sites with a weight in a group take part in it; a group that none has a weight for stays as it
    was, to the bit.

    Parameters
    ----------
    updates : sequence of Update
        In the order in which they are to be summed.
    sent : arrays
        The global weights that the updates started from.

    Raises
    ------
    AggregationError
        A weight is negative or not finite, or the result is not finite.
    """
    result: FlatArrays = {}
    for group in GROUPS:
        weights = [float(update.weights.get(group, 0.0)) for update in updates]
        if not all(np.isfinite(weight) and weight >= 0 for weight in weights):
            raise AggregationError(f"group {group}: weights must be finite and not negative, found {weights}")
        used = [update for update, weight in zip(updates, weights, strict=True) if weight > 0]
        if not used:
            result[group] = sent[group]
            continue
        shares = np.array([weight for weight in weights if weight > 0])
        result[group] = _combined(group, used, shares, sent[group], rule)
    return result


def _combined(
    group: str,
    updates: Sequence[Update],
    weights: NDArray[np.float64],
    sent: NDArray[np.float32],
    rule: Rule,
) -> NDArray[np.float32]:
    result = np.empty_like(sent)

    def work(part: slice) -> bool:
        step = rule([update.step(group, part, sent) for update in updates], weights)
        with np.errstate(over="ignore"):
            result[part] = np.add(step, sent[part], out=step)
        return bool(np.isfinite(result[part]).all())

    if not all(_on_all_cores(work, parts(sent.size, len(updates)))):
        raise AggregationError(f"group {group}: the combined weights are not finite numbers")
    return result


def _on_all_cores(work: Callable[[slice], Result], of: Iterator[slice]) -> list[Result]:
    """Return what the work gives for each part, in the order of the parts whoever is done first.

    A part's numbers depend on nothing outside it, so the bits do not depend on how many work on them.
    """
    with ThreadPoolExecutor(min(usable_cores(), MOST_THREADS)) as pool:
        return list(pool.map(work, of))


def parts(size: int, sites: int) -> Iterator[slice]:
    """Yield the parts of an array that are worked on one after the other; shorter with more sites."""
    length = max(WORK // max(sites, 1) // BLOCK, 1) * BLOCK
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def weighted_mean(steps: Steps, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the sites' steps by their weights (McMahan et al. 2017, algorithm 1)."""
    total = np.zeros_like(steps[0])
    for step, weight in zip(steps, weights, strict=True):
        step *= weight
        total += step
    total /= sum(weights.tolist())
    return total


def update_norm(update: Update, sent: FlatArrays) -> float:
    """Return the Euclidean length of a site's step over all groups; not finite where a number is not."""
    squares = 0.0
    for group in GROUPS:
        squares += sum(
            _on_all_cores(partial(_squares, update, group, sent[group]), parts(sent[group].size, 1))
        )
    with np.errstate(invalid="ignore"):
        return float(np.sqrt(squares))


def _squares(update: Update, group: str, sent: NDArray[np.float32], part: slice) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.square(update.step(group, part, sent)).sum())
