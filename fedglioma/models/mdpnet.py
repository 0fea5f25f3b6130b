"""MDPNet: IDH, ATRX and 1p/19q status from four MRI sequences.

What is unusual in this network:

- two paths: all four sequences through a plain trunk, T2 and FLAIR once more through a ResNet;
- the paths exchange what they saw in the middle and go on as residuals of the sum;
- a transformer deepens the first path, channel and spatial gates (3D-RDA) the second;
- the 1p/19q head is told what the IDH and ATRX heads say (IGT);
- it returns logits, and only the pools and the position grid know the size of the crop.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from fedglioma.case import CHANNELS, GENES, Frozen, Gene, Modality
from fedglioma.errors import ConfigError, DataError
from fedglioma.models.blocks import Channels, Norm, PreActBlock, mask_absent, preact_blocks
from fedglioma.models.resnet import BasicBlock, ResidualAttention, resnet_stem
from fedglioma.models.vit import TransformerLayer, VisionTransformer

MIN_CROP = 16
RESNET_STRIDE = 32
GUIDES = (Gene.IDH, Gene.ATRX)

Attention = Literal["vit+rda", "rda+vit", "rda+rda", "vit+vit"]
GuideMode = Literal["p_mut", "max_prob"]
HeadActivation = Literal["leaky_relu", "none"]


class MDPNetConfig(Frozen):
    """Every switch of the network; the defaults are the ``recommended`` preset.

    ``width`` scales all channels, 16 is the paper's. ``path2`` names the sequences of the second
    path, none at all leaves it out. ``attention`` names the deep parts of the two paths. ``guide``
    names the heads that 1p/19q is told of: the probability of mutation (``p_mut``), or that of the
    likelier class (``max_prob``), which does not say which class it is. ``pos_grid`` is the
    transformer's position grid, one eighth of the crop it was made for.
    """

    width: int = Field(default=16, ge=1)
    channels: Channels = CHANNELS
    path2: tuple[Modality, ...] = (Modality.T2, Modality.FLAIR)
    attention: Attention = "vit+rda"
    guide: tuple[Gene, ...] = GUIDES
    guide_mode: GuideMode = "p_mut"
    guide_detach: bool = False
    norm: Norm = "group"
    head_act: HeadActivation = "leaky_relu"
    pos_grid: tuple[int, int, int] = (16, 16, 16)
    vit_layers: int = Field(default=4, ge=1)
    vit_heads: int = Field(default=8, ge=1)
    vit_mlp_ratio: int = Field(default=8, ge=1)
    stem_drop: float = Field(default=0.2, ge=0, lt=1)
    drop: float = Field(default=0.1, ge=0, lt=1)
    attn_drop: float = Field(default=0.0, ge=0, lt=1)
    head_drop: float = Field(default=0.2, ge=0, lt=1)

    @classmethod
    def preset(cls, name: str, width: int = 16, pos_grid: tuple[int, int, int] = (16, 16, 16)) -> Self:
        """Return the switches of ``recommended``, or of ``reference``, which is close to the authors' code.

        Raises
        ------
        ConfigError
            There is no preset of that name.
        """
        if name == "recommended":
            return cls(width=width, pos_grid=pos_grid)
        if name == "reference":
            return cls(
                width=width,
                pos_grid=pos_grid,
                norm="batch",
                head_act="none",
                guide_mode="max_prob",
                attn_drop=0.1,
            )
        raise ConfigError(f"mdpnet: preset {name!r} is unknown: choose recommended or reference")

    def coarsest(self, crop: Sequence[int]) -> int:
        """Return how many voxels of a case of D, H, W voxels the coarsest normalisation layer sees."""
        used = self.attention if self.path2 else self.attention.split("+")[0]
        stride = RESNET_STRIDE if "rda" in used else 8
        return math.prod(math.ceil(axis / stride) for axis in crop)

    @field_validator("path2", "guide")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"{', '.join(names)}: a name stands there twice")
        return names

    @field_validator("guide")
    @classmethod
    def _not_itself(cls, guide: tuple[Gene, ...]) -> tuple[Gene, ...]:
        if not set(guide) <= set(GUIDES):
            raise ValueError(f"only {' and '.join(GUIDES)} can guide {Gene.CODEL.value}")
        return guide

    @field_validator("pos_grid")
    @classmethod
    def _positive(cls, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(grid) < 1:
            raise ValueError("every axis must be at least 1")
        return grid

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if (32 * self.width) % self.vit_heads:
            raise ValueError(f"vit_heads: {self.vit_heads} heads do not divide {32 * self.width} features")
        return self


class Head(nn.Module):
    """Three linear layers from a case's features to the two logits of one gene."""

    def __init__(self, inputs: int, width: int, activation: HeadActivation) -> None:
        super().__init__()
        hidden = max(2 * width, 8)
        self.fc1 = nn.Linear(inputs, 32 * width)
        self.fc2 = nn.Linear(32 * width, hidden)
        self.fc3 = nn.Linear(hidden, 2)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of classes 0 and 1, (B, 2)."""
        x = activate(self.fc1(x), self.activation)
        out: Tensor = self.fc3(activate(self.fc2(x), self.activation))
        return out


def activate(x: Tensor, activation: HeadActivation) -> Tensor:
    """Return ``x`` after the activation of the heads; ``none`` makes each head a linear map."""
    return F.leaky_relu(x) if activation == "leaky_relu" else x


class MDPNet(nn.Module):
    """The network; parameters named ``heads.<gene>.*`` belong to that gene, all others are shared."""

    def __init__(self, config: MDPNetConfig) -> None:
        super().__init__()
        self.config = config
        width, norm = config.width, config.norm
        first, second = config.attention.split("+")
        self.trunk = _trunk(config)
        self.b4 = preact_blocks(4, 8 * width, norm)
        self.deep1 = _deep(first, config)
        features = 16 * width + self.deep1.features
        self.path2 = [config.channels.index(modality) for modality in config.path2]
        self.stem: nn.Sequential | None = None
        if self.path2:
            self.stem = resnet_stem(len(self.path2), 4 * width, norm)
            self.fuse = nn.Conv3d(16 * width, 8 * width, 1)
            self.deep2 = _deep(second, config)
            features += self.deep2.features
        self.head_drop = nn.Dropout(config.head_drop)
        self.fc_in = nn.Linear(features, 80 * width)
        self.heads = nn.ModuleDict()
        for gene in GENES:
            told = len(config.guide) if gene is Gene.CODEL else 0
            self.heads[gene.value] = Head(80 * width + told, width, config.head_act)

    @property
    def checkpointed(self) -> tuple[nn.Module, ...]:
        """Blocks of one tensor in and one out, whose activations may be computed twice to save memory."""
        blocks = (PreActBlock, BasicBlock, TransformerLayer)
        return tuple(module for module in self.modules() if isinstance(module, blocks))

    def forward(self, image: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits of each gene, (B, 2), keyed by the gene's name in task order.

        Parameters
        ----------
        image : Tensor, shape (B, 4, D, H, W)
            Channels in the order of ``case.CHANNELS``; every axis at least 16 voxels, of any size.
        present : Tensor, shape (B, 4), optional
            Which modalities each case has; the content of the others never matters.

        Raises
        ------
        DataError
            The image has other channels, is too small, or ``present`` does not belong to it.
        ConfigError
            Batch norm would have to train on a single value per channel.
        """
        self._check(image)
        x = image if present is None else mask_absent(image, present)
        shared = activate(self.fc_in(self.head_drop(self._features(x))), self.config.head_act)
        logits = {gene.value: self.heads[gene.value](shared) for gene in GUIDES}
        told = [self._guidance(logits[gene.value]) for gene in self.config.guide]
        logits[Gene.CODEL.value] = self.heads[Gene.CODEL.value](torch.cat((shared, *told), dim=1))
        return logits

    def _features(self, x: Tensor) -> Tensor:
        """Return what the heads see of each case; f3 to f8 and x4 are named as in the paper."""
        f3: Tensor = self.trunk(x)
        if self.stem is None:
            x4 = self.b4(f3)
            return torch.cat((x4.mean((2, 3, 4)), x4.amax((2, 3, 4)), self.deep1(x4)), dim=1)
        f4: Tensor = self.stem(x[:, self.path2])
        f6 = self.fuse(torch.cat((f3, f4), dim=1))
        f7, f8 = f3 + f6, f4 + f6
        x4 = self.b4(f7)
        return torch.cat((x4.mean((2, 3, 4)), x4.amax((2, 3, 4)), self.deep1(x4), self.deep2(f8)), dim=1)

    def _guidance(self, logits: Tensor) -> Tensor:
        """Return what 1p/19q is told of another gene, (B, 1)."""
        probability = logits.softmax(1)
        by_class = self.config.guide_mode == "p_mut"
        told = probability[:, 1:] if by_class else probability.amax(1, keepdim=True)
        return told.detach() if self.config.guide_detach else told

    def _check(self, image: Tensor) -> None:
        size = tuple(image.shape)
        channels = len(self.config.channels)
        if len(size) != 5 or size[1] != channels or min(size[2:]) < MIN_CROP:
            raise DataError(
                f"image of shape {size}: mdpnet needs (B, {channels}, D, H, W), every axis {MIN_CROP} or more"
            )
        if self.config.norm == "batch" and self.training and size[0] * self.config.coarsest(size[2:]) == 1:
            raise ConfigError(
                f"mdpnet: norm batch cannot train on one case of {size[2:]} voxels: "
                "use a larger crop, a larger batch, or norm group"
            )


def _trunk(config: MDPNetConfig) -> nn.Sequential:
    """Return the first path up to F3: (B, 4, D, H, W) to (B, 8 width, D/8, H/8, W/8), rounded up."""
    width, norm = config.width, config.norm
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            init_conv=nn.Conv3d(len(config.channels), width, 3, padding=1),
            init_drop=nn.Dropout3d(config.stem_drop),
            b1=preact_blocks(1, width, norm),
            d1=nn.Conv3d(width, 2 * width, 3, stride=2, padding=1),
            b2=preact_blocks(2, 2 * width, norm),
            d2=nn.Conv3d(2 * width, 4 * width, 3, stride=2, padding=1),
            b3=preact_blocks(2, 4 * width, norm),
            d3=nn.Conv3d(4 * width, 8 * width, 3, stride=2, padding=1),
        )
    )


def _deep(kind: str, config: MDPNetConfig) -> VisionTransformer | ResidualAttention:
    """Return the deep part of a path, fed with (B, 8 width, ...) and giving (B, features)."""
    if kind == "rda":
        return ResidualAttention(8 * config.width, config.norm)
    dim = 32 * config.width
    return VisionTransformer(
        8 * config.width,
        dim,
        grid=config.pos_grid,
        layers=config.vit_layers,
        heads=config.vit_heads,
        hidden=config.vit_mlp_ratio * dim,
        norm=config.norm,
        dropout=config.drop,
        attention_dropout=config.attn_drop,
    )
