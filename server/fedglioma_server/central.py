"""Central differential privacy: the server cuts each hospital's step and adds noise to their mean.

Flower's own wrapper for fixed clipping does it, around its own FedAvg, with two things of ours. It is given
steps about zero, not weights about the global ones, so that the rounding of ``weights + step`` is not part
of what is protected. And its noise, which is numpy's global generator, is drawn from the operating system's
entropy instead: Mersenne Twister can be computed onwards by who sees enough of it.

The unit is a hospital: with everything it has. Two rounds are neighbours when one hospital's step is zero in
one of them; it then moves the sum by ``clip_norm`` at most, and to each number of the mean of n sites noise
of standard deviation ``noise_multiplier * clip_norm / n`` is added (McMahan et al. 2018, "Learning
differentially private recurrent language models"; Geyer et al. 2017). For a hospital that is replaced by any
other the mean moves by twice that: with half the noise multiplier in the accounting the statement is of this
kind. All sites take part in every round, so nothing is gained from sampling, and R rounds of noise
multiplier z are one of z / sqrt(R), exactly.

Not covered: what a site says beside its step (counts, landmarks, losses, seconds), and whether it answered.
Whoever reads the server's memory, or its ``work`` folder while a run is going, sees each step as it came.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from math import isfinite
from typing import Final

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.differential_privacy import compute_stdv
from numpy.typing import NDArray
from scipy.special import ndtri

from fedglioma.config.run import RunConfig
from fedglioma.errors import AggregationError
from fedglioma.weights import GROUPS, FlatArrays, to_record
from fedglioma.wire import TRAIN
from fedglioma_server.aggregation import Update, parts, update_norm
from fedglioma_server.combiner import Combined, Combiner

logger = logging.getLogger(__name__)

FEWEST_SITES: Final = 3
"""Of two hospitals' mean each could take its own part off, and the noise is far above the signal anyway."""
SHORTEST: Final = 1e-12
"""Flower divides by a step's length in float32, which is zero for much shorter ones."""
_GRID: Final = 2.0**-20
"""Of the noise's standard deviation, what the noisy mean is rounded to: its last digits tell nothing."""
_ARRAYS, _METRICS, _WEIGHT = "arrays", "metrics", "weight"

Floats = NDArray[np.float64]


class CentralPrivacy(Combiner):
    """The mean of the sites' clipped steps, every site counting alike, with Gaussian noise on it.

    All groups of weights are one vector: they are clipped together, each site has a part in all of them,
    whether it has labels of a gene or not, and all get noise, also one that nobody has labels for.

    In memory while a round is combined: each site's step as float32, and about ten vectors more, as Flower
    copies (ten sites of 20 million weights: 1.6 GB).
    """

    def __init__(self, settings: RunConfig) -> None:
        super().__init__(settings)

    def least(self) -> int:
        """Return the fewest sites of which a mean is formed."""
        return FEWEST_SITES

    def combine(self, updates: Sequence[Update], sent: FlatArrays) -> Combined:
        """Return the weights moved by the noisy mean of the clipped steps.

        Raises
        ------
        AggregationError
            There are too few updates, one is not made of finite numbers, or the result is not.
        """
        self.require(len(updates))
        wrapper = OwnNoise(
            FedAvg(weighted_by_key=_WEIGHT),
            noise_multiplier=self.settings.noise_multiplier,
            clipping_norm=self.settings.clip_norm,
            num_sampled_clients=len(updates),
        )
        wrapper.current_arrays = to_record({group: np.zeros_like(sent[group]) for group in GROUPS})
        # No name holds the messages: Flower puts the clipped steps in their place, one after the other.
        found, _ = wrapper.aggregate_train(
            1, [_reply(clipped_step(update, sent, self.settings.clip_norm)) for update in updates]
        )
        if found is None:
            raise AggregationError("Flower's private mean has no result; is another version of it installed?")
        result: FlatArrays = {}
        for group in GROUPS:
            with np.errstate(over="ignore"):
                result[group] = sent[group] + found[group].numpy()
            if not np.isfinite(result[group]).all():
                raise AggregationError(f"group {group}: the combined weights are not finite numbers")
        return Combined(result)


class OwnNoise(DifferentialPrivacyServerSideFixedClipping):
    """Flower's wrapper with the same noise from another source."""

    def _add_noise_to_aggregated_arrays(self, aggregated_arrays: ArrayRecord) -> ArrayRecord:
        deviation = compute_stdv(self.noise_multiplier, self.clipping_norm, self.num_sampled_clients)
        return to_record({name: noisy(array.numpy(), deviation) for name, array in aggregated_arrays.items()})


def noisy(numbers: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """Return the numbers (n,) with fresh Gaussian noise, rounded to a millionth of its deviation."""
    grid = deviation * _GRID
    result = np.empty_like(numbers)
    for part in parts(numbers.size, 1):
        summed = numbers[part].astype(np.float64)
        summed += deviation * fresh_normals(summed.size)
        result[part] = np.rint(summed / grid) * grid
    return result


def fresh_normals(count: int) -> Floats:
    """Return standard normal numbers, shape (count,), of which nobody can tell the next.

    SHAKE-256 of 32 bytes of the operating system's entropy, through the normal's quantiles; 52 bits each.
    """
    bits = np.frombuffer(hashlib.shake_256(os.urandom(32)).digest(8 * count), dtype="<u8")
    normals: Floats = ndtri((bits >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53)
    return normals


def clipped_step(update: Update, sent: FlatArrays, clip_norm: float) -> FlatArrays:
    """Return a site's step as float32, cut to a length of ``clip_norm`` over all groups, never quite zero.

    Measured in float64. Flower clips what comes of it again, but measures in float32, where a long step's
    length overflows and that of no step at all is divided by.

    Raises
    ------
    AggregationError
        The step is not made of finite numbers.
    """
    length = update_norm(update, sent)
    if not isfinite(length):
        raise AggregationError(f"{update.site}: the update is not made of finite numbers")
    factor = min(1.0, clip_norm / length) if length else 1.0
    step: FlatArrays = {}
    for group in GROUPS:
        step[group] = np.empty_like(sent[group])
        for part in parts(sent[group].size, 1):
            step[group][part] = factor * update.step(group, part, sent[group])
    if length * factor < SHORTEST:
        first = next(array for array in step.values() if array.size)
        first[0] = SHORTEST
    return step


def _reply(step: FlatArrays) -> Message:
    content = RecordDict({_ARRAYS: to_record(step), _METRICS: MetricRecord({_WEIGHT: 1.0})})
    return Message(content, dst_node_id=1, message_type=TRAIN)
