import math

import pytest
import torch

from fedglioma.models.resnet import (
    BasicBlock,
    ChannelGate,
    ResidualAttention,
    SpatialGate,
    resnet_conv,
    resnet_stem,
)


def test_resnet_conv_is_drawn_by_fan_out_and_keeps_its_exact_type() -> None:
    torch.manual_seed(0)
    conv = resnet_conv(16, 64, 3, 2)
    assert type(conv) is torch.nn.Conv3d
    assert conv.bias is None
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 27)), rel=0.03)


def test_channel_gate_is_the_perceptron_applied_to_mean_and_maximum() -> None:
    gate = ChannelGate(32)
    x = torch.randn(2, 32, 3, 4, 5)

    def perceptron(v: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(gate.fc1(v))
        return hidden @ gate.fc2.weight.T + gate.fc2.bias

    weight = torch.sigmoid(perceptron(x.flatten(2).mean(2)) + perceptron(x.flatten(2).amax(2)))
    torch.testing.assert_close(gate(x), x * weight[:, :, None, None, None])


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_spatial_gate_starts_half_open_and_can_learn(norm: str) -> None:
    gate = SpatialGate(norm)  # type: ignore[arg-type]
    x = torch.randn(2, 8, 4, 4, 4)
    out = gate(x)
    torch.testing.assert_close(out, x / 2)
    (out * torch.randn_like(out)).sum().backward()
    learning = gate.conv.weight if gate.norm is None else gate.norm.weight
    assert learning.grad is not None
    assert learning.grad.abs().max() > 0


def test_spatial_gate_sees_maximum_then_mean() -> None:
    gate = SpatialGate("group")
    with torch.no_grad():
        gate.conv.weight[0, 0, 3, 3, 3] = 1.0
    x = torch.randn(1, 8, 4, 4, 4)
    torch.testing.assert_close(gate(x), x * torch.sigmoid(x.amax(1, keepdim=True)))


def test_gates_act_inside_the_branch_before_the_shortcut() -> None:
    block = BasicBlock(8, 8, 1, "group", gated=True).eval()
    x = torch.randn(1, 8, 4, 4, 4)
    branch = block.norm2(block.conv2(torch.relu(block.norm1(block.conv1(x)))))
    assert block.gates is not None
    torch.testing.assert_close(block(x), torch.relu(block.gates(branch) + x))


@pytest.mark.parametrize(("size", "expected"), [(16, 2), (17, 3), (32, 4), (40, 5)])
def test_stem_divides_by_eight_rounding_up(size: int, expected: int) -> None:
    assert resnet_stem(2, 4, "group")(torch.zeros(1, 2, size, 16, 16)).shape == (1, 8, expected, 2, 2)


def test_residual_attention_gives_four_features_per_channel() -> None:
    deep = ResidualAttention(8, "group")
    assert deep.features == 32
    assert deep(torch.randn(2, 8, 2, 2, 2)).shape == (2, 32)
