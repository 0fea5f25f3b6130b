"""A process's part of every batch, and dropout that leaves out what one process alone would have left out.

One process draws the dropout of a whole batch at once. Of several, each draws it for the whole batch too,
from a generator in the same state, and keeps its own cases' rows: the masks are the same bits on a processor,
and on a GPU of the same kind. The draws are cheap beside the network, and all generators move on alike, also
where a process has no case of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fedglioma.data.dataset import Sample
from fedglioma.errors import ConfigError
from fedglioma.training.fit import Share


@dataclass
class BatchSize:
    """The cases of the batch that is being trained on, over all processes."""

    cases: int = 0


@dataclass(frozen=True)
class Part(Share):
    """A share that remembers how large the batch was of which it took its cases."""

    batch: BatchSize = field(default_factory=BatchSize)

    def of(self, batch: Sample) -> Sample:
        """Return this process's cases of a batch."""
        self.batch.cases = len(batch.genotype)
        return super().of(batch)


class PartDropout(nn.Module):
    """Dropout of this process's cases, as it would be in a network that saw the whole batch.

    Parameters
    ----------
    p : float
        Probability of a zero.
    channels : bool
        Whole channels are left out, not single numbers.
    """

    def __init__(self, p: float, part: Part, *, channels: bool) -> None:
        super().__init__()
        self.p = p
        self.part = part
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the cases, (B, C, ...), after dropout.

        Raises
        ------
        ConfigError
            The first axis of ``x`` is not this process's cases.
        """
        if not self.training or self.p == 0:
            return x
        rank, world, cases = self.part.rank, self.part.world, self.part.batch.cases
        if len(x) != len(range(rank, cases, world)):
            raise ConfigError(
                "processes: this network drops out along another axis than the cases; set processes to 1"
            )
        whole = self._everything(x, cases)
        drawn: Callable[..., Tensor] = F.dropout3d if self.channels else F.dropout
        # A copy: a view would keep the other processes' rows until the backward pass.
        return x * drawn(whole, self.p, training=True)[rank::world].clone()

    def _everything(self, x: Tensor, cases: int) -> Tensor:
        """Return ones in the shape, and with the strides, that the whole batch would have had."""
        if self.channels:
            return x.new_ones((cases, x.shape[1], 1, 1, 1))
        size, strides = prod(x.shape[1:]), x.stride()[1:]
        dense = len(x) > 0 and _covers(x.shape[1:], strides)
        shape = (cases, *x.shape[1:])
        if not dense:
            return x.new_ones(shape)
        return torch.empty_strided(shape, (size, *strides), dtype=x.dtype, device=x.device).fill_(1)


def _covers(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Return whether an array's elements lie side by side in memory, in whatever order of the axes."""
    reached = 1
    for stride, edge in sorted(zip(strides, shape, strict=True)):
        if edge > 1 and stride != reached:
            return False
        reached *= edge
    return True


def share_dropout(network: nn.Module, part: Part) -> None:
    """Replace every dropout layer of a network by one that is the same whatever the number of processes.

    Dropout of attention weights (MDPNet's preset ``reference``) happens inside one fused operation and is not
    reached: there each process draws its own, and the weights differ from one process's within noise.

    Raises
    ------
    ConfigError
        The network has a dropout of a kind that cannot be divided.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _DropoutNd):
                if type(child) not in (nn.Dropout, nn.Dropout3d):
                    raise ConfigError(
                        f"processes: {type(child).__name__} cannot be divided among processes; "
                        "set processes to 1"
                    )
                setattr(module, name, PartDropout(child.p, part, channels=type(child) is nn.Dropout3d))
