"""Layout, recomputation, compilation and repeatability: faster or smaller, and nothing else different."""

import gc
import os
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.losses.multitask import GenotypeLoss
from fedglioma.training.learner import EQUAL_COUNTS, Learner, Objective, build_learner
from fedglioma.training.speed import repeatable, tuned
from fedglioma.weights import GROUPS, Layout, pack, unpack

CROPS = {"mdpnet": 16, "sgpnet": 32, "unet": 16, "resnet50": 16}
WIDTHS = {"unet": 4, "resnet50": 4}
Results = tuple[Tensor, dict[str, Tensor]]


def learner_of(model: str, **changed: Any) -> Learner:
    table = {"model": model, "width": WIDTHS.get(model, 2), "crop": CROPS[model], **changed}
    torch.manual_seed(0)
    return build_learner(RunConfig.model_validate(table), EQUAL_COUNTS)


def batch_of(model: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    edge = CROPS[model]
    image = torch.randn(2, 4, edge, edge, edge, generator=generator)
    mask = (torch.rand(2, edge, edge, edge, generator=generator) < 0.3).to(torch.int8)
    return image, torch.ones(2, 4), torch.tensor([[0, 1, 0], [1, 0, 1]]), mask


def stepped(objective: nn.Module, batch: tuple[Tensor, ...]) -> Results:
    """Return losses and gradients of a step with dropout on."""
    objective.train()
    torch.manual_seed(2)
    value, _ = objective(*batch)
    value.sum().backward()
    return value.detach(), gradients_of(objective)


def gradients_of(objective: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def assert_close(one: Results, other: Results, **apart: float) -> None:
    torch.testing.assert_close(one[0], other[0], **apart)
    assert set(one[1]) == set(other[1])
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], **apart, msg=name)


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet", "unet"])
@pytest.mark.parametrize(
    ("dtype", "apart"),
    [(torch.float64, {"rtol": 1e-10, "atol": 1e-12}), (torch.float32, {"rtol": 1e-3, "atol": 1e-5})],
)
def test_channels_last_changes_no_value(model: str, dtype: torch.dtype, apart: dict[str, float]) -> None:
    image, *rest = batch_of(model)
    found = []
    for channels_last in (False, True):
        learner = learner_of(model)
        learner.model.to(dtype)
        learner.loss.to(dtype)
        for module in learner.model.modules():  # dropout of single numbers follows the layout in memory
            if isinstance(module, nn.Dropout | nn.Dropout3d):
                module.p = 0.0
        objective = tuned(Objective(learner.model, learner.loss), channels_last=channels_last)
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        batch = (image.to(dtype).contiguous(memory_format=layout), *rest)
        found.append(stepped(objective, batch))
    assert_close(found[0], found[1], **apart)


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet", "unet"])
def test_weights_are_exchanged_alike_whatever_their_layout_in_memory(model: str) -> None:
    plain, laid_out = learner_of(model), learner_of(model)
    tuned(Objective(laid_out.model, laid_out.loss), channels_last=True)
    kernels = [p for p in laid_out.model.parameters() if p.ndim == 5 and min(p.shape[1:3]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
    assert list(laid_out.model.state_dict()) == list(plain.model.state_dict())
    assert Layout.of(laid_out.model, laid_out.loss) == Layout.of(plain.model, plain.loss)
    sent = pack(plain.model, plain.loss)
    for group in GROUPS:
        assert pack(laid_out.model, laid_out.loss)[group].tobytes() == sent[group].tobytes()
    changed = {group: np.arange(array.size, dtype=np.float32) for group, array in sent.items()}
    unpack(changed, laid_out.model, laid_out.loss)
    for group in GROUPS:
        assert pack(laid_out.model, laid_out.loss)[group].tobytes() == changed[group].tobytes()
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, each block of memory once."""

    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        self.own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.seen: dict[int, int] = {}
        self.held: list[Tensor] = []  # or its memory could be given to the next tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.seen[storage.data_ptr()] = storage.nbytes()
            self.held.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.seen.values())


@pytest.mark.parametrize(
    ("model", "preset", "share"),
    [("mdpnet", "recommended", 0.4), ("mdpnet", "reference", 0.4), ("sgpnet", "recommended", 0.4)],
)
def test_recomputed_activations_give_the_same_gradients_from_less_memory(
    model: str, preset: str, share: float
) -> None:
    batch, found, memory, buffers = batch_of(model), [], [], []
    for checkpointing in (False, True):
        learner = learner_of(model, preset=preset)
        names = list(learner.model.state_dict())
        objective = tuned(Objective(learner.model, learner.loss), checkpointing=checkpointing)
        assert list(learner.model.state_dict()) == names
        kept = Kept(objective.parameters())
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            torch.manual_seed(2)
            value, _ = objective.train()(*batch)
        memory.append(kept.bytes)
        value.sum().backward()
        found.append((value.detach(), gradients_of(objective)))
        buffers.append(dict(learner.model.named_buffers()))
    assert_close(found[0], found[1], rtol=0, atol=0)
    assert memory[1] < share * memory[0]
    for name, buffer in buffers[0].items():  # running statistics: once per batch, not once per pass
        assert torch.equal(buffer, buffers[1][name]), name


def test_checkpointed_network_is_read_without_gradients_as_before() -> None:
    plain, saved = learner_of("sgpnet"), learner_of("sgpnet")
    tuned(Objective(saved.model, saved.loss), checkpointing=True)
    image, present, *_ = batch_of("sgpnet")
    with torch.no_grad():
        one, other = (learner.model.eval()(image, present) for learner in (plain, saved))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_network_without_blocks_refuses_checkpointing_in_words() -> None:
    learner = learner_of("resnet50")
    with pytest.raises(ConfigError, match="this network has no blocks for it; switch it off"):
        tuned(Objective(learner.model, learner.loss), checkpointing=True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compile by tracing alone; the list has an entry for each graph that was made."""
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield graphs
    torch._dynamo.reset()


def test_compiled_rounds_share_one_graph_and_leave_no_network_behind(counted: list[int]) -> None:
    batch = batch_of("mdpnet")
    learner = learner_of("mdpnet")
    expected = stepped(tuned(Objective(learner.model, learner.loss)), batch)
    seen = []
    for _ in range(10):  # more than the graphs that torch makes of one function before it gives up
        learner = learner_of("mdpnet")
        objective = tuned(Objective(learner.model, learner.loss), compiled=True)
        assert [name for name, _ in objective.named_parameters()] == list(
            dict(Objective(learner.model, learner.loss).named_parameters())
        )
        assert_close(stepped(objective, batch), expected, rtol=0, atol=0)
        seen.append(weakref.ref(learner.model))
        del learner, objective
    gc.collect()
    assert len(counted) == 1
    assert not any(reference() is not None for reference in seen)


class Small(nn.Module):
    """A network of one block that keeps statistics and drops out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv3d(4, 3, 3), nn.BatchNorm3d(3), nn.Dropout3d(0.3), nn.ReLU())
        self.heads = nn.ModuleDict({gene.value: nn.Linear(3, 2) for gene in GENES})
        self.checkpointed = (self.block,)

    def forward(self, image: Tensor, _present: Tensor) -> dict[str, Tensor]:
        features = self.block(image).mean((2, 3, 4))
        return {name: head(features) for name, head in self.heads.items()}


@pytest.mark.filterwarnings("ignore")  # torch's own, from inside its compiler
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_step_is_the_plain_one(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found, buffers = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        small = Small()
        objective = tuned(
            Objective(small, GenotypeLoss(EQUAL_COUNTS)),
            checkpointing=checkpointing and compiled,
            compiled=compiled,
        )
        found.append(stepped(objective, batch_of("mdpnet")))
        buffers.append(dict(small.named_buffers()))
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    for name, buffer in buffers[0].items():
        torch.testing.assert_close(buffer, buffers[1][name], msg=name)
    torch._dynamo.reset()


def test_recomputing_rounds_leave_no_network_behind() -> None:
    seen = []
    for _ in range(2):
        learner = learner_of("mdpnet")
        stepped(tuned(Objective(learner.model, learner.loss), checkpointing=True), batch_of("mdpnet"))
        seen.append(weakref.ref(learner.model))
        del learner
    gc.collect()
    assert not any(reference() is not None for reference in seen)


Flags = tuple[bool, bool, bool]


def flags() -> Flags:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )


def set_flags(wanted: Flags) -> None:
    torch.use_deterministic_algorithms(wanted[0], warn_only=wanted[1])
    torch.backends.cudnn.benchmark = wanted[2]


@pytest.mark.parametrize("before", [(False, False, True), (True, False, False), (True, True, True)])
def test_repeatable_sets_its_flags_and_puts_back_what_it_found(
    before: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    found = flags()
    set_flags(before)
    try:
        with repeatable(False):
            assert flags() == before
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        with repeatable(True):
            assert flags() == (True, True, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert flags() == before
        with pytest.raises(KeyboardInterrupt), repeatable(True):
            raise KeyboardInterrupt
        assert flags() == before
    finally:
        set_flags(found)


def test_repeatable_leaves_a_workspace_that_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with repeatable(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
