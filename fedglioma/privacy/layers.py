"""How each kind of layer passes a gradient on, and what it keeps of it for each case.

A rule runs a layer forward without a graph of its parameters and, in the backward pass, gives the gradient of
the layer's input and its ``Contribution``: what autograd does in one go for all cases, taken apart. The first
axis of a layer's input and output counts the cases.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedglioma.errors import PrivacyError
from fedglioma.privacy.gradients import Contribution, Ghost, Kept, ghost_is_cheaper

SMALL_IMAGE = 20480
"""PyTorch leaves single images of fewer rows (channels x D x H) to its slow convolution."""

SAME = 1e-3
"""How far a layer's output for one case alone may be from that among others, relative to the largest."""


class Passed(NamedTuple):
    """A layer's use: what went in, what the rule kept, the gradient of what came out, what is wanted."""

    x: Tensor
    kept: tuple[Tensor, ...]
    grad: Tensor
    wants_input: bool
    names: frozenset[str]


class Rule(ABC):
    """What is done with one kind of layer."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the layer's output and what ``backward`` needs besides the input."""

    @abstractmethod
    def backward(self, use: Passed) -> tuple[Tensor | None, Contribution]:
        """Return the gradient of the input, None where nobody wants it, and the layer's contribution."""


class ConvolutionRule(Rule):
    """Convolutions, transposed ones too, padded with zeros.

    Kept gradients come from one backward convolution per case; no map is unfolded. The ghost norm unfolds,
    but is chosen only where there are few voxels. ``ghost`` forces the choice.
    """

    def __init__(self, layer: _ConvNd, *, ghost: bool | None = None) -> None:
        self.layer = layer
        self.ghost = ghost

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the layer's output."""
        return type(self.layer).forward(self.layer, x), ()

    def backward(self, use: Passed) -> tuple[Tensor | None, Contribution]:
        """Return the gradient of the input and the layer's contribution."""
        x, _, grad, wants_input, names = use
        layer = self.layer
        dx = _convolution_backward(layer, x, grad, (True, False)) if wants_input else None
        if self._takes_ghost(layer, grad):
            inputs = unfolded(layer, x, grad.shape[2:])
            # (B, T, O)
            return dx, Ghost(inputs, grad.flatten(2).mT.contiguous(), layer.weight.shape, names)
        found = {}
        if "weight" in names:
            found["weight"] = [
                _weight_of_one(layer, x[row : row + 1], grad[row : row + 1]) for row in range(len(x))
            ]
        if "bias" in names:
            found["bias"] = [row.clone() for row in grad.flatten(2).sum(2)]
        return dx, Kept(found)

    def _takes_ghost(self, layer: _ConvNd, grad: Tensor) -> bool:
        if isinstance(layer, _ConvTransposeNd) or layer.groups != 1:
            return False
        if self.ghost is not None:
            return self.ghost
        positions = math.prod(grad.shape[2:])
        return ghost_is_cheaper(positions, layer.weight[0].numel(), layer.out_channels)


def _convolution_backward(
    layer: _ConvNd, x: Tensor, grad: Tensor, wanted: tuple[bool, bool], padding: tuple[int, ...] | None = None
) -> Tensor:
    """Return the gradient of input or weight, whichever is wanted."""
    found = torch.ops.aten.convolution_backward(
        grad,
        x,
        layer.weight,
        None,
        layer.stride,
        layer.padding if padding is None else padding,
        layer.dilation,
        isinstance(layer, _ConvTransposeNd),
        layer.output_padding,
        layer.groups,
        (*wanted, False),
    )
    result: Tensor = found[0] if wanted[0] else found[1]
    return result


def _weight_of_one(layer: _ConvNd, x: Tensor, grad: Tensor) -> Tensor:
    """Return the weight's gradient of one case."""
    rows = math.prod(x.shape[:-1])
    if x.device.type != "cpu" or rows > SMALL_IMAGE or isinstance(layer, _ConvTransposeNd):
        return _convolution_backward(layer, x, grad, (False, True))
    if x.ndim != 5 or grad.shape[2] % 2:
        return _convolution_backward(layer, x, grad, (False, True))
    # The two halves of the image as two images: up to ten times as fast as one small image.
    half, (before, *others) = grad.shape[2] // 2, _padding(layer) or (0, 0, 0)
    step, reach = layer.stride[0], layer.dilation[0] * (layer.kernel_size[0] - 1)
    if before:
        x = F.pad(x, (0, 0, 0, 0, before, before))
    depth = (half - 1) * step + reach + 1
    x = torch.stack([x[0, :, start : start + depth] for start in (0, half * step)])
    grad = torch.stack([grad[0, :, :half], grad[0, :, half:]])
    return _convolution_backward(layer, x, grad, (False, True), (0, *others))


def unfolded(layer: _ConvNd, x: Tensor, size: torch.Size) -> Tensor:
    """Return what the kernel sees at each output voxel, (B, T, C k^3), for an output of a size."""
    pads = [pad for pad in reversed(_padding(layer) or ()) for _ in range(2)]
    padded = F.pad(x, pads) if any(pads) else x
    cases, channel, *axes = padded.stride()
    steps = [axis * by for axis, by in zip(axes, layer.stride, strict=True)]
    within = [axis * by for axis, by in zip(axes, layer.dilation, strict=True)]
    shape = (len(x), *size, x.shape[1], *layer.kernel_size)
    windows = padded.as_strided(shape, (cases, *steps, channel, *within))
    return windows.reshape(len(x), math.prod(size), -1)


class LinearRule(Rule):
    """Linear maps of (B, ..., I) to (B, ..., O); ``ghost`` forces the choice."""

    def __init__(self, layer: nn.Linear, *, ghost: bool | None = None) -> None:
        self.layer = layer
        self.ghost = ghost

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the layer's output."""
        return type(self.layer).forward(self.layer, x), ()

    def backward(self, use: Passed) -> tuple[Tensor | None, Contribution]:
        """Return the gradient of the input and the layer's contribution."""
        x, _, grad, wants_input, names = use
        layer = self.layer
        dx = grad @ layer.weight if wants_input else None
        cases = len(x)
        inputs, outputs = (
            t.reshape(cases, -1, size) for t, size in ((x, layer.in_features), (grad, layer.out_features))
        )
        found = Ghost(inputs, outputs, layer.weight.shape, names)
        ghost = self.ghost
        if ghost is None:
            ghost = ghost_is_cheaper(inputs.shape[1], layer.in_features, layer.out_features)
        return dx, found if ghost else Kept(found.per_case())


class GroupNormRule(Rule):
    """Group norm, and instance norm with weights, which is group norm of one channel per group.

    A batch of B cases with G groups is, to the arithmetic, one case of B G groups, whose weight has a
    gradient of B C numbers: those of each case.
    """

    def __init__(self, layer: nn.GroupNorm | nn.InstanceNorm3d) -> None:
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the layer's output, and mean and reciprocal deviation of each group, (B, G)."""
        layer = self.layer
        out, mean, rstd = torch.native_group_norm(
            x, layer.weight, layer.bias, len(x), x.shape[1], x[0, 0].numel(), _groups(layer), layer.eps
        )
        return out, (mean, rstd)

    def backward(self, use: Passed) -> tuple[Tensor | None, Contribution]:
        """Return the gradient of the input and the layer's contribution."""
        x, (mean, rstd), grad, wants_input, names = use
        layer = self.layer
        cases, channels, voxels = len(x), x.shape[1], x[0, 0].numel()
        one = (1, cases * channels, *x.shape[2:])
        dx, weight, bias = torch.ops.aten.native_group_norm_backward(
            grad.contiguous().view(one),
            x.contiguous().view(one),
            mean.view(1, -1),
            rstd.view(1, -1),
            layer.weight.repeat(cases),
            1,
            cases * channels,
            voxels,
            cases * _groups(layer),
            (wants_input, True, True),
        )
        rows = {"weight": weight.view(cases, -1), "bias": bias.view(cases, -1)}
        found = {name: [row.clone() for row in rows[name]] for name in names}
        return (dx.view_as(x) if wants_input else None), Kept(found)


def _groups(layer: nn.GroupNorm | nn.InstanceNorm3d) -> int:
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else layer.num_features


class LayerNormRule(Rule):
    """Layer norm over the last axes, with weights."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the layer's output, and mean and reciprocal deviation at each position."""
        layer = self.layer
        out, mean, rstd = torch.native_layer_norm(
            x, layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )
        return out, (mean, rstd)

    def backward(self, use: Passed) -> tuple[Tensor | None, Contribution]:
        """Return the gradient of the input and the layer's contribution."""
        x, (mean, rstd), grad, wants_input, names = use
        layer = self.layer

        def of(rows: slice, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
            found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
                grad[rows],
                x[rows],
                layer.normalized_shape,
                mean[rows],
                rstd[rows],
                layer.weight,
                layer.bias,
                wanted,
            )
            return found

        dx = of(slice(None), (True, False, False))[0] if wants_input else None
        places = {"weight": 1, "bias": 2}
        wanted = (False, "weight" in names, "bias" in names)
        each = [of(slice(row, row + 1), wanted) for row in range(len(x))]
        return dx, Kept({name: [found[places[name]] for found in each] for name in names})


class AnyRule(Rule):
    """Any other layer of one tensor in and one out: run again for each case alone, and differentiated.

    The output of the case alone must be that among the others; else the layer mixes patients, or has random
    numbers of its own, and its gradients would be wrong.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the layer's output, and keep it."""
        layer = self.layer
        out: Tensor = type(layer).forward(layer, x)
        if not isinstance(out, Tensor):
            raise PrivacyError(f"{type(layer).__name__}: layers with one tensor as output can be followed")
        return out, (out,)

    def backward(self, use: Passed) -> tuple[Tensor | None, Contribution]:
        """Return the gradient of the input and the layer's contribution."""
        x, (out,), grad, wants_input, names = use
        layer = self.layer
        ordered = sorted(names)
        rows: list[Tensor] = []
        found: dict[str, list[Tensor]] = {name: [] for name in ordered}
        for row in range(len(x)):
            one = slice(row, row + 1)
            alone = x[one].detach().requires_grad_(wants_input)
            weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}
            for name in ordered:
                weights[name].requires_grad_()
            with torch.enable_grad():
                again = _alone(layer, weights, alone)
            if not _same(again, out[one]):
                raise PrivacyError(
                    f"{type(layer).__name__}: its output for a patient depends on the others in the batch, "
                    "or on chance: such a layer cannot be trained privately; use preset recommended"
                )
            wanted = [*(weights[name] for name in ordered), *([alone] if wants_input else [])]
            grads = torch.autograd.grad(again, wanted, grad[one], allow_unused=True)
            for name, value in zip(ordered, grads, strict=False):
                found[name].append(torch.zeros_like(weights[name]) if value is None else value.clone())
            if wants_input:
                last = grads[-1]
                rows.append(torch.zeros_like(alone) if last is None else last)
        return (torch.cat(rows) if wants_input else None), Kept(found)


def _alone(layer: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return what the class of a layer makes of an input, whatever stands in for its forward now."""
    replaced = layer.__dict__.pop("forward", None)
    try:
        out: Tensor = functional_call(layer, weights, (x,))
    finally:
        if replaced is not None:
            layer.__dict__["forward"] = replaced
    return out


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.detach(), other.detach()
    if not bool(one.isfinite().all()):  # such a case counts as zero in the end
        return True
    largest = other.abs().max() if other.numel() else other.new_zeros(())
    return bool((one - other).abs().max() <= SAME * largest) if other.numel() else True


def rule_for(layer: nn.Module, *, ghost: bool | None = None) -> Rule:
    """Return the rule of a layer, by its exact type: a subclass may do something else with its weights."""
    kind = type(layer)
    if isinstance(layer, _ConvNd) and kind in _CONVOLUTIONS and _padding(layer) is not None:
        return ConvolutionRule(layer, ghost=ghost)
    if isinstance(layer, nn.Linear) and kind is nn.Linear:
        return LinearRule(layer, ghost=ghost)
    if isinstance(layer, nn.GroupNorm | nn.InstanceNorm3d) and kind in (nn.GroupNorm, nn.InstanceNorm3d):
        return GroupNormRule(layer)
    if isinstance(layer, nn.LayerNorm) and kind is nn.LayerNorm:
        return LayerNormRule(layer)
    return AnyRule(layer)


_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def _padding(layer: _ConvNd) -> tuple[int, ...] | None:
    """Return how many zeros stand at each side of each axis, None where something else does."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return tuple(layer.padding)
