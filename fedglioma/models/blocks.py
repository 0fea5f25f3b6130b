"""Layers that more than one network uses, built so that per-case gradients can be taken of them.

Three rules hold for every network of this package: a parameter lives in a module without children
that takes one tensor and returns one; no module is called twice in a forward pass; nothing is
changed in place. With ``norm="group"`` no layer mixes the cases of a batch.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor, nn

from fedglioma.case import CHANNELS, Modality
from fedglioma.errors import DataError

Norm = Literal["group", "batch"]


def _in_order(channels: tuple[Modality, ...]) -> tuple[Modality, ...]:
    if channels != CHANNELS:
        raise ValueError(f"the order of channels is {', '.join(CHANNELS)}")
    return channels


Channels = Annotated[tuple[Modality, ...], AfterValidator(_in_order)]
"""The channels of a network's images; there is one order, stored with every network."""

MAX_GROUPS = 8
MIN_CHANNELS_PER_GROUP = 4


def group_count(channels: int) -> int:
    """Return how many groups a group norm over this many channels has.

    At most 8, each of at least 4 channels where there are that many. One channel per group would be
    instance norm, whose output on a single voxel is a constant without a gradient.
    """
    groups = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
    while channels % groups:
        groups -= 1
    return groups


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation layer that the ``norm`` switch of a network names."""
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    return nn.GroupNorm(group_count(channels), channels)


def mask_absent(image: Tensor, present: Tensor) -> Tensor:
    """Return the image with every absent channel set to zero, whatever it holds, NaN included.

    Parameters
    ----------
    image : Tensor, shape (B, M, D, H, W)
    present : Tensor, shape (B, M)
        Above 0 where the case has the modality.

    Raises
    ------
    DataError
        The two do not belong together.
    """
    if present.shape != image.shape[:2]:
        raise DataError(
            f"presence of shape {tuple(present.shape)} for an image of shape {tuple(image.shape)}: "
            "one row per case and one column per channel are needed"
        )
    # A product would let NaN through: 0 * NaN is NaN.
    return torch.where(present[:, :, None, None, None] > 0, image, image.new_zeros(()))


class PreActBlock(nn.Module):
    """Residual block of norm, leaky ReLU, 3x3x3 convolution, twice; the shape stays."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = make_norm(norm, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus its residual, (B, C, D, H, W)."""
        y: Tensor = self.conv1(F.leaky_relu(self.norm1(x)))
        y = self.conv2(F.leaky_relu(self.norm2(y)))
        return x + y


def preact_blocks(count: int, channels: int, norm: Norm) -> nn.Sequential:
    """Return ``count`` pre-activation blocks in a row."""
    return nn.Sequential(*(PreActBlock(channels, norm) for _ in range(count)))
