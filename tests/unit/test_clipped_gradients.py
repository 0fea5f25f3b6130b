"""Clipped gradients against patients one at a time, by plain autograd: every layer of both networks."""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedglioma.case import UNKNOWN, Task
from fedglioma.config.run import RunConfig
from fedglioma.errors import PrivacyError
from fedglioma.models.build import Switches, build_model
from fedglioma.models.vit import PositionGrid
from fedglioma.privacy.clipped import ClippedGradients
from fedglioma.privacy.gradients import Ghost, Kept, ghost_is_cheaper
from fedglioma.privacy.layers import ConvolutionRule, Passed
from fedglioma.privacy.network import require_private
from fedglioma.training.learner import EQUAL_COUNTS, Objective, build_learner

CROPS = {"mdpnet": 16, "sgpnet": 32}
CASES = 3
Losses = Callable[[slice], Tensor]


class Compared(NamedTuple):
    """Gradients of one model in two ways, by name of the parameter; lengths of the cases' gradients."""

    ours: dict[str, Tensor]
    one_by_one: dict[str, Tensor]
    lengths: Tensor
    expected_lengths: Tensor


def one_at_a_time(model: nn.Module, losses: Losses, cases: int) -> list[dict[str, Tensor]]:
    """Return each case's gradients by plain autograd, in double precision."""
    found = []
    for row in range(cases):
        model.zero_grad(set_to_none=True)
        losses(slice(row, row + 1)).sum().backward()
        found.append(
            {
                name: (torch.zeros_like(p) if p.grad is None else p.grad).double()
                for name, p in model.named_parameters()
                if p.requires_grad
            }
        )
    model.zero_grad(set_to_none=True)
    return found


def length(grads: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))


def clipped_by_hand(each: Sequence[dict[str, Tensor]], clip: float, clipping: str) -> dict[str, Tensor]:
    layers = {name: name.rpartition(".")[0] for name in each[0]}
    total = {name: torch.zeros_like(grad) for name, grad in each[0].items()}
    for grads in each:
        for name, grad in grads.items():
            if clipping == "flat":
                whole, limit = length(grads), clip
            else:
                whole = length({other: g for other, g in grads.items() if layers[other] == layers[name]})
                limit = clip / math.sqrt(len(set(layers.values())))
            total[name] += grad * min(1.0, limit / whole if whole else 1.0)
    return total


def compared(
    model: nn.Module,
    losses: Losses,
    cases: int,
    *,
    clip: float,
    clipping: Any = "flat",
    ghost: bool | None = None,
    each: Sequence[dict[str, Tensor]] | None = None,
) -> Compared:
    each = each or one_at_a_time(model, losses, cases)
    model.zero_grad(set_to_none=True)
    with ClippedGradients(model, clip_norm=clip, clipping=clipping, ghost=ghost) as clipped:
        lengths = clipped.backward(losses(slice(cases)))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = torch.tensor([length(grads) for grads in each], dtype=torch.float64)
    return Compared(ours, clipped_by_hand(each, clip, clipping), lengths, expected)


def assert_same(found: Compared, tolerance: float) -> None:
    torch.testing.assert_close(found.lengths, found.expected_lengths, rtol=tolerance, atol=1e-12)
    assert found.ours.keys() == found.one_by_one.keys()
    for name, expected in found.one_by_one.items():
        apart = float((found.ours[name].double() - expected).norm())
        assert apart <= tolerance * max(float(expected.norm()), 1e-6), name


@lru_cache(maxsize=2)
def network(name: str, dtype: torch.dtype, channels_last: bool = False) -> tuple[nn.Module, Losses]:
    """Return a small network without dropout, all of whose layers count, and the losses of its cases."""
    settings = RunConfig.model_validate(
        {"model": name, "width": 2, "crop": CROPS[name], "strategy": "fedprox", "local_epochs": 1}
    )
    torch.manual_seed(0)
    learner = build_learner(settings, EQUAL_COUNTS)
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    with torch.no_grad():
        for parameter in learner.model.parameters():
            if not parameter.any():  # the gates start at 0
                parameter.normal_(0, 0.1)
    learner.model.to(dtype)
    learner.loss.to(dtype)
    image = torch.randn(CASES, 4, *(settings.crop,) * 3, dtype=dtype)
    if channels_last:
        learner.model.to(memory_format=torch.channels_last_3d)
        image = image.contiguous(memory_format=torch.channels_last_3d)
    genotype = torch.tensor([[1, 0, UNKNOWN], [0, UNKNOWN, 1], [1, 1, 0]])
    present = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    mask = (image[:, 0] > 1).to(torch.int8) if Task.SEGMENTATION in settings.tasks else None
    objective = Objective(learner.model, learner.loss)

    def losses(rows: slice) -> Tensor:
        part = None if mask is None else mask[rows]
        value: Tensor = objective(image[rows], present[rows], genotype[rows], part)[0]
        return value

    return learner.model, losses


@cache
def references(name: str) -> list[dict[str, Tensor]]:
    return one_at_a_time(*network(name, torch.float64), CASES)


@cache
def whole(name: str, clipping: str, clip: float) -> Compared:
    model, losses = network(name, torch.float64)
    return compared(model, losses, CASES, clip=clip, clipping=clipping, each=references(name))


def names_of(model: str) -> list[tuple[str, str]]:
    with torch.device("meta"):
        built = build_model(model, Switches(width=2, pos_grid=(2, 2, 2)))
    return [(model, name) for name, _ in built.named_parameters()]


@pytest.mark.parametrize(("model", "name"), [*names_of("mdpnet"), *names_of("sgpnet")])
@pytest.mark.parametrize(("clipping", "clip"), [("flat", 1e9), ("flat", 0.01), ("per_layer", 0.01)])
def test_gradient_of_each_layer_is_that_of_patients_one_at_a_time(
    model: str, name: str, clipping: str, clip: float
) -> None:
    found = whole(model, clipping, clip)
    expected = found.one_by_one[name]
    # A bias before a norm has a gradient of rounding errors.
    assert float((found.ours[name] - expected).norm()) <= 1e-11 * max(
        float(expected.norm()), 1e-3 * min(clip, 1)
    )


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet"])
def test_lengths_are_those_of_patients_one_at_a_time(model: str) -> None:
    found = whole(model, "flat", 0.01)
    torch.testing.assert_close(found.lengths, found.expected_lengths, rtol=1e-12, atol=0)
    assert (found.lengths > 0.01).all()


@pytest.mark.parametrize(("model", "channels_last"), [("mdpnet", False), ("mdpnet", True), ("sgpnet", True)])
def test_networks_in_single_precision_are_right_to_a_hundred_thousandth(
    model: str, channels_last: bool
) -> None:
    net, losses = network(model, torch.float32, channels_last)
    found = compared(net, losses, CASES, clip=0.01)
    # Against the whole gradient: layers that add up to nothing are rounding errors in both.
    torch.testing.assert_close(found.lengths, found.expected_lengths, rtol=1e-5, atol=0)
    apart = length({name: found.ours[name].double() - g for name, g in found.one_by_one.items()})
    assert apart <= 1e-5 * length(found.one_by_one)
    for name, parameter in net.named_parameters():
        assert found.ours[name].stride() == parameter.stride(), name


def test_large_layers_of_mdpnet_are_ghosts_and_those_on_large_maps_are_kept() -> None:
    model = build_model("mdpnet", Switches(width=2, pos_grid=(2, 2, 2)))
    clipped = ClippedGradients(model, clip_norm=1.0)
    kinds: dict[type, set[str]] = {Ghost: set(), Kept: set()}
    with clipped:
        out = model(torch.randn(1, 4, 16, 16, 16))
        torch.stack([value.sum() for value in out.values()]).sum().backward()
        for followed in clipped._layers:
            kinds[type(followed.contributions[0])].add(followed.path)
    assert {"fc_in", "heads.idh.fc1", "deep2.layer4.1.conv1"} <= kinds[Ghost]
    assert {"trunk.init_conv", "trunk.b1.0.conv1", "stem.0"} <= kinds[Kept]


def test_ghost_is_chosen_where_the_weight_is_large_and_the_map_small() -> None:
    assert ghost_is_cheaper(8, 512 * 27, 512)
    assert ghost_is_cheaper(1, 1280, 512)
    assert not ghost_is_cheaper(64**3, 16 * 27, 16)
    assert not ghost_is_cheaper(4096, 512, 4096)


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


def small(*, seed: int = 0, **_: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 27, 3)
    )


@settings(deadline=None, max_examples=40)
@given(
    clip=st.floats(1e-6, 1e6),
    scale=st.floats(1e-4, 1e4),
    clipping=st.sampled_from(["flat", "per_layer"]),
    seed=st.integers(0, 100),
)
def test_no_patient_moves_the_sum_by_more_than_the_bound(
    clip: float, scale: float, clipping: Any, seed: int
) -> None:
    model = small(seed=seed)
    with ClippedGradients(model, clip_norm=clip, clipping=clipping) as clipped:
        clipped.backward(scale * model(torch.randn(1, 2, 3, 3, 3)).square().sum(1))
    grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    assert length(grads) <= clip
    if clipping == "per_layer":
        first = {name: grad for name, grad in grads.items() if name.startswith("0.")}
        assert length(first) <= clip / math.sqrt(3)


def test_several_physical_batches_are_one_batch() -> None:
    model, x = small().double(), torch.randn(5, 2, 3, 3, 3, dtype=torch.float64)
    found = []
    for sizes in ((5,), (2, 2, 1), (1, 1, 1, 1, 1), (3, 0, 2)):
        model.zero_grad()
        with ClippedGradients(model, clip_norm=0.5) as clipped:
            lengths = [clipped.backward(model(part).square().sum(1)) for part in x.split(sizes)]
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append(torch.cat((grads, torch.cat(lengths))))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-14)


def test_empty_batch_gives_every_trained_parameter_zeros() -> None:
    model = small()
    model[0].bias.requires_grad_(False)
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        lengths = clipped.backward(model(torch.randn(0, 2, 3, 3, 3)).sum(1))
    assert lengths.shape == (0,)
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert not parameter.grad.any()
        else:
            assert parameter.grad is None


def test_empty_batch_takes_nothing_from_the_step() -> None:
    model, x = small(), torch.randn(2, 2, 3, 3, 3)
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        clipped.backward(model(x).sum(1))
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        clipped.backward(model(x[:0]).sum(1))
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


def test_frozen_layers_pass_the_gradient_on_and_are_left_alone() -> None:
    model, x = small(), torch.randn(2, 2, 3, 3, 3)
    model[1].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    model.double()
    x = x.double()
    assert_same(compared(model, lambda rows: model(x[rows]).square().sum(1), 2, clip=0.1), 1e-11)
    assert model[1].weight.grad is None
    assert model[4].bias.grad is None


def test_layer_that_no_patient_reached_counts_as_zero() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        clipped.backward(model["used"](torch.randn(2, 3)).sum(1))
    assert not model["unused"].weight.grad.any()
    assert model["used"].weight.grad.any()


@pytest.mark.parametrize("ghost", [True, False])
def test_layer_used_twice_is_right(ghost: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4)).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)

    def losses(rows: slice) -> Tensor:
        out: Tensor = model(torch.tanh(model(x[rows])))
        return out.square().sum((1, 2))

    assert_same(compared(model, losses, 3, clip=0.5, ghost=ghost), 1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("ghost", [None, True, False])
def test_patient_without_a_finite_gradient_counts_as_zero(value: float, ghost: bool | None) -> None:
    model, x = small(), torch.randn(3, 2, 3, 3, 3)
    bad = x.clone()
    bad[1, 0, 0, 0, 0] = value
    grads = []
    for batch, lost in ((x[[0, 2]], 0), (bad, 1)):
        model.zero_grad()
        with ClippedGradients(model, clip_norm=0.1, ghost=ghost) as clipped:
            lengths = clipped.backward(model(batch).square().sum(1))
        assert clipped.not_finite == lost
        assert int((~lengths.isfinite()).sum()) == lost
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for good, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, good, rtol=1e-4, atol=1e-6)


def test_network_is_what_it_was_afterwards() -> None:
    model, x = small(), torch.randn(2, 2, 3, 3, 3)
    keys, before = list(model.state_dict()), model(x)
    inside = ClippedGradients(model, clip_norm=1.0)
    with inside:
        assert list(model.state_dict()) == keys
        torch.testing.assert_close(model(x), before)
        with torch.no_grad():
            torch.testing.assert_close(model(x), before)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(p.requires_grad and not p._backward_hooks for p in model.parameters())
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model[4].parameters())


def test_network_is_what_it_was_after_an_error_inside() -> None:
    model = small()
    with pytest.raises(ZeroDivisionError), ClippedGradients(model, clip_norm=1.0):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())


class Around(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) @ self.fc.weight
        return out


class Mixing(nn.Module):
    """A layer in which patients see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.weight


class Folding(nn.Module):
    """Counts tokens in the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.reshape(-1, 3)).view_as(x)
        return out


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Around(), "otherwise than by its own layer"),
        (nn.Sequential(Mixing()), "depends on the others"),
        (Folding(), "saw 8 rows for 2 patients"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_leaves_no_gradient(model: nn.Module, words: str) -> None:
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        losses = model(torch.randn(2, 4, 3)).flatten(1).sum(1)
        with pytest.raises(PrivacyError, match=words):
            clipped.backward(losses)
    assert all(p.grad is None for p in model.parameters())


def test_loss_that_is_one_number_for_all_is_refused() -> None:
    model = small()
    with (
        ClippedGradients(model, clip_norm=1.0) as clipped,
        pytest.raises(PrivacyError, match="one number per patient"),
    ):
        clipped.backward(model(torch.randn(2, 2, 3, 3, 3)).sum())


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_clip_norm_must_be_a_length(clip: float) -> None:
    with pytest.raises(PrivacyError, match="clip_norm"):
        ClippedGradients(small(), clip_norm=clip)


class Owner(nn.Module):
    """Owns a parameter beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(2, 2)


class Buffered(nn.Module):
    """Has a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))


def tied() -> nn.Module:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    return nn.Sequential(one, other)


def frozen(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), module.requires_grad_(False))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1)),
            r"1 \(BatchNorm3d\) normalises over the batch",
        ),
        (frozen(nn.BatchNorm3d(1)), "normalises over the batch"),
        (frozen(nn.BatchNorm1d(2, affine=False)), "normalises over the batch"),
        (nn.Sequential(nn.InstanceNorm3d(1, affine=True, track_running_stats=True)), "running statistics"),
        (Owner(), r"the network \(Owner\) owns parameters beside"),
        (nn.Sequential(Buffered()), "both parameters and buffers"),
        (tied(), r"1.weight is the same parameter as 0.weight"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.Sequential(nn.LSTM(2, 2)), "LSTM"),
        (nn.Linear(2, 2).eval(), "evaluation mode"),
    ],
)
def test_network_that_cannot_be_private_is_refused_by_name(module: nn.Module, words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        require_private(module)


def test_published_batch_norm_is_refused_with_the_remedy() -> None:
    model = build_model("mdpnet", Switches(preset="reference", width=1, pos_grid=(2, 2, 2)))
    with pytest.raises(PrivacyError, match="more; choose preset recommended"):
        require_private(model)


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet", "resnet50", "unet"])
def test_recommended_networks_can_be_private(model: str) -> None:
    require_private(build_model(model, Switches(width=8, pos_grid=(2, 2, 2))))


def test_buffer_that_the_images_change_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.fc = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x.detach().mean())
            out: Tensor = self.fc(x)
            return out

    model = Counting()
    with ClippedGradients(model, clip_norm=1.0) as clipped, pytest.raises(PrivacyError, match="seen changed"):
        clipped.backward(model(torch.randn(2, 2))[:, 0])
