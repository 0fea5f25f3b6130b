"""Networks that everybody knows, from MONAI, to hold ours against: three classifiers, three segmenters.

==============  ======================================================  =======  ==============
name            the published network                                   width    crop
==============  ======================================================  =======  ==============
``resnet50``    He 2016 (CVPR), in 3D as MedicalNet has it              64       16 or more
``densenet121`` Huang 2017 (CVPR); ``width`` is the growth rate         32       29 or more
``senet``       SE-ResNet50, Hu 2018 (CVPR)                             64       16 or more
``unet``        residual, Kerfoot 2018 (STACOM), as MONAI teaches it    16       multiples of 16
``segresnet``   Myronenko 2018 (BrainLes) without the autoencoder       32       multiples of 8
``swinunetr``   Hatamizadeh 2022 (BrainLes)                             48       multiples of 32
==============  ======================================================  =======  ==============

``senet`` is the smallest SENet that MONAI has. Of ResNet50's depth, it shows what squeeze-and-excitation
adds; SENet154 has 3.5 times its parameters and another depth, and would not.

The classifiers have one linear layer per gene on shared features. All networks get group norm unless
asked otherwise, so that central, federated and private runs train the same network. Private training
has no Swin-UNETR: its attention owns parameters beside its layers (``fedglioma/privacy/network.py``), and
it cannot take a batch without cases.

MONAI is imported when a network is built, not before; its extra is ``baselines``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedglioma.case import CHANNELS, GENES, Frozen, Task
from fedglioma.errors import ConfigError, DataError
from fedglioma.models.blocks import Channels, mask_absent

ClassifierName = Literal["resnet50", "densenet121", "senet"]
SegmenterName = Literal["unet", "segresnet", "swinunetr"]
BaselineNorm = Literal["group", "batch", "instance"]

CLASSIFIERS: tuple[str, ...] = get_args(ClassifierName)
SEGMENTERS: tuple[str, ...] = get_args(SegmenterName)
BASELINES: tuple[str, ...] = (*CLASSIFIERS, *SEGMENTERS)
EXTRA = "pip install 'fedglioma[baselines]'"


@dataclass(frozen=True)
class _Form:
    """What a network allows: widths, crops, and how many voxels its coarsest norm leaves of an axis."""

    published_width: int
    width_step: int
    smallest: int
    multiple: int
    coarsest: Callable[[int], int]


def _halved(axis: int, times: int) -> int:
    return -(-axis // (1 << times))


def _senet_grid(axis: int) -> int:
    pooled = _halved(_halved(axis, 1) - 3, 1) + 1  # kernel 3, stride 2, no padding, rounded up
    return _halved(pooled, 3)


_FORMS: dict[str, _Form] = {
    "resnet50": _Form(64, 1, 16, 1, lambda axis: _halved(axis, 5)),
    "densenet121": _Form(32, 1, 29, 1, lambda axis: _halved(axis, 2) // 8),
    "senet": _Form(64, 4, 16, 1, _senet_grid),
    "unet": _Form(16, 1, 16, 16, lambda axis: axis // 16),
    "segresnet": _Form(32, 1, 8, 8, lambda axis: axis // 8),
    "swinunetr": _Form(48, 12, 32, 32, lambda axis: axis // 32),
}


def published_width(name: str) -> int:
    """Return the width at which a baseline is the published network.

    Raises
    ------
    ConfigError
        There is no baseline of that name.
    """
    return _form(name).published_width


def coarsest(name: str, crop: Sequence[int]) -> int:
    """Return how many voxels of a case of D, H, W voxels the coarsest normalisation layer sees.

    Raises
    ------
    ConfigError
        There is no baseline of that name.
    """
    return math.prod(_form(name).coarsest(axis) for axis in crop)


def check_crop(name: str, crop: Sequence[int], norm: BaselineNorm = "group") -> None:
    """Check that a baseline takes crops of D, H, W voxels, without building it.

    Raises
    ------
    ConfigError
        It does not, or there is no baseline of that name; the message says which sizes it takes.
    """
    fault = _crop_fault(name, crop, norm)
    if fault is not None:
        raise ConfigError(f"crop {_sizes(crop)}: {fault}")


class BaselineConfig(Frozen):
    """Which network, and its switches.

    ``width`` is the number of channels of the first stage (of ``densenet121`` the growth rate) and
    scales all others; left out, it is the published one. ``senet`` needs a multiple of 4,
    ``swinunetr`` one of 12. ``norm`` is published as batch for the classifiers, instance for ``unet``
    and ``swinunetr``, group for ``segresnet``; the layer norms of Swin-UNETR stay.
    """

    name: ClassifierName | SegmenterName
    width: int = Field(default_factory=lambda known: _default_width(known), ge=1)
    norm: BaselineNorm = "group"
    channels: Channels = CHANNELS

    @model_validator(mode="after")
    def _width_divides(self) -> Self:
        step = _FORMS[self.name].width_step
        if self.width % step:
            raise ValueError(f"width: {self.width} is not a multiple of {step}, as {self.name} needs it")
        return self


class Baseline(nn.Module):
    """What all of them share: the checks of an image, and that an absent sequence is never seen."""

    checkpointed: tuple[nn.Module, ...] = ()

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the network answers, in the order of its outputs."""
        if self.config.name in SEGMENTERS:
            return (Task.SEGMENTATION,)
        return tuple(Task(gene.value) for gene in GENES)

    def _seen(self, image: Tensor, present: Tensor | None) -> Tensor:
        """Return the image that the network is given, checked."""
        size, name, channels = tuple(image.shape), self.config.name, len(self.config.channels)
        if len(size) != 5 or size[1] != channels:
            raise DataError(f"image of shape {size}: {name} needs (B, {channels}, D, H, W)")
        fault = _crop_fault(name, size[2:], self.config.norm)
        if fault is not None:
            raise DataError(f"image of {_sizes(size[2:])} voxels: {fault}")
        if self.config.norm == "batch" and self.training and size[0] * coarsest(name, size[2:]) == 1:
            raise ConfigError(
                f"{name}: norm batch cannot train on one case of {_sizes(size[2:])} voxels: "
                "use a larger crop, a larger batch, or norm group"
            )
        return image if present is None else mask_absent(image, present)


class BaselineClassifier(Baseline):
    """A backbone and one linear layer per gene; parameters ``heads.<gene>.*`` are the gene's."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        made = _monai_networks(config.name).classifier(
            config.name, config.width, len(config.channels), config.norm
        )
        self.backbone: nn.Module = made[0]
        self.heads = nn.ModuleDict({gene.value: nn.Linear(made[1], 2) for gene in GENES})

    def forward(self, image: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits of each gene, (B, 2), keyed by the gene's name in task order.

        Parameters
        ----------
        image : Tensor, shape (B, 4, D, H, W)
            Channels in the order of ``case.CHANNELS``.
        present : Tensor, shape (B, 4), optional
            Which modalities each case has; the content of the others never matters.

        Raises
        ------
        DataError
            The image has other channels, a size that the network cannot take, or ``present`` does not
            belong to it.
        ConfigError
            Batch norm would have to train on a single value per channel.
        """
        features: Tensor = self.backbone(self._seen(image, present))
        return {name: head(features) for name, head in self.heads.items()}


class BaselineSegmenter(Baseline):
    """A segmentation network of two classes, background and tumour."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.network: nn.Module = _monai_networks(config.name).segmenter(
            config.name, config.width, len(config.channels), config.norm
        )

    def forward(self, image: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``{"segmentation": logits}``, (B, 2, D, H, W) on the image's own grid.

        Takes and raises what ``BaselineClassifier.forward`` does.
        """
        return {Task.SEGMENTATION.value: self.network(self._seen(image, present))}


def build_baseline(config: BaselineConfig) -> BaselineClassifier | BaselineSegmenter:
    """Return an untrained network, drawn from torch's global generator; nothing is downloaded.

    Raises
    ------
    ConfigError
        MONAI, or what it needs for this network, is not installed.
    """
    return BaselineSegmenter(config) if config.name in SEGMENTERS else BaselineClassifier(config)


def _monai_networks(name: str) -> ModuleType:
    # MONAI looks for einops in Swin-UNETR's first forward pass only.
    needed = ("monai", "einops") if name == "swinunetr" else ("monai",)
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise ConfigError(f"model {name}: {' and '.join(missing)} not installed; run: {EXTRA}")
    return import_module("fedglioma.models.monai_networks")


def _form(name: str) -> _Form:
    if name not in _FORMS:
        raise ConfigError(f"baseline {name!r} is unknown: choose {', '.join(BASELINES)}")
    return _FORMS[name]


def _default_width(known: dict[str, Any]) -> int:
    return _form(known["name"]).published_width if "name" in known else 1


def _crop_fault(name: str, crop: Sequence[int], norm: str) -> str | None:
    form = _form(name)
    if len(crop) != 3:
        return f"{name} needs three axes"
    if form.multiple > 1 and any(axis < 1 or axis % form.multiple for axis in crop):
        return f"{name} needs every axis to be a multiple of {form.multiple}"
    if min(crop) < form.smallest:
        return f"{name} needs every axis to be {form.smallest} or more"
    if norm == "instance" and coarsest(name, crop) == 1:
        return f"{name} with norm instance has one voxel left in its coarsest layer: use a larger crop"
    return None


def _sizes(crop: Sequence[int]) -> str:
    return " x ".join(str(axis) for axis in crop)
