"""Clipped gradients of one layer of any shape, against patients one at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedglioma.models.vit import PositionGrid
from fedglioma.privacy.gradients import Ghost
from fedglioma.privacy.layers import ConvolutionRule, Passed
from tests.clipped_fixture import assert_same, compared


class Layer(nn.Module):
    """A layer between others, so that its input has a gradient too; each case's loss weighs all outputs."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.before = PositionGrid(x.shape[1], x.shape[2:]).to(x.dtype) if x.ndim == 5 else nn.Identity()
        self.layer = layer
        self.x = [x]
        with torch.no_grad():
            self.weigh = [torch.randn_like(layer(x))]

    def losses(self, rows: slice) -> Tensor:
        out: Tensor = self.layer(self.before(self.x[0][rows]))
        return (out * self.weigh[0][rows] + 0.1 * out.square()).flatten(1).sum(1)


def check_layer(layer: nn.Module, x: Tensor, clip: float = 1.0, ghost: bool | None = None) -> None:
    model = Layer(layer.double(), x.double())
    assert_same(compared(model, model.losses, len(x), clip=clip, ghost=ghost), 1e-10)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_convolutions_of_any_shape_are_exact(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    transposed = draw(st.booleans()) and draw(st.booleans())
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride = tuple(draw(st.integers(1, 2)) for _ in range(3))
    dilation = draw(st.integers(1, 2))
    edge = tuple(draw(st.integers(5, 7)) for _ in range(3))
    kind = nn.ConvTranspose3d if transposed else nn.Conv3d
    layer = kind(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    x = torch.randn(draw(st.integers(1, 3)), layer.in_channels, *edge)
    check_layer(layer, x, draw(st.sampled_from([0.1, 1e6])), draw(st.sampled_from([None, True, False])))


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    ends=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
    ghost=st.sampled_from([None, True, False]),
    clip=st.sampled_from([0.1, 1e6]),
)
def test_linear_maps_of_any_shape_are_exact(
    shape: list[int], ends: tuple[int, int], bias: bool, ghost: bool | None, clip: float
) -> None:
    torch.manual_seed(0)
    check_layer(nn.Linear(*ends, bias=bias), torch.randn(*shape, ends[0]), clip, ghost)


@settings(deadline=None, max_examples=40)
@given(
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    edges=st.tuples(*(st.integers(1, 4) for _ in range(3))),
    cases=st.integers(1, 3),
    kind=st.sampled_from(["group", "instance", "layer", "layer without bias", "positions", "resized"]),
    channels_last=st.booleans(),
)
def test_norms_and_positions_of_any_shape_are_exact(
    groups: int, per_group: int, edges: tuple[int, int, int], cases: int, kind: str, channels_last: bool
) -> None:
    torch.manual_seed(0)
    channels, size = groups * per_group, (edges[0] + 1, *edges[1:])
    x = torch.randn(cases, channels, *size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    layer: nn.Module = {
        "group": nn.GroupNorm(groups, channels),
        "instance": nn.InstanceNorm3d(channels, affine=True),
        "layer": nn.LayerNorm(size[-2:]),
        "layer without bias": nn.LayerNorm(size[-1], bias=False),
        "positions": PositionGrid(channels, size),
        "resized": PositionGrid(channels, (2, 2, 2)),
    }[kind]
    check_layer(layer, x, 0.5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("stride", "padding", "kernel"), [(1, 1, 3), (2, 1, 3), (1, 0, 3), (2, 0, 1), (1, 3, 7)]
)
def test_one_small_image_in_two_halves_has_the_gradient_of_the_whole(
    stride: int, padding: int, kernel: int, channels_last: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 5, kernel, stride=stride, padding=padding)
    x = torch.randn(1, 4, 17 if not padding else 16, 12, 12)
    if channels_last:
        layer.to(memory_format=torch.channels_last_3d)
        x = x.contiguous(memory_format=torch.channels_last_3d)
    out = layer(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    use = Passed(x, (), grad, True, frozenset({"weight", "bias"}))
    _, found = ConvolutionRule(layer, ghost=False).backward(use)
    assert layer.weight.grad is not None
    torch.testing.assert_close(found.per_case()["weight"][0], layer.weight.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(2, 3, 3, padding="same"), (3, 2, 4, 4, 4)),
        (nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 2, 4, 4, 4)),
        (nn.Conv1d(4, 2, 3, groups=2), (3, 4, 6)),
        (nn.Conv2d(2, 3, 3, padding=(1, 0)), (2, 2, 5, 4)),
        (nn.PReLU(2), (2, 2, 3)),
        (nn.RMSNorm(3), (2, 4, 3)),
    ],
)
def test_layers_without_a_rule_of_their_own_are_exact(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check_layer(layer, torch.randn(shape), 0.5)


def test_ghost_norm_is_right_where_positions_cancel() -> None:
    # Single precision would have no digit of it right.
    x = torch.full((1, 50, 6), 100.0) + 0.01 * torch.randn(1, 50, 6, generator=torch.manual_seed(0))
    grad = torch.randn(1, 50, 4)
    grad -= grad.mean(1, keepdim=True)
    ghost = Ghost(x, grad, torch.Size((4, 6)), frozenset({"weight"}))
    exact = (grad.double().mT @ x.double()).square().sum()
    assert float(ghost.squares()[0]) == pytest.approx(float(exact), rel=1e-6)
