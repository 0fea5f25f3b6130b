"""Clipped gradients keep their bound under any weights of a server: overflow, cancellation, tiny numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedglioma.config.run import RunConfig
from fedglioma.privacy.clipped import EXCESS, ClippedGradients
from fedglioma.privacy.optimizer import PrivateOptimizer
from fedglioma.privacy.secret import SecretRandom
from fedglioma.training.learner import EQUAL_COUNTS, Objective, build_learner


def length_after(model: nn.Module) -> float:
    return math.sqrt(
        sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    )


class Tokens(nn.Module):
    """A map of tokens before a norm over them: what all tokens have in common cancels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.InstanceNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.linear(x).transpose(1, 2))
        return normed


class Voxels(nn.Module):
    """A convolution of single voxels before a norm over them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm = nn.InstanceNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x))
        return normed


def clipped(model: nn.Module, x: Tensor, weights: Tensor, clip: float, clipping: str) -> float:
    """Return the length of one case's clipped gradient, over the limit."""
    model.train().zero_grad(set_to_none=True)
    with ClippedGradients(model, clip_norm=clip, clipping=clipping, ghost=True) as context:  # type: ignore[arg-type]
        context.backward((model(x) * weights).flatten(1).sum(1))
    return length_after(model) / clip


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(2, 24),
    level=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    steepness=st.sampled_from([1e-3, 1.0, 1e6, 1e12]),
    clip=st.sampled_from([1e-6, 1.0, 100.0]),
    clipping=st.sampled_from(["flat", "per_layer"]),
    seed=st.integers(0, 2**20),
)
def test_tokens_that_cancel_do_not_pass_the_bound(
    tokens: int, level: float, steepness: float, clip: float, clipping: str, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.full((1, tokens, 48), level) + 1e-4 * torch.randn(1, tokens, 48)
    weights = steepness * torch.randn(1, 32, tokens)
    assert clipped(Tokens(48, 32), x, weights, clip, clipping) <= 1 + EXCESS


@pytest.mark.parametrize("edge", [2, 3])
@pytest.mark.parametrize("level", [1.0, 1e4])
def test_voxels_that_cancel_do_not_pass_the_bound(edge: int, level: float) -> None:
    torch.manual_seed(edge)
    for _ in range(20):
        x = torch.full((1, 32, edge, edge, edge), level)
        assert clipped(Voxels(32), x, 1e6 * torch.randn_like(x), 1e-6, "flat") <= 1 + EXCESS


@pytest.mark.parametrize("scale", [10.0**exponent for exponent in range(14, 39, 2)])
@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_huge_inputs_and_steep_losses_do_not_pass_the_bound(scale: float, clipping: str) -> None:
    torch.manual_seed(1)
    for other in (1e-30, 1e-15, 1.0, 1e6, scale):
        x, weights = scale * torch.rand(1, 8), other * torch.randn(1, 4)
        assert clipped(nn.Linear(8, 4), x, weights, 1.0, clipping) <= 1 + EXCESS


@pytest.mark.parametrize("target", [1e20, 1e30, 1e38, 1.6e44, 2e44, 2.4e44, 2.6e44, 1e46])
def test_head_that_a_server_made_steep_does_not_pass_the_bound(target: float) -> None:
    settings = RunConfig(privacy="site", noise_multiplier=1.0, crop=16, width=1)
    learner = build_learner(settings, EQUAL_COUNTS)
    head, steep = learner.model.heads["idh"], 1e22  # type: ignore[index]
    with torch.no_grad():
        for layer in (head.fc1, head.fc2, head.fc3):
            layer.weight.zero_()
            layer.bias.zero_()
        head.fc1.bias.fill_(target / steep / 30)
        head.fc2.bias[:2] = 1
        head.fc3.weight[:2, :2] = torch.tensor([[steep, -steep], [-steep, steep]])
    objective = Objective(learner.model, learner.loss)
    objective.train()
    torch.manual_seed(3)
    with ClippedGradients(learner.model, clip_norm=1.0) as context:
        losses, _ = objective(torch.randn(1, 4, 16, 16, 16), torch.ones(1, 4), torch.tensor([[1, -1, -1]]))
        context.backward(losses)
    assert length_after(learner.model) <= 1 + EXCESS


def test_noise_is_for_the_longest_that_rounding_allows() -> None:
    parameter = nn.Parameter(torch.zeros(3_000_000))
    optimizer = PrivateOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        noise_multiplier=1.0,
        clip_norm=2.0,
        expected_cases=1.0,
        secret=SecretRandom(bytes(32)),
    )
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = float(parameter.detach().double().square().mean().sqrt())
    assert found == pytest.approx(2.0 * (1 + EXCESS), rel=4 / math.sqrt(2 * 3_000_000))
