"""A 3D ResNet18 in two halves: the second path's stem, and its deep part with attention gates (3D-RDA)."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedglioma.models.blocks import Norm, make_norm

GATE_REDUCTION = 16
GATE_MIN_HIDDEN = 4
GATE_KERNEL = 7


def resnet_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv3d:
    """Return a convolution without bias, Kaiming-normal by fan-out, padded to keep the grid.

    It is drawn once: the default draw, which would be overwritten, costs as much again, and these
    layers hold half of the network. The type stays ``nn.Conv3d`` itself, because per-case gradient
    samplers are looked up by exact type.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    conv = conv.to_empty(device=device)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ChannelGate(nn.Module):
    """Weights the channels by what their mean and their maximum say (CBAM; MDPNet, equation 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(GATE_MIN_HIDDEN, channels // GATE_REDUCTION)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled per case and channel, (B, C, D, H, W)."""
        # One call for both pooled vectors: the layers must not be used twice.
        pooled = torch.stack((x.mean((2, 3, 4)), x.amax((2, 3, 4))), dim=1)  # (B, 2, C)
        gate = self.fc2(F.relu(self.fc1(pooled))).sum(1)  # (B, C)
        return x * torch.sigmoid(gate)[:, :, None, None, None]


class SpatialGate(nn.Module):
    """Weights the voxels by the maximum and the mean over channels (CBAM; MDPNet, equation 4).

    The gate starts at 0.5 everywhere. With group norm the one-channel map gets no norm of its own:
    its level, which the norm would remove, is what the gate says.
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 1, GATE_KERNEL, padding=GATE_KERNEL // 2, bias=norm == "group")
        self.norm: nn.BatchNorm3d | None = None
        if norm == "batch":
            self.norm = nn.BatchNorm3d(1, momentum=0.01)
            nn.init.zeros_(self.norm.weight)
        else:
            nn.init.zeros_(self.conv.weight)
            nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled per case and voxel, (B, C, D, H, W)."""
        seen = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), dim=1)  # (B, 2, D, H, W)
        gate: Tensor = self.conv(seen)
        if self.norm is not None:
            gate = self.norm(gate)
        return x * torch.sigmoid(gate)


class BasicBlock(nn.Module):
    """ResNet's basic block; the gates act inside the branch, before the shortcut is added."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, *, gated: bool) -> None:
        super().__init__()
        self.conv1 = resnet_conv(inputs, outputs, 3, stride)
        self.norm1 = make_norm(norm, outputs)
        self.conv2 = resnet_conv(outputs, outputs, 3)
        self.norm2 = make_norm(norm, outputs)
        self.gates = nn.Sequential(ChannelGate(outputs), SpatialGate(norm)) if gated else None
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(resnet_conv(inputs, outputs, 1, stride), make_norm(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, C', D/stride, H/stride, W/stride), rounded up."""
        y: Tensor = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.gates is not None:
            y = self.gates(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def stage(inputs: int, outputs: int, stride: int, norm: Norm, *, gated: bool) -> nn.Sequential:
    """Return a ResNet18 layer: two basic blocks, the first of which takes the stride."""
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, norm, gated=gated),
        BasicBlock(outputs, outputs, 1, norm, gated=gated),
    )


def resnet_stem(inputs: int, channels: int, norm: Norm) -> nn.Sequential:
    """Return ResNet18 up to layer2: (B, inputs, D, H, W) to (B, 2 channels, D/8, H/8, W/8), rounded up."""
    return nn.Sequential(
        resnet_conv(inputs, channels, 7, 2),
        make_norm(norm, channels),
        nn.ReLU(),
        nn.MaxPool3d(3, stride=2, padding=1),
        stage(channels, channels, 1, norm, gated=False),
        stage(channels, 2 * channels, 2, norm, gated=False),
    )


class ResidualAttention(nn.Module):
    """ResNet18's layer3 and layer4 with gates, then the mean over the grid (3D-RDA)."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.layer3 = stage(channels, 2 * channels, 2, norm, gated=True)
        self.layer4 = stage(2 * channels, 4 * channels, 2, norm, gated=True)
        self.features = 4 * channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of each case, (B, 4 C)."""
        y: Tensor = self.layer4(self.layer3(x))
        return y.mean((2, 3, 4))
