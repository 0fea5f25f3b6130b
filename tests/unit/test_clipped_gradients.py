"""Clipped gradients of a step: the bound on one patient, batches, and what is left of the network after."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedglioma.privacy.clipped import ClippedGradients
from tests.clipped_fixture import assert_same, compared, length, small


@settings(deadline=None, max_examples=40)
@given(
    clip=st.floats(1e-6, 1e6),
    scale=st.floats(1e-4, 1e4),
    clipping=st.sampled_from(["flat", "per_layer"]),
    seed=st.integers(0, 100),
)
def test_no_patient_moves_the_sum_by_more_than_the_bound(
    clip: float, scale: float, clipping: Any, seed: int
) -> None:
    model = small(seed=seed)
    with ClippedGradients(model, clip_norm=clip, clipping=clipping) as clipped:
        clipped.backward(scale * model(torch.randn(1, 2, 3, 3, 3)).square().sum(1))
    grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    assert length(grads) <= clip
    if clipping == "per_layer":
        first = {name: grad for name, grad in grads.items() if name.startswith("0.")}
        assert length(first) <= clip / math.sqrt(3)


def test_several_physical_batches_are_one_batch() -> None:
    model, x = small().double(), torch.randn(5, 2, 3, 3, 3, dtype=torch.float64)
    found = []
    for sizes in ((5,), (2, 2, 1), (1, 1, 1, 1, 1), (3, 0, 2)):
        model.zero_grad()
        with ClippedGradients(model, clip_norm=0.5) as clipped:
            lengths = [clipped.backward(model(part).square().sum(1)) for part in x.split(sizes)]
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append(torch.cat((grads, torch.cat(lengths))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-14)


def test_empty_batch_gives_every_trained_parameter_zeros() -> None:
    model = small()
    model[0].bias.requires_grad_(False)
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        lengths = clipped.backward(model(torch.randn(0, 2, 3, 3, 3)).sum(1))
    assert lengths.shape == (0,)
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert not parameter.grad.any()
        else:
            assert parameter.grad is None


def test_empty_batch_takes_nothing_from_the_step() -> None:
    model, x = small(), torch.randn(2, 2, 3, 3, 3)
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        clipped.backward(model(x).sum(1))
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        clipped.backward(model(x[:0]).sum(1))
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


def test_frozen_layers_pass_the_gradient_on_and_are_left_alone() -> None:
    model, x = small(), torch.randn(2, 2, 3, 3, 3)
    model[1].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model.double()
    x = x.double()
    assert_same(compared(model, lambda rows: model(x[rows]).square().sum(1), 2, clip=0.1), 1e-11)
    assert model[1].weight.grad is None
    assert model[4].bias.grad is None


def test_layer_that_no_patient_reached_counts_as_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        clipped.backward(model["used"](torch.randn(2, 3)).sum(1))
    assert not model["unused"].weight.grad.any()
    assert model["used"].weight.grad.any()


@pytest.mark.parametrize("ghost", [True, False])
def test_layer_used_twice_is_right(ghost: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4)).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)

    def losses(rows: slice) -> Tensor:
        out: Tensor = model(torch.tanh(model(x[rows])))
        return out.square().sum((1, 2))

    assert_same(compared(model, losses, 3, clip=0.5, ghost=ghost), 1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("ghost", [None, True, False])
def test_patient_without_a_finite_gradient_counts_as_zero(value: float, ghost: bool | None) -> None:
    model, x = small(), torch.randn(3, 2, 3, 3, 3)
    bad = x.clone()
    bad[1, 0, 0, 0, 0] = value
    grads = []
    for batch, lost in ((x[[0, 2]], 0), (bad, 1)):
        model.zero_grad()
        with ClippedGradients(model, clip_norm=0.1, ghost=ghost) as clipped:
            lengths = clipped.backward(model(batch).square().sum(1))
        assert clipped.not_finite == lost
        assert int((~lengths.isfinite()).sum()) == lost
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for good, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, good, rtol=1e-4, atol=1e-6)


def test_network_is_what_it_was_afterwards() -> None:
    model, x = small(), torch.randn(2, 2, 3, 3, 3)
    keys, before = list(model.state_dict()), model(x)
    inside = ClippedGradients(model, clip_norm=1.0)
    with inside:
        assert list(model.state_dict()) == keys
        torch.testing.assert_close(model(x), before)
        with torch.no_grad():
            torch.testing.assert_close(model(x), before)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(p.requires_grad and not p._backward_hooks for p in model.parameters())
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model[4].parameters())


def test_network_is_what_it_was_after_an_error_inside() -> None:
    model = small()
    with pytest.raises(ZeroDivisionError), ClippedGradients(model, clip_norm=1.0):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())
