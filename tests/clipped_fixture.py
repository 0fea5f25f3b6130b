"""Clipped gradients beside those of patients one at a time, by plain autograd."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedglioma.privacy.clipped import ClippedGradients

Losses = Callable[[slice], Tensor]


class Compared(NamedTuple):
    """Gradients of one model in two ways, by name of the parameter; lengths of the cases' gradients."""

    ours: dict[str, Tensor]
    one_by_one: dict[str, Tensor]
    lengths: Tensor
    expected_lengths: Tensor


def one_at_a_time(model: nn.Module, losses: Losses, cases: int) -> list[dict[str, Tensor]]:
    """Return each case's gradients by plain autograd, in double precision."""
    found = []
    for row in range(cases):
        model.zero_grad(set_to_none=True)
        losses(slice(row, row + 1)).sum().backward()
        found.append(
            {
                name: (torch.zeros_like(p) if p.grad is None else p.grad).double()
                for name, p in model.named_parameters()
                if p.requires_grad
            }
        )
    model.zero_grad(set_to_none=True)
    return found


def length(grads: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))


def clipped_by_hand(each: Sequence[dict[str, Tensor]], clip: float, clipping: str) -> dict[str, Tensor]:
    layers = {name: name.rpartition(".")[0] for name in each[0]}
    total = {name: torch.zeros_like(grad) for name, grad in each[0].items()}
    for grads in each:
        for name, grad in grads.items():
            if clipping == "flat":
                whole, limit = length(grads), clip
            else:
                whole = length({other: g for other, g in grads.items() if layers[other] == layers[name]})
                limit = clip / math.sqrt(len(set(layers.values())))
            total[name] += grad * min(1.0, limit / whole if whole else 1.0)
    return total


def compared(
    model: nn.Module,
    losses: Losses,
    cases: int,
    *,
    clip: float,
    clipping: Any = "flat",
    ghost: bool | None = None,
    each: Sequence[dict[str, Tensor]] | None = None,
) -> Compared:
    each = each or one_at_a_time(model, losses, cases)
    model.zero_grad(set_to_none=True)
    with ClippedGradients(model, clip_norm=clip, clipping=clipping, ghost=ghost) as clipped:
        lengths = clipped.backward(losses(slice(cases)))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = torch.tensor([length(grads) for grads in each], dtype=torch.float64)
    return Compared(ours, clipped_by_hand(each, clip, clipping), lengths, expected)


def assert_same(found: Compared, tolerance: float) -> None:
    torch.testing.assert_close(found.lengths, found.expected_lengths, rtol=tolerance, atol=1e-12)
    assert found.ours.keys() == found.one_by_one.keys()
    for name, expected in found.one_by_one.items():
        apart = float((found.ours[name].double() - expected).norm())
        assert apart <= tolerance * max(float(expected.norm()), 1e-6), name


def small(*, seed: int = 0, **_: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 27, 3)
    )
