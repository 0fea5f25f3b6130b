"""Strategies that some sites cannot lead astray: median, trimmed mean, Multi-Krum."""

from collections.abc import Sequence
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from fedglioma.weights import GROUPS, FlatArrays
from fedglioma_server.aggregation import Steps, Update, combine, parts, weighted_mean
from fedglioma_server.combiner import Combined, Combiner


class Median(Combiner):
    """The median of the sites' steps, number by number and unweighted (Yin et al. 2018, algorithm 1)."""

    def combine(self, updates: Sequence[Update], sent: FlatArrays) -> Combined:
        """Return the new weights; in each group the sites with a weight there count alike."""
        self.require(len(updates))
        return Combined(combine(updates, sent, median))


class TrimmedMean(Combiner):
    """The unweighted mean without the ``trim`` share of sites at either end (Yin et al. 2018).

    Number by number and group by group; of n sites ``floor(trim * n)`` are cut at each end.
    """

    def least(self) -> int:
        """Return the fewest sites of which at least one is cut at either end."""
        trim = self.settings.trim
        return 1 if trim == 0 else next(number for number in count(1) if int(trim * number) >= 1)

    def combine(self, updates: Sequence[Update], sent: FlatArrays) -> Combined:
        """Return the new weights; in each group the sites with a weight there count alike."""
        self.require(len(updates))
        return Combined(combine(updates, sent, partial(trimmed_mean, trim=self.settings.trim)))


class MultiKrum(Combiner):
    """The weighted mean of the n - f updates that lie closest to others (Blanchard et al. 2017).

    An update's score is the sum of squared distances to its n - f - 2 nearest ones, over all groups, where
    f is ``byzantine``. The guarantee needs n >= 2 f + 3.
    """

    def least(self) -> int:
        """Return 2 f + 3."""
        return 2 * self.settings.byzantine + 3

    def combine(self, updates: Sequence[Update], sent: FlatArrays) -> Combined:
        """Return the new weights and which sites were not chosen."""
        self.require(len(updates))
        chosen = krum_choice(squared_distances(updates, sent), self.settings.byzantine)
        used = [updates[index] for index in chosen]
        left = tuple(update.site for index, update in enumerate(updates) if index not in chosen)
        return Combined(combine(used, sent, weighted_mean), left)


def median(steps: Steps, _weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the middle step of each number; of an even number of sites the mean of the middle two."""
    return np.asarray(np.median(steps, axis=0))


def trimmed_mean(steps: Steps, _weights: NDArray[np.float64], *, trim: float) -> NDArray[np.float64]:
    """Return the mean of each number over the sites that are left between the cut ends."""
    sites = len(steps)
    cut = int(trim * sites)
    return weighted_mean(list(np.sort(steps, axis=0)[cut : sites - cut]), np.ones(sites - 2 * cut))


def squared_distances(updates: Sequence[Update], sent: FlatArrays) -> NDArray[np.float64]:
    """Return the squared distances between the updates, (n, n), over all groups."""
    distances = np.zeros((len(updates), len(updates)))
    for group in GROUPS:
        for part in parts(sent[group].size, len(updates)):
            steps = [update.step(group, part, sent[group]) for update in updates]
            for one in range(len(steps)):
                for other in range(one):
                    distances[one, other] += np.square(steps[one] - steps[other]).sum()
    return distances + distances.T


def krum_choice(distances: NDArray[np.float64], byzantine: int) -> list[int]:
    """Return the n - f updates of the lowest scores, in their own order; ties go to the first."""
    sites = len(distances)
    nearest = [np.sort(np.delete(row, index)) for index, row in enumerate(distances)]
    scores = [float(row[: sites - byzantine - 2].sum()) for row in nearest]
    return sorted(np.argsort(scores, kind="stable")[: sites - byzantine].tolist())
