"""How a network is run: layout in memory, activations kept or computed twice, compiled, repeatable."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedglioma.errors import ConfigError
from fedglioma.training.learner import Objective

_BatchNorm = nn.modules.batchnorm._BatchNorm
_COUNTER = "num_batches_tracked"


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
            # A compiled block does not run twice as Python, so nothing has to be kept from happening twice.
            once = {} if compiled else _norms_once(block)
            # On the instance: a wrapping module would rename the parameters, which are exchanged by name.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, **once)
    if compiled:
        objective.compile()
    return objective


def _norms_once(block: nn.Module) -> dict[str, Any]:
    """Return what keeps a block's running statistics from taking in the same batch twice."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    return {"context_fn": lambda: (nullcontext(), _statistics_kept(norms))} if norms else {}


@contextmanager
def _statistics_kept(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    before = [(norm, norm.momentum, norm.get_buffer(_COUNTER).clone()) for norm in norms]
    # A weight of 0 for the batch: statistics that are not tracked would not be kept for the backward pass.
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum = momentum
            norm.get_buffer(_COUNTER).copy_(batches)


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
