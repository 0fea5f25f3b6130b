"""Strategies whose server takes a step of its own: FedAvgM, FedAdam, FedYogi, with Flower's arithmetic.

The mean of the sites' steps is ours; what the server makes of it is computed by Flower's own classes, part
by part in float32. A group that nobody has a weight for in a round stays as it was, its moments too, and
its clock, which FedAdam's correction of the first rounds follows, does not tick.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from fedglioma.config.run import RunConfig
from fedglioma.errors import ProtocolError
from fedglioma.weights import GROUPS, FlatArrays
from fedglioma_server.aggregation import Update, combine, parts, weighted_mean
from fedglioma_server.combiner import Combined, Combiner, ServerState

_KEY = "part"

Floats = NDArray[np.float32]


class _MeanGiven(flower.FedAvg):
    """Flower's FedAvg with the mean handed in; a strategy before it in the bases steps from there."""

    mean: ArrayRecord

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean."""
        return self.mean, None


class _AvgM(flower.FedAvgM, _MeanGiven):
    pass


class _Adam(flower.FedAdam, _MeanGiven):
    pass


class _Yogi(flower.FedYogi, _MeanGiven):
    pass


class ServerOptimizer(Combiner, ABC):
    """The mean, and then a step of the server with moments that it remembers."""

    moments: ClassVar[tuple[str, ...]]

    def __init__(self, settings: RunConfig) -> None:
        super().__init__(settings)
        self._state = ServerState()

    def combine(self, updates: Sequence[Update], sent: FlatArrays) -> Combined:
        """Return the weights after the server's step."""
        self.require(len(updates))
        arrays = combine(updates, sent, weighted_mean)
        for group in GROUPS:
            if any(update.weights.get(group, 0.0) > 0 for update in updates):
                self._move(group, sent[group], arrays[group])
        return Combined(arrays)

    def _move(self, group: str, sent: Floats, mean: Floats) -> None:
        """Turn the mean into the group's new weights, in place."""
        self._state.counts[group] = self._state.counts.get(group, 0) + 1
        moments = [
            self._state.tensors.setdefault(f"{name}.{group}", np.zeros_like(sent)) for name in self.moments
        ]
        for part in parts(sent.size, 1):
            mean[part] = self.step(
                sent[part], mean[part], [moment[part] for moment in moments], self._state.counts[group]
            )

    @abstractmethod
    def step(self, sent: Floats, mean: Floats, moments: Sequence[Floats], count: int) -> Floats:
        """Return new weights for a part of a group, and bring its moments up to date in place."""

    def state(self) -> ServerState | None:
        """Return moments and clocks."""
        return self._state

    def restore(self, state: ServerState | None) -> None:
        """Take up moments and clocks."""
        if state is None:
            raise ProtocolError(f"strategy {self.settings.strategy}: its moments were not saved")
        names = {f"{moment}.{group}" for moment in self.moments for group in state.counts}
        if set(state.tensors) != names:
            raise ProtocolError(f"strategy {self.settings.strategy}: the saved moments are of another one")
        self._state = state


class FedAvgM(ServerOptimizer):
    """Gradient descent with momentum on the mean step (Hsu et al. 2019)."""

    moments = ("momentum",)

    def step(self, sent: Floats, mean: Floats, moments: Sequence[Floats], count: int) -> Floats:
        """Return new weights for a part of a group."""
        flowers = _AvgM(
            server_learning_rate=self.settings.server_learning_rate,
            server_momentum=self.settings.server_momentum,
        )
        flowers.mean = ArrayRecord({_KEY: Array(mean)})
        flowers.current_arrays = ArrayRecord({_KEY: Array(sent)})
        flowers.momentum_vector = None if count == 1 else [moments[0]]
        found, _ = flowers.aggregate_train(count, [])
        if flowers.momentum_vector is not None:
            moments[0][...] = flowers.momentum_vector[0]
        return _numbers(found)


class FedAdam(ServerOptimizer):
    """Adam on the mean step (Reddi et al. 2021, algorithm 2)."""

    moments = ("m", "v")
    flowers: ClassVar[type[_Adam | _Yogi]] = _Adam

    def step(self, sent: Floats, mean: Floats, moments: Sequence[Floats], count: int) -> Floats:
        """Return new weights for a part of a group."""
        settings = self.settings
        flowers = self.flowers(
            eta=settings.server_learning_rate,
            beta_1=settings.beta_1,
            beta_2=settings.beta_2,
            tau=settings.tau,
        )
        flowers.mean = ArrayRecord({_KEY: Array(mean)})
        flowers.current_arrays = {_KEY: sent}
        flowers.m_t, flowers.v_t = {_KEY: moments[0]}, {_KEY: moments[1]}
        found, _ = flowers.aggregate_train(count, [])
        moments[0][...], moments[1][...] = flowers.m_t[_KEY], flowers.v_t[_KEY]
        return _numbers(found)


class FedYogi(FedAdam):
    """Yogi on the mean step (Reddi et al. 2021, algorithm 2)."""

    flowers = _Yogi


def _numbers(record: ArrayRecord | None) -> Floats:
    if record is None:
        raise ProtocolError("Flower's strategy returned no weights")
    return np.asarray(record[_KEY].numpy(), np.float32)
