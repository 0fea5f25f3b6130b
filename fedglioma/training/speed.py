"""How a network is run: layout in memory, activations kept or computed twice, compiled, repeatable."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedglioma.errors import ConfigError
from fedglioma.training.learner import Objective


def tuned(
    objective: Objective, *, channels_last: bool = False, checkpointing: bool = False, compiled: bool = False
) -> nn.Module:
    """Return the objective as it is to be run; its parameters are the same objects as before.

    Parameters
    ----------
    channels_last : bool
        Weights of convolutions with the channels as the last axis in memory: their values stay.
    checkpointing : bool
        Activations inside the network's blocks are dropped and computed again in the backward pass.
    compiled : bool
        ``torch.compile``; the first step takes a minute or more.

    Raises
    ------
    ConfigError
        The network has no blocks to recompute.
    """
    if channels_last:
        objective.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if checkpointing:
        blocks: tuple[nn.Module, ...] = getattr(objective.model, "checkpointed", ())
        if not blocks:
            raise ConfigError("checkpointing: this network has no blocks for it; switch it off")
        for block in blocks:
            # On the instance: a wrapping module would rename the parameters, which are exchanged by name.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if compiled:
        objective.compile()
    return objective


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Choose operations that give the same bits every time, where torch has such; it warns of the others."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark
