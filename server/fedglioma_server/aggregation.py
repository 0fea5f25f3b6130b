"""Pure means over flat arrays, in a fixed order of summation."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedglioma.errors import AggregationError
from fedglioma.weights import GROUPS, FlatArrays

CHUNK = 1 << 20
"""Numbers summed at a time, so that the float64 sums need no second copy of the model."""


def weighted_mean(
    updates: Sequence[tuple[FlatArrays, Mapping[str, float]]], previous: FlatArrays
) -> FlatArrays:
    """Return the weighted mean of the sites' arrays, group by group (McMahan et al. 2017, algorithm 1).

    Sums run in float64 in the order given, so that the same updates in the same order give the same bits.
    A group that no site has a weight for stays as it was, to the bit.

    Parameters
    ----------
    updates : sequence of (arrays, weights)
        Flat float32 arrays per group, and the site's weight per group (labelled cases).
    previous : arrays
        The global weights that the updates started from.

    Raises
    ------
    AggregationError
        A weight is negative or not finite, or an array has another shape than before.
    """
    result: FlatArrays = {}
    for group in GROUPS:
        weights = [float(site_weights.get(group, 0.0)) for _, site_weights in updates]
        if not all(np.isfinite(weight) and weight >= 0 for weight in weights):
            raise AggregationError(f"group {group}: weights must be finite and not negative, found {weights}")
        arrays = [site_arrays[group] for site_arrays, _ in updates]
        if any(array.shape != previous[group].shape for array in arrays):
            raise AggregationError(f"group {group}: a site's array has another size than the global one")
        total = sum(weights)
        if total == 0:
            result[group] = previous[group]
            continue
        result[group] = _mean(arrays, [weight / total for weight in weights], previous[group])
    return result


def _mean(
    arrays: Sequence[NDArray[np.float32]], shares: Sequence[float], like: NDArray[np.float32]
) -> NDArray[np.float32]:
    used = [(array, share) for array, share in zip(arrays, shares, strict=True) if share > 0]
    mean = np.empty_like(like)
    for start in range(0, like.size, CHUNK):
        part = slice(start, start + CHUNK)
        total = np.zeros(mean[part].shape, np.float64)
        for array, share in used:
            total += share * array[part].astype(np.float64)
        mean[part] = total
    return mean


def update_norm(update: FlatArrays, previous: FlatArrays) -> float:
    """Return the Euclidean length of a site's step over all groups."""
    squares = 0.0
    for group in GROUPS:
        for start in range(0, previous[group].size, CHUNK):
            part = slice(start, start + CHUNK)
            step = update[group][part].astype(np.float64) - previous[group][part]
            squares += float(step @ step)
    return float(np.sqrt(squares))
