"""Statistics of batch normalisation from images, against PyTorch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import Sample
from fedglioma.training.calibrate import estimate_norms
from fedglioma.training.learner import EQUAL_COUNTS, build_learner

CPU = torch.device("cpu")


def batches(*sizes: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            torch.randn(size, 4, 16, 16, 16, generator=generator) + 2,
            torch.ones(size, 4),
            torch.zeros(size, 3, dtype=torch.int64),
        )
        for size in sizes
    ]


def network(preset: str) -> nn.Module:
    torch.manual_seed(0)
    return build_learner(RunConfig(width=1, crop=16, preset=preset), EQUAL_COUNTS).model


class Whole(nn.Module):
    """The network with image and presence as one input, as ``update_bn`` gives them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pair: torch.Tensor) -> object:
        return self.model(pair, torch.ones(len(pair), 4))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_statistics_are_those_of_pytorchs_update_bn() -> None:
    model, data = network("reference"), batches(3, 2)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    theirs = copy.deepcopy(model)
    assert estimate_norms(model, data, device=CPU) == 2
    update_bn([sample.image for sample in data], Whole(theirs))
    for (name, ours), other in zip(state(model).items(), state(theirs).values(), strict=True):
        torch.testing.assert_close(ours, other, msg=name)


def test_nothing_but_statistics_changes_and_the_model_is_left_in_evaluation() -> None:
    model = network("reference")
    before = state(model)
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    model.train()
    estimate_norms(model, batches(2), device=CPU)
    assert not any(module.training for module in model.modules())
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm3d)] == momenta
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_twice_is_once() -> None:
    model = network("reference")
    estimate_norms(model, batches(3, 2), device=CPU)
    once = state(model)
    estimate_norms(model, batches(3, 2), device=CPU)
    assert all(torch.equal(tensor, once[name]) for name, tensor in state(model).items())


def test_network_without_batch_norm_is_left_alone() -> None:
    model = network("recommended")
    before = state(model)
    assert estimate_norms(model, batches(2), device=CPU) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1)])
def test_too_few_cases_leave_untrained_statistics(sizes: tuple[int, ...]) -> None:
    model = network("reference")
    before = state(model)
    assert estimate_norms(model, batches(*sizes), device=CPU) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
