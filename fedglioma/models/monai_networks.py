"""MONAI's networks at any width, with nothing changed in place and with our normalisation layers.

Only ``baselines.py`` imports this file, and only when a network is built: MONAI takes seconds to load.
Weights are drawn here, never downloaded.
"""

from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.blocks.squeeze_and_excitation import SEResNetBottleneck
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.senet import SENet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from fedglioma.models.blocks import make_norm

CLASSES = 2
RESNET_PLANES = (1, 2, 4, 8)
RESNET_LAYERS = (3, 4, 6, 3)
SENET_PLANES = 64
"""What MONAI's SENet gives its first stage, whatever it is asked for."""


class _ResNet(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        y = self.maxpool(self.act(self.bn1(self.conv1(x))))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        # MONAI's view cannot tell the features of a batch without cases.
        features: Tensor = y.mean((2, 3, 4))
        return features


class _SENet(SENet):
    def __init__(self, width: int, channels: int) -> None:
        # Before the parent's, whose __init__ calls _make_layer.
        self.width = width
        super().__init__(
            spatial_dims=3,
            in_channels=channels,
            block=SEResNetBottleneck,
            layers=RESNET_LAYERS,
            groups=1,
            reduction=16,
            dropout_prob=None,
            inplanes=width,
            downsample_kernel_size=1,
            input_3x3=False,
        )
        self.last_linear = nn.Identity()  # type: ignore[assignment]

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes * self.width // SENET_PLANES, *args, **kwargs)


class _Bottleneck(ResNetBottleneck):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.act(y + (x if self.downsample is None else self.downsample(x)))
        return out


class _SEBottleneck(SEResNetBottleneck):
    def forward(self, x: Tensor) -> Tensor:
        y = self.se_layer(self.conv3(self.conv2(self.conv1(x))))
        out: Tensor = self.act(y + self.project(x))
        return out


class _SegResNetBlock(ResBlock):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(self.act(self.norm1(x)))
        out: Tensor = x + self.conv2(self.act(self.norm2(y)))
        return out


class _UnetrBlock(UnetResBlock):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(self.lrelu(self.norm1(self.conv1(x)))))
        out: Tensor = self.lrelu(y + (self.norm3(self.conv3(x)) if self.downsample else x))
        return out


_OUT_OF_PLACE: dict[type[nn.Module], type[nn.Module]] = {
    ResNetBottleneck: _Bottleneck,
    SEResNetBottleneck: _SEBottleneck,
    ResBlock: _SegResNetBlock,
    UnetResBlock: _UnetrBlock,
}
"""Blocks that add their residual in place, and the same blocks with a sum; MONAI has no switch for it."""

_NORMS = (nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm3d)


def classifier(name: str, width: int, channels: int, norm: str) -> tuple[nn.Module, int]:
    """Return a backbone that maps (B, channels, D, H, W) to features (B, F), and F."""
    if name == "resnet50":
        planes = [width * factor for factor in RESNET_PLANES]
        # The stride of 2 and the shortcuts without bias are He's and MedicalNet's, not MONAI's defaults.
        resnet = _ResNet(
            ResNetBottleneck,
            list(RESNET_LAYERS),
            planes,
            n_input_channels=channels,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        return _ours(resnet, norm), planes[-1] * ResNetBottleneck.expansion
    if name == "senet":
        senet = _SENet(width, channels)
        return _ours(senet, norm), senet.inplanes
    dense = DenseNet(3, channels, 1, init_features=2 * width, growth_rate=width)
    features = int(dense.class_layers.out.in_features)  # type: ignore[arg-type, union-attr]
    dense.class_layers.out = nn.Identity()
    return _ours(dense, norm), features


def segmenter(name: str, width: int, channels: int, norm: str) -> nn.Module:
    """Return a network that maps (B, channels, D, H, W) to the logits of two classes, (B, 2, D, H, W)."""
    if name == "unet":
        planes = [width * 2**level for level in range(5)]
        unet = UNet(3, channels, CLASSES, planes, (2, 2, 2, 2), num_res_units=2, norm="batch")
        return _ours(unet, norm)
    if name == "segresnet":
        return _ours(SegResNet(3, width, channels, CLASSES, norm="batch"), norm)
    device = torch.get_default_device()
    unmade = device.type == "meta"
    # Its __init__ reads tensors, which the meta device has not, and must draw nothing there.
    with torch.device("cpu"), torch.random.fork_rng(devices=[], enabled=unmade):
        swin = SwinUNETR(channels, CLASSES, feature_size=width, norm_name="batch")
    return _ours(swin, norm).to(device)


def _ours(network: nn.Module, norm: str) -> nn.Module:
    """Return a network built with batch norm, its norms as asked for and nothing in place."""
    for module in list(network.modules()):
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
        if type(module) in _OUT_OF_PLACE:
            module.__class__ = _OUT_OF_PLACE[type(module)]
        for name, child in list(module.named_children()):
            if norm != "batch" and isinstance(child, _NORMS):
                setattr(module, name, _norm(norm, child.num_features))  # type: ignore[arg-type]
    return network


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "instance":
        return nn.InstanceNorm3d(channels)
    return make_norm("group", channels)
