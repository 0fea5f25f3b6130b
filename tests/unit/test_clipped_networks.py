"""Clipped gradients against patients one at a time, by plain autograd: every layer of both networks."""

from functools import cache, lru_cache

import pytest
import torch
from torch import Tensor, nn

from fedglioma.case import UNKNOWN, Task
from fedglioma.config.run import RunConfig
from fedglioma.models.build import Switches, build_model
from fedglioma.privacy.clipped import ClippedGradients
from fedglioma.privacy.gradients import Ghost, Kept, ghost_is_cheaper
from fedglioma.training.learner import EQUAL_COUNTS, Objective, build_learner
from tests.clipped_fixture import Compared, Losses, compared, length, one_at_a_time

CROPS = {"mdpnet": 16, "sgpnet": 32}
CASES = 3


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
