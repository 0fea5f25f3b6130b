import functools
import inspect
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedglioma.case import Task
from fedglioma.errors import DataError
from fedglioma.models import sgpnet
from fedglioma.models.sgpnet import SGPNet, SGPNetConfig

TASKS = {
    "both": ["idh", "segmentation"],
    "random": ["idh", "segmentation"],
    "idh": ["idh"],
    "seg": ["segmentation"],
}


def tiny(**switches: Any) -> SGPNet:
    torch.manual_seed(0)
    return SGPNet(SGPNetConfig(**{"width": 1, **switches}))


def image_of(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, *(size or (32, 32, 32)), generator=torch.Generator().manual_seed(1))


def total(logits: dict[str, Tensor]) -> Tensor:
    # Weighted, for the two logits of a task pull in opposite directions in any real loss.
    sign = torch.tensor([1.0, -2.0])
    return sum((z.movedim(1, -1) * sign.to(z.dtype)).flatten(1).mean(1).sum() for z in logits.values())  # type: ignore[return-value]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [(32, 32, 32), (48, 48, 48), (32, 48, 64)])
def test_answers_are_two_logits_of_idh_and_two_per_voxel(size: tuple[int, ...]) -> None:
    logits = tiny()(image_of(*size))
    assert {task: z.shape for task, z in logits.items()} == {"idh": (2, 2), "segmentation": (2, 2, *size)}
    assert all(z.isfinite().all() for z in logits.values())


@pytest.mark.parametrize("size", [(40, 40, 40), (16, 16, 16), (32, 32, 16), (32, 32, 33), (0, 32, 32)])
def test_size_that_cannot_be_halved_four_times_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=f"{size[0]} x {size[1]} x {size[2]} voxels.* multiple of 16"):
        tiny()(torch.zeros(1, 4, *size))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32, 32), (1, 4, 32, 32), (4, 32, 32, 32)])
def test_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"needs \(B, 4, D, H, W\)"):
        tiny()(torch.zeros(shape))


def test_presence_of_another_batch_is_refused() -> None:
    with pytest.raises(DataError, match="one row per case"):
        tiny()(image_of(), torch.ones(3, 4))


@pytest.mark.parametrize(("targets", "tasks"), TASKS.items())
def test_experiment_answers_its_tasks_and_trains_what_answers(targets: Any, tasks: list[str]) -> None:
    model = tiny(targets=targets)
    logits = model(image_of())
    assert [task.value for task in model.tasks] == list(logits) == tasks
    total(logits).backward()
    learned = gradients(model)
    left_out = {f"heads.{task}." for task in TASKS["both"]} - {f"heads.{task}." for task in tasks}
    expected = {name for name in model.state_dict() if not name.startswith(tuple(left_out))}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learned.keys() == expected
    assert all(g.isfinite().all() for g in learned.values())


@pytest.mark.parametrize("switches", [{"targets": "idh"}, {"targets": "seg"}, {"head_1x1": "none"}])
def test_variants_start_from_the_same_weights(switches: dict[str, Any]) -> None:
    whole, variant = tiny().state_dict(), tiny(**switches).state_dict()
    assert set(whole) - set(variant) <= {"heads.idh.shortcut.weight"}
    assert all(torch.equal(weight, whole[name]) for name, weight in variant.items())


@pytest.mark.parametrize("task", ["idh", "segmentation"])
def test_parameters_of_a_task_are_named_after_it(task: str) -> None:
    model = tiny()
    total({task: model(image_of())[task]}).backward()
    learned = gradients(model)
    assert {name.split(".")[1] for name in learned if name.startswith("heads.")} == {task}
    # Both tasks teach the whole backbone.
    backbone = {name for name, _ in model.named_parameters() if not name.startswith("heads.")}
    assert backbone <= learned.keys()
    assert all(learned[name].any() for name in backbone)


def test_tasks_are_members_of_the_vocabulary() -> None:
    assert tiny().tasks == (Task.IDH, Task.SEGMENTATION)


@pytest.mark.parametrize("width", [2, 3])
def test_any_width_trains_every_parameter(width: int) -> None:
    model = tiny(width=width)
    total(model(image_of(batch=1))).backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


def test_evaluation_is_deterministic_and_training_drops_at_random() -> None:
    model, image = tiny(), image_of()
    first, second = model(image), model(image)
    assert not any(torch.equal(first[task], second[task]) for task in first)
    model.eval()
    first, second = model(image), model(image)
    assert all(torch.equal(first[task], second[task]) for task in first)


def test_dropout_has_the_rates_of_the_config() -> None:
    model = tiny(block_drop=0.1, head_drop=0.2)
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, (nn.Dropout, nn.Dropout3d))}
    assert rates == {**{f"down{i}.drop": 0.1 for i in range(1, 6)}, "heads.idh.drop": 0.2}


@settings(deadline=None, max_examples=4)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.sampled_from([-3.0, 1e30, math.nan, math.inf]))
def test_content_of_an_absent_modality_changes_no_output_and_no_gradient(
    present: list[bool], content: float
) -> None:
    model = tiny().eval()
    there = torch.tensor([present, [True] * 4], dtype=torch.float32)

    def run(image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.zero_grad()
        logits = model(image, there)
        total(logits).backward()
        return logits, gradients(model)

    clean = image_of()
    spoiled = clean.clone()
    spoiled[0, [not p for p in present]] = content
    (logits, grads), (logits_spoiled, grads_spoiled) = run(clean), run(spoiled)
    assert all(torch.equal(logits[task], logits_spoiled[task]) for task in logits)
    assert all(torch.equal(grads[name], grads_spoiled[name]) for name in grads)


def test_presence_of_everything_is_the_same_as_no_presence() -> None:
    model, image = tiny().eval(), image_of()
    assert torch.equal(model(image)["idh"], model(image, torch.ones(2, 4))["idh"])


def test_case_without_any_modality_is_finite_both_ways() -> None:
    model = tiny()
    logits = model(image_of(), torch.zeros(2, 4))
    total(logits).backward()
    assert all(z.isfinite().all() for z in logits.values())
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_gradient_of_a_batch_is_the_sum_over_its_cases() -> None:
    model = tiny().double().eval()
    image, present = image_of().double(), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]])
    total(model(image, present)).backward()
    batch = gradients(model)
    model.zero_grad(set_to_none=True)
    for case in range(2):
        total(model(image[case : case + 1], present[case : case + 1])).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, batch[name], rtol=1e-7, atol=1e-9)


def test_empty_batch_passes_both_ways() -> None:
    model = tiny()
    logits = model(torch.zeros(0, 4, 32, 32, 32), torch.zeros(0, 4))
    assert {task: z.shape for task, z in logits.items()} == {
        "idh": (0, 2),
        "segmentation": (0, 2, 32, 32, 32),
    }
    sum(z.sum() for z in logits.values()).backward()  # type: ignore[union-attr]
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
    assert not any(g.any() for g in gradients(model).values())


def test_parameters_stand_in_modules_without_children_or_buffers() -> None:
    model = tiny()
    assert not list(model.buffers())
    for _, module in model.named_modules():
        assert not (list(module.children()) and list(module.parameters(recurse=False)))


@pytest.mark.parametrize(("targets", "left_out"), [("both", None), ("idh", "segmentation"), ("seg", "idh")])
def test_no_module_is_called_twice_and_a_block_left_out_not_once(targets: Any, left_out: str | None) -> None:
    model, calls = tiny(targets=targets), Counter[str]()

    def count(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            assert len(inputs) == 1
            assert isinstance(inputs[0], Tensor)
            assert isinstance(output, Tensor)

        return hook

    leaves = {name: m for name, m in model.named_modules() if not list(m.children())}
    for name, module in leaves.items():
        module.register_forward_hook(count(name))
    model(image_of())
    assert {name: calls[name] for name in leaves} == {
        name: 0 if name.startswith(f"heads.{left_out}.") else 1 for name in leaves
    }


def test_nothing_is_changed_in_place() -> None:
    model = tiny()
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]
    # A full backward hook gives each output as a view that autograd refuses to see changed.
    for module in model.modules():
        if module is not model and list(module.parameters()):
            module.register_full_backward_hook(lambda _module, _inputs, _outputs: None)
    total(model(image_of().requires_grad_())).backward()
    assert "inplace=True" not in inspect.getsource(sgpnet)


def test_norms_have_no_weights_and_keep_no_statistics() -> None:
    norms = [m for m in tiny().modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert all(type(m) is nn.InstanceNorm3d and not m.affine and not m.track_running_stats for m in norms)
    # Down: one in the first block, three in each other; up: two, three times three, one; three for IDH.
    assert len(norms) == 1 + 4 * 3 + 2 + 3 * 3 + 1 + 3


def test_checkpointed_blocks_are_the_backbone_and_made_again_give_the_same_gradients() -> None:
    plain, again, image = tiny(), tiny(), image_of()
    blocks = again.checkpointed
    assert {id(p) for block in blocks for p in block.parameters()} == {
        id(p) for name, p in again.named_parameters() if not name.startswith("heads.")
    }
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    for model in (plain, again):
        torch.manual_seed(3)
        total(model(image)).backward()
    kept, remade = gradients(plain), gradients(again)
    assert kept.keys() == remade.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(remade[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_half_precision_and_memory_layout_change_little(layout: torch.memory_format) -> None:
    model, image = tiny(width=2).eval(), image_of()
    expected = model(image)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    found = model(image.contiguous(memory_format=layout))
    torch.testing.assert_close(found["segmentation"], expected["segmentation"], rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image.contiguous(memory_format=layout))
    assert half["idh"].dtype is torch.bfloat16
    torch.testing.assert_close(half["idh"].float(), expected["idh"], rtol=0, atol=0.05)


def test_config_survives_json() -> None:
    config = SGPNetConfig(width=2, targets="seg", head_1x1="none", block_drop=0.0)
    assert SGPNetConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"width": 0}, "greater than or equal to 1"),
        ({"channels": ("t1", "t1ce", "t2", "flair")}, "order of channels is flair, t1ce, t1, t2"),
        ({"targets": "atrx"}, "'both', 'idh', 'random' or 'seg'"),
        ({"head_1x1": "sum"}, "'shortcut' or 'none'"),
        ({"block_drop": 1.0}, "less than 1"),
        ({"head_drop": -0.1}, "greater than or equal to 0"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_config_refuses_with_words(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SGPNetConfig(**switches)
