"""SGPNet: IDH status, guided by learning the tumour's outline with the same features.

What is unusual in this network:

- one encoder and decoder serve two blocks: one outlines the tumour, the other reads IDH from the same three
  levels of the decoder, so the outline teaches the features where to look;
- the outline is the sum of three coarse-to-fine guesses, each a 1x1x1 convolution of a level;
- instance norm without weights everywhere: no case sees another, no level of intensity survives;
- the layers that a figure draws twice have weights of their own each time.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedglioma.case import CHANNELS, Frozen, Task
from fedglioma.errors import DataError
from fedglioma.models.blocks import Channels, mask_absent

STRIDE = 16
MIN_CROP = 32
SLOPE = 0.1

LearnedTargets = Literal["both", "idh", "random", "seg"]
Shortcut = Literal["shortcut", "none"]

TASKS_OF: dict[LearnedTargets, tuple[Task, ...]] = {
    "both": (Task.IDH, Task.SEGMENTATION),
    "idh": (Task.IDH,),
    "random": (Task.IDH, Task.SEGMENTATION),
    "seg": (Task.SEGMENTATION,),
}


class SGPNetConfig(Frozen):
    """Every switch of the network; the defaults are the paper's, and our reading where it is silent.

    ``width`` scales all channels, 8 is the paper's. ``targets`` names the experiment of table 2: IDH and
    outline (``both``), one of them alone (``idh``, ``seg``), or IDH with an outline of noise (``random``),
    which is the same network. ``head_1x1`` says how the 1x1x1 convolution that the figure shows in the IDH
    block is wired: as a shortcut around the 3x3x3 one of the finest level, or not at all. The paper gives no
    dropout rates.
    """

    width: int = Field(default=8, ge=1)
    channels: Channels = CHANNELS
    targets: LearnedTargets = "both"
    head_1x1: Shortcut = "shortcut"
    block_drop: float = Field(default=0.3, ge=0, lt=1)
    head_drop: float = Field(default=0.5, ge=0, lt=1)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.InstanceNorm3d(channels), nn.LeakyReLU(SLOPE))


def _conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel), _norm_act(outputs))


def _doubled(x: Tensor) -> Tensor:
    """Return ``x`` at twice the size along every axis, each voxel repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DownBlock(nn.Module):
    """A convolution, of stride 2 below the first level, and two more as its residual.

    The first level does not normalise between its convolutions.
    """

    def __init__(self, inputs: int, outputs: int, drop: float, *, first: bool = False) -> None:
        super().__init__()
        self.enter = _conv(inputs, outputs, 3, 1 if first else 2)
        self.act1 = nn.LeakyReLU(SLOPE) if first else _norm_act(outputs)
        self.conv1 = _conv(outputs, outputs, 3)
        self.drop = nn.Dropout3d(drop)
        self.act2 = nn.LeakyReLU(SLOPE) if first else _norm_act(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.leave = _norm_act(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, D', H', W'): half of each axis, or in the first level all of it."""
        entered: Tensor = self.enter(x)
        y = self.drop(self.conv1(self.act1(entered)))
        y = self.conv2(self.act2(y))
        out: Tensor = self.leave(entered + y)
        return out


class BottomBlock(nn.Module):
    """The way up from the coarsest level, which nothing is joined to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rise = _conv_norm(channels, channels // 2, 3)
        self.mix = _conv_norm(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels / 2, 2 D, 2 H, 2 W)."""
        out: Tensor = self.mix(self.rise(_doubled(x)))
        return out


class JoinBlock(nn.Module):
    """A level of the decoder: what came up, beside what the encoder had at this size, convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv_norm(channels, channels, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the level, (B, channels, D, H, W), from two halves of its channels."""
        out: Tensor = self.conv(torch.cat((x, skip), dim=1))
        return out


class UpBlock(nn.Module):
    """A level of the decoder and the way up from it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.join = JoinBlock(channels)
        self.mix = _conv_norm(channels, channels // 2, 1)
        self.rise = _conv_norm(channels // 2, channels // 4, 3)

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level, (B, channels, D, H, W), and what rises, (B, channels / 4, 2 D, 2 H, 2 W)."""
        level: Tensor = self.join(x, skip)
        return level, self.rise(_doubled(self.mix(level)))


class SegmentationBlock(nn.Module):
    """The outline, guessed at each level and summed from coarse to fine."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.guess3 = nn.Conv3d(8 * width, 2, 1)
        self.guess2 = nn.Conv3d(4 * width, 2, 1)
        self.guess1 = nn.Conv3d(2 * width, 2, 1)

    def forward(self, level3: Tensor, level2: Tensor, level1: Tensor) -> Tensor:
        """Return the logits of background and tumour, (B, 2, D, H, W)."""
        coarse = _doubled(self.guess3(level3)) + self.guess2(level2)
        out: Tensor = _doubled(coarse) + self.guess1(level1)
        return out


class IDHBlock(nn.Module):
    """IDH status from the means of each level's features."""

    def __init__(self, width: int, head_1x1: Shortcut, drop: float) -> None:
        super().__init__()
        self.conv3 = _conv(8 * width, 4 * width, 3)
        self.conv2 = _conv(4 * width, 2 * width, 3)
        self.conv1 = _conv(2 * width, width, 3)
        self.act3 = _norm_act(4 * width)
        self.act2 = _norm_act(2 * width)
        self.act1 = _norm_act(width)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(7 * width, 2)
        # Drawn last, so that a network without it starts from the same weights.
        self.shortcut = _conv(2 * width, width, 1) if head_1x1 == "shortcut" else None

    def forward(self, level3: Tensor, level2: Tensor, level1: Tensor) -> Tensor:
        """Return the logits of classes 0 and 1, (B, 2)."""
        finest: Tensor = self.conv1(level1)
        if self.shortcut is not None:
            finest = finest + self.shortcut(level1)
        read = (self.act3(self.conv3(level3)), self.act2(self.conv2(level2)), self.act1(finest))
        out: Tensor = self.fc(self.drop(torch.cat([x.mean((2, 3, 4)) for x in read], dim=1)))
        return out


class SGPNet(nn.Module):
    """The network; parameters named ``heads.<task>.*`` belong to that task, all others are shared.

    A block that ``targets`` leaves out exists but neither runs nor learns: every variant starts from the
    same weights and exchanges the same tensors.
    """

    def __init__(self, config: SGPNetConfig) -> None:
        super().__init__()
        self.config = config
        width, drop = config.width, config.block_drop
        self.down1 = DownBlock(len(config.channels), width, drop, first=True)
        self.down2 = DownBlock(width, 2 * width, drop)
        self.down3 = DownBlock(2 * width, 4 * width, drop)
        self.down4 = DownBlock(4 * width, 8 * width, drop)
        self.down5 = DownBlock(8 * width, 16 * width, drop)
        self.up5 = BottomBlock(16 * width)
        self.up4 = UpBlock(16 * width)
        self.up3 = UpBlock(8 * width)
        self.up2 = UpBlock(4 * width)
        self.up1 = JoinBlock(2 * width)
        outline = SegmentationBlock(width)
        status = IDHBlock(width, config.head_1x1, config.head_drop)
        self.heads = nn.ModuleDict({Task.IDH.value: status, Task.SEGMENTATION.value: outline})
        for task, block in self.heads.items():
            block.requires_grad_(task in self.tasks)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What ``forward`` answers, in task order."""
        return TASKS_OF[self.config.targets]

    @property
    def checkpointed(self) -> tuple[nn.Module, ...]:
        """Blocks whose activations can be made again instead of kept: tensors in, tensors out."""
        down = (self.down1, self.down2, self.down3, self.down4, self.down5)
        return (*down, self.up5, self.up4, self.up3, self.up2, self.up1)

    def forward(self, image: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits of each task, keyed by its name in task order.

        ``idh`` has (B, 2), wild-type and mutant; ``segmentation`` (B, 2, D, H, W), background and tumour.

        Parameters
        ----------
        image : Tensor, shape (B, 4, D, H, W)
            Channels in the order of ``case.CHANNELS``; every axis a multiple of 16, at least 32 voxels.
        present : Tensor, shape (B, 4), optional
            Which modalities each case has; the content of the others never matters.

        Raises
        ------
        DataError
            The image has other channels or another size, or ``present`` does not belong to it.
        """
        self._check(image)
        levels = self._levels(image if present is None else mask_absent(image, present))
        return {task.value: self.heads[task.value](*levels) for task in self.tasks}

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoder's levels at a quarter, a half and all of the image's size."""
        c1 = self.down1(x)
        c2 = self.down2(c1)
        c3 = self.down3(c2)
        c4 = self.down4(c3)
        _, x = self.up4(self.up5(self.down5(c4)), c4)
        level3, x = self.up3(x, c3)
        level2, x = self.up2(x, c2)
        return level3, level2, self.up1(x, c1)

    def _check(self, image: Tensor) -> None:
        size = tuple(image.shape)
        channels = len(self.config.channels)
        if len(size) != 5 or size[1] != channels:
            raise DataError(f"image of shape {size}: sgpnet needs (B, {channels}, D, H, W)")
        if min(size[2:]) < MIN_CROP or any(axis % STRIDE for axis in size[2:]):
            raise DataError(
                f"image of {' x '.join(map(str, size[2:]))} voxels: sgpnet needs every axis a multiple of "
                f"{STRIDE}, and at least {MIN_CROP}: choose such a crop"
            )
