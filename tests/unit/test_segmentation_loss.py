from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedglioma.case import Task
from fedglioma.errors import ConfigError, DataError
from fedglioma.losses.segmentation import (
    SegmentationLoss,
    SGPLoss,
    dynamic_balance,
    soft_dice_loss,
    voxel_cross_entropy,
)
from fedglioma.losses.tasks import Targets, TaskLoss
from fedglioma.models.sgpnet import SGPNet, SGPNetConfig

LOSSES: list[TaskLoss] = [
    SegmentationLoss(),
    SGPLoss(),
    SGPLoss("idh"),
    SGPLoss("seg"),
    SGPLoss("random"),
]
IDS = ["segmentation", "both", "idh", "seg", "random"]

labels_and_outlines = st.lists(st.tuples(st.integers(-1, 1), st.booleans()), min_size=1, max_size=5)


def outputs_for(batch: int, *, grad: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    idh = torch.randn(batch, 2, dtype=torch.float64, generator=g)
    outline = torch.randn(batch, 2, 3, 4, 2, dtype=torch.float64, generator=g)
    return {
        "idh": idh.to(dtype).requires_grad_(grad),
        "segmentation": outline.to(dtype).requires_grad_(grad),
    }


def targets_for(cases: list[tuple[int, bool]]) -> Targets:
    g = torch.Generator().manual_seed(1)
    genotype = torch.tensor([[idh, 1, 0] for idh, _ in cases], dtype=torch.int64).reshape(-1, 3)
    mask = torch.randint(0, 2, (len(cases), 3, 4, 2), generator=g, dtype=torch.int8)
    mask[[not outlined for _, outlined in cases]] = -1
    return Targets(genotype, mask)


def rows(outputs: dict[str, Tensor], cases: Any) -> dict[str, Tensor]:
    return {task: z[cases] for task, z in outputs.items()}


def target_rows(targets: Targets, cases: Any) -> Targets:
    assert targets.mask is not None
    return Targets(targets.genotype[cases], targets.mask[cases])


def log_odds(*probabilities: float) -> Tensor:
    """Return logits (1, 2, n, 1, 1) of a row of voxels with these probabilities of tumour."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack((torch.zeros_like(p), (p / (1 - p)).log()))[None, :, :, None, None]


def row(*voxels: int) -> Tensor:
    return torch.tensor(voxels, dtype=torch.int8)[None, :, None, None]


@pytest.mark.parametrize(
    ("probabilities", "outline", "dice"),
    [
        ((0.5, 0.5), (1, 0), 0.5),  # 2 * 0.5 / (1 + 1)
        ((0.75, 0.25), (1, 0), 0.75),  # 2 * 0.75 / (1 + 1)
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1), 2 / 3),  # 2 * 2 / (2 + 4)
        ((0.2, 0.3), (0, 0), 0.0),
    ],
)
def test_soft_dice_of_a_few_voxels_is_what_the_hand_finds(
    probabilities: tuple[float, ...], outline: tuple[int, ...], dice: float
) -> None:
    loss = soft_dice_loss(log_odds(*probabilities), row(*outline))
    assert loss.item() == pytest.approx(1 - dice, abs=3e-5)


def test_soft_dice_is_zero_where_neither_sees_a_tumour() -> None:
    nothing = torch.tensor([60.0, -60.0])[None, :, None, None, None].expand(1, 2, 4, 4, 4)
    assert soft_dice_loss(nothing, torch.zeros(1, 4, 4, 4, dtype=torch.int8)).item() == 0


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_soft_dice_is_monais_of_each_case(scale: float) -> None:
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    logits = scale * outputs_for(5)["segmentation"]
    mask = targets_for([(0, True)] * 5).mask
    assert mask is not None
    monai = losses.DiceLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        reduction="none",
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    expected = monai(logits, mask[:, None].long()).flatten()
    torch.testing.assert_close(soft_dice_loss(logits, mask), expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_voxel_cross_entropy_is_torchs_of_each_case(scale: float) -> None:
    logits = scale * outputs_for(5)["segmentation"]
    mask = targets_for([(0, True)] * 5).mask
    assert mask is not None
    for case in range(5):
        expected = F.cross_entropy(logits[case : case + 1], mask[case : case + 1].long())
        assert voxel_cross_entropy(logits, mask)[case].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", [soft_dice_loss, voxel_cross_entropy])
def test_voxel_losses_agree_with_finite_differences(loss: Any) -> None:
    logits = outputs_for(2, grad=True)["segmentation"]
    mask = targets_for([(0, True), (0, False)]).mask
    assert torch.autograd.gradcheck(lambda z: loss(z, mask), logits)


@pytest.mark.parametrize("loss", [soft_dice_loss, voxel_cross_entropy])
@pytest.mark.parametrize("shape", [(1, 3, 4, 2), (2, 3, 4, 3), (2, 1, 3, 4, 2)])
def test_outline_of_another_shape_is_refused(loss: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"\(B, D, H, W\) and \(B, 2, D, H, W\) are needed"):
        loss(outputs_for(2)["segmentation"], torch.zeros(shape, dtype=torch.int8))


@pytest.mark.parametrize("loss", [soft_dice_loss, voxel_cross_entropy])
def test_logits_of_three_classes_are_refused(loss: Any) -> None:
    with pytest.raises(DataError, match="are needed"):
        loss(torch.zeros(2, 3, 2, 2, 2), torch.zeros(2, 2, 2, 2, dtype=torch.int8))


@pytest.mark.parametrize(
    ("first", "second", "on_first", "on_second"), [(0.7, 0.9, 0.684, 0.809), (0.05, 0.2, 0.36, 0.96)]
)
def test_balance_has_the_gradients_of_the_formula(
    first: float, second: float, on_first: float, on_second: float
) -> None:
    pair = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (first, second)]
    value = dynamic_balance(*pair)
    assert value.item() == pytest.approx(first + second**2 / (first + second))
    slopes = torch.autograd.grad(value.sum(), pair)
    assert [s.item() for s in slopes] == pytest.approx([on_first, on_second], abs=5e-4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0.01, 30), st.floats(0.01, 1)), min_size=1, max_size=4))
def test_balance_agrees_with_finite_differences(pairs: list[tuple[float, float]]) -> None:
    first, second = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    assert torch.autograd.gradcheck(dynamic_balance, (first, second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("first", "second"), [(0.0, 0.0), (0.0, 0.6), (0.6, 0.0), (1e-12, 0.0), (0.0, 1e-12)]
)
def test_balance_with_a_loss_of_zero_is_the_other_one(
    first: float, second: float, dtype: torch.dtype
) -> None:
    pair = [torch.tensor([x], dtype=dtype, requires_grad=True) for x in (first, second)]
    value = dynamic_balance(*pair)
    assert value.item() == pytest.approx(first + second, rel=1e-6, abs=1e-11)
    slopes = torch.autograd.grad(value.sum(), pair)
    assert all(0 <= s.item() <= 1 for s in slopes)
    if max(first, second) > 0.1:
        assert slopes[0 if first else 1].item() == pytest.approx(1, abs=1e-6)


def test_segmentation_loss_is_dice_plus_cross_entropy() -> None:
    outputs, targets = outputs_for(3), targets_for([(0, True), (1, False), (-1, True)])
    found = SegmentationLoss().per_task(outputs, targets)
    assert targets.mask is not None
    assert found.shape == (3, 1)
    for case, outlined in enumerate((True, False, True)):
        z, mask = outputs["segmentation"][case : case + 1], targets.mask[case : case + 1]
        p = z.softmax(1)[:, 1]
        dice = (2 * (p * mask).sum() + 1e-5) / (p.sum() + mask.sum() + 1e-5)
        expected = 1 - dice + F.cross_entropy(z, mask.long()) if outlined else torch.zeros(1)
        assert found[case].item() == pytest.approx(expected.item())


def test_sgp_loss_balances_cases_one_by_one() -> None:
    outputs, targets = outputs_for(2), targets_for([(1, True), (0, True)])
    assert targets.mask is not None
    expected = 0.0
    for case in range(2):
        first = F.cross_entropy(outputs["idh"][case], targets.genotype[case, 0]).item()
        p, g = outputs["segmentation"][case].softmax(0)[1], targets.mask[case]
        second = 1 - (2 * (p * g).sum() / (p.sum() + g.sum())).item()
        expected += first + second / (first + second) * second
    assert SGPLoss()(outputs, targets).item() == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("targets", "tasks"),
    [
        ("both", (Task.IDH, Task.SEGMENTATION)),
        ("random", (Task.IDH, Task.SEGMENTATION)),
        ("idh", (Task.IDH,)),
        ("seg", (Task.SEGMENTATION,)),
    ],
)
def test_experiment_needs_the_outputs_of_its_tasks_only(targets: Any, tasks: tuple[Task, ...]) -> None:
    loss, outputs, known = SGPLoss(targets), outputs_for(3), targets_for([(1, True), (0, True), (0, True)])
    assert loss.tasks == tasks
    asked = {task.value: outputs[task] for task in tasks}
    separate = {
        Task.IDH: F.cross_entropy(outputs["idh"], known.genotype[:, 0], reduction="none"),
        Task.SEGMENTATION: soft_dice_loss(outputs["segmentation"], known.mask),  # type: ignore[arg-type]
    }
    found = loss.per_task(asked, known)
    torch.testing.assert_close(found, torch.stack([separate[task] for task in tasks], dim=1))
    if len(tasks) == 1:
        torch.testing.assert_close(loss.per_sample(asked, known), separate[tasks[0]])


@pytest.mark.parametrize("targets", ["both", "idh", "random", "seg"])
def test_network_and_loss_of_an_experiment_have_the_same_tasks(targets: Any) -> None:
    assert SGPNet(SGPNetConfig(width=1, targets=targets)).tasks == SGPLoss(targets).tasks


def test_case_with_one_target_has_that_loss_alone() -> None:
    outputs, targets = outputs_for(3), targets_for([(1, False), (-1, True), (-1, False)])
    by_task = SGPLoss().per_task(outputs, targets)
    assert (by_task != 0).tolist() == [[True, False], [False, True], [False, False]]
    torch.testing.assert_close(SGPLoss().per_sample(outputs, targets), by_task.sum(1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@settings(deadline=None, max_examples=10)
@given(labels_and_outlines)
def test_masked_loss_is_the_known_subsets_times_its_share(
    loss: TaskLoss, cases: list[tuple[int, bool]]
) -> None:
    outputs, targets = outputs_for(len(cases)), targets_for(cases)
    known = torch.stack([targets.known(task) for task in loss.tasks]).any(0)
    subset = loss(rows(outputs, known), target_rows(targets, known)).item()
    assert loss(outputs, targets).item() == pytest.approx(subset * int(known.sum()) / len(cases))


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@settings(deadline=None, max_examples=10)
@given(labels_and_outlines)
def test_gradient_of_a_case_does_not_depend_on_the_others(
    loss: TaskLoss, cases: list[tuple[int, bool]]
) -> None:
    outputs, targets = outputs_for(len(cases), grad=True), targets_for(cases)
    asked = [outputs[task] for task in loss.tasks]
    batch = torch.autograd.grad(loss(outputs, targets), asked)
    for i in range(len(cases)):
        only = slice(i, i + 1)
        alone = torch.autograd.grad(loss(rows(outputs, only), target_rows(targets, only)), asked)
        for together, separate in zip(batch, alone, strict=True):
            torch.testing.assert_close(together[only], separate[only] / len(cases))


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("mask", ["unknown", "none"])
def test_batch_of_which_nothing_is_known_costs_nothing_and_has_gradients(loss: TaskLoss, mask: str) -> None:
    outputs, targets = outputs_for(2, grad=True), targets_for([(-1, False)] * 2)
    value = loss(outputs, targets if mask == "unknown" else Targets(targets.genotype))
    value.backward()
    assert value.item() == 0
    for task in loss.tasks:
        gradient = outputs[task].grad
        assert gradient is not None
        assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_empty_batch_costs_nothing_and_has_gradients(loss: TaskLoss) -> None:
    outputs = outputs_for(0, grad=True)
    value = loss(outputs, targets_for([]))
    value.backward()
    assert value.item() == 0
    assert all(outputs[task].grad is not None for task in loss.tasks)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened(loss: TaskLoss, dtype: torch.dtype) -> None:
    targets = targets_for([(1, True), (0, True)])
    half = outputs_for(2, dtype=dtype)
    found = loss.per_task(half, targets)
    assert found.dtype is torch.float32
    wide = {task: z.double() for task, z in half.items()}
    torch.testing.assert_close(found.double(), loss.per_task(wide, targets), rtol=1e-5, atol=1e-6)


def test_dice_of_a_large_volume_in_half_precision_does_not_overflow() -> None:
    logits = torch.zeros(1, 2, 48, 48, 48, dtype=torch.float16)
    mask = torch.ones(1, 48, 48, 48, dtype=torch.int8)
    assert soft_dice_loss(logits, mask).item() == pytest.approx(1 / 3, abs=1e-5)


@pytest.mark.parametrize("sure", [50.0, 1e4])
def test_sure_and_wrong_voxels_have_a_finite_loss_and_gradient(sure: float) -> None:
    logits = torch.tensor([sure, -sure])[None, :, None, None, None].repeat(1, 1, 2, 2, 2).requires_grad_()
    targets = Targets(torch.full((1, 3), -1), torch.ones(1, 2, 2, 2, dtype=torch.int8))
    value = SegmentationLoss()({"segmentation": logits}, targets)
    value.backward()
    assert value.item() == pytest.approx(1 + 2 * sure, rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_unknown_experiment_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose both, idh, random, seg"):
        SGPLoss("dice")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_losses_exchange_nothing(loss: TaskLoss) -> None:
    assert not loss.state_dict()
