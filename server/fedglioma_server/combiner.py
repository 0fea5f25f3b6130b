"""How a round's updates become the new weights: the part of a strategy that the coordinator computes.

The mean stands here; ``robust.py`` and ``server_optimizers.py`` override what differs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedglioma.config.run import RunConfig
from fedglioma.errors import AggregationError, ProtocolError
from fedglioma.weights import FlatArrays
from fedglioma_server.aggregation import Update, combine, weighted_mean


@dataclass
class ServerState:
    """What a strategy remembers between rounds: arrays by name, and how often each group was moved."""

    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return sha256 over names, arrays and counts."""
        digest = hashlib.sha256(json.dumps([sorted(self.tensors), sorted(self.counts.items())]).encode())
        for name in sorted(self.tensors):
            digest.update(np.ascontiguousarray(self.tensors[name]).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Combined:
    """The new global weights, and which sites' updates the strategy chose not to use."""

    arrays: FlatArrays
    passed_over: tuple[str, ...] = ()


class Combiner:
    """The mean of the sites' steps by labelled cases (McMahan et al. 2017).

    Also FedProx's and FedBN's: what differs there happens at the sites.
    """

    def __init__(self, settings: RunConfig) -> None:
        self.settings = settings

    def least(self) -> int:
        """Return how many updates the strategy needs to keep its promise."""
        return 1

    def quorum(self) -> int:
        """Return how many usable updates a round needs: the agreed quorum, or more for the strategy."""
        return max(self.settings.quorum, self.least())

    def combine(self, updates: Sequence[Update], sent: FlatArrays) -> Combined:
        """Return the new weights, from updates in the order of the sites' names.

        Raises
        ------
        AggregationError
            There are too few updates, or the result is not finite.
        """
        self.require(len(updates))
        return Combined(combine(updates, sent, weighted_mean))

    def require(self, updates: int) -> None:
        """Raise ``AggregationError`` where there are fewer updates than ``least``."""
        if updates < self.least():
            raise AggregationError(
                f"{self.settings.strategy}: {updates} updates, at least {self.least()} are needed"
            )

    def state(self) -> ServerState | None:
        """Return what must be saved with the weights; None where nothing is remembered."""
        return None

    def restore(self, state: ServerState | None) -> None:
        """Take up what was saved.

        Raises
        ------
        ProtocolError
            It is absent where the strategy remembers something, or there where it does not.
        """
        if state is not None:
            raise ProtocolError(f"strategy {self.settings.strategy}: remembers nothing, a state was saved")
