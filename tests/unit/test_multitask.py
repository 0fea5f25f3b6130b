import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedglioma.case import GENES, Gene
from fedglioma.errors import ConfigError
from fedglioma.losses.genotype import LMF
from fedglioma.losses.multitask import GenotypeLoss, LossSettings, loss_preset
from fedglioma.losses.tasks import Targets

COUNTS = {Gene.IDH: (109.0, 57.0), Gene.ATRX: (133.0, 33.0), Gene.CODEL: (153.0, 13.0)}
LABELS = torch.tensor([[1, 0, 0], [0, -1, -1], [1, 1, -1], [-1, -1, -1]])
SOME_UNKNOWN = Targets(LABELS)

label_rows = st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=6)


def logits_for(batch: int, *, grad: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(batch, 2, dtype=torch.float64, generator=generator) for _ in GENES)
    return {gene.value: z.requires_grad_(grad) for gene, z in zip(GENES, draws, strict=True)}


def rows(logits: dict[str, Tensor], cases: Any) -> dict[str, Tensor]:
    return {gene: z[cases] for gene, z in logits.items()}


def test_loss_is_its_formula() -> None:
    logits, expected = logits_for(4), 0.0
    for column, (gene, s) in enumerate(zip(GENES, (5.0, 6.0, 6.0), strict=True)):
        lmf = LMF(COUNTS[gene])(logits[gene], LABELS[:, column])
        for case in range(4):
            if LABELS[case, column] >= 0:
                expected += 0.5 * math.exp(-s) * lmf[case].item() + s
    assert GenotypeLoss(COUNTS)(logits, SOME_UNKNOWN).item() == pytest.approx(expected / 4)


def test_initial_loss_of_the_reference_starts_near_seventeen() -> None:
    labels = torch.tensor([[0, 0, 0]])
    sure = {gene.value: torch.tensor([[9.0, -9.0]]) for gene in GENES}
    assert GenotypeLoss(COUNTS)(sure, Targets(labels)).item() == pytest.approx(17.0, abs=1e-4)


def learned_from(*start: float) -> GenotypeLoss:
    """Return a loss whose log-variances are at ``start``, in task order."""
    loss = GenotypeLoss(COUNTS)
    with torch.no_grad():
        for s, value in zip(loss.parameters(), start, strict=True):
            s.fill_(value)
    return loss


def test_fixed_weights_are_equal_and_learn_nothing() -> None:
    loss, logits = GenotypeLoss(COUNTS, "fixed"), logits_for(4)
    assert not list(loss.parameters())
    torch.testing.assert_close(
        loss.per_sample(logits, SOME_UNKNOWN), 0.5 * loss.per_task(logits, SOME_UNKNOWN).sum(1)
    )


def test_fixed_equals_learned_weights_held_at_zero() -> None:
    logits = logits_for(4)
    torch.testing.assert_close(
        GenotypeLoss(COUNTS, "fixed")(logits, SOME_UNKNOWN),
        learned_from(0, 0, 0)(logits, SOME_UNKNOWN),
    )


def test_per_gene_loss_does_not_depend_on_learned_weights() -> None:
    logits = logits_for(4)
    first = GenotypeLoss(COUNTS).per_task(logits, SOME_UNKNOWN)
    assert first.shape == (4, 3)
    assert torch.equal(first, learned_from(1, 2, 3).per_task(logits, SOME_UNKNOWN))
    assert not first[LABELS < 0].any()


@settings(deadline=None, max_examples=25)
@given(label_rows)
def test_masked_loss_is_the_known_subsets_times_its_share(labels: list[list[int]]) -> None:
    y, loss = torch.tensor(labels), GenotypeLoss(COUNTS)
    logits, expected = logits_for(len(y)), 0.0
    for column in range(3):
        known = y[:, column] >= 0
        only = torch.full_like(y[known], -1)
        only[:, column] = y[known][:, column]
        expected += loss(rows(logits, known), Targets(only)).item() * len(only) / len(y)
    assert loss(logits, Targets(y)).item() == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(label_rows)
def test_gradient_of_a_batch_is_the_mean_over_its_cases(labels: list[list[int]]) -> None:
    y, loss = torch.tensor(labels), GenotypeLoss(COUNTS).double()
    logits = logits_for(len(y), grad=True)
    targets = [*logits.values(), *loss.parameters()]
    batch = torch.autograd.grad(loss(logits, Targets(y)), targets)
    alone = [
        torch.autograd.grad(loss(rows(logits, slice(i, i + 1)), Targets(y[i : i + 1])), targets)
        for i in range(len(y))
    ]
    for index, gradient in enumerate(batch):
        torch.testing.assert_close(gradient, sum(case[index] for case in alone) / len(y))


@pytest.mark.parametrize("gene", GENES)
def test_gene_without_labels_in_a_batch_leaves_its_weight_and_head_alone(gene: Gene) -> None:
    labels = torch.ones(3, 3, dtype=torch.int64)
    labels[:, GENES.index(gene)] = -1
    loss, logits = GenotypeLoss(COUNTS), logits_for(3, grad=True)
    loss(logits, Targets(labels)).backward()
    for other in GENES:
        s = loss.get_parameter(f"weights.{other.value}.log_variance")
        for gradient in (s.grad, logits[other].grad):
            assert gradient is not None
            assert bool(gradient.any()) is (other is not gene)


def test_log_variance_settles_at_the_logarithm_of_half_the_loss() -> None:
    loss, logits, labels = GenotypeLoss(COUNTS).double(), logits_for(1), torch.tensor([[1, 1, 1]])
    lmf = loss.per_task(logits, Targets(labels))[0]
    for gene, value in zip(GENES, lmf, strict=True):
        s = loss.get_parameter(f"weights.{gene.value}.log_variance")
        s.data.fill_(math.log(value / 2))
    loss(logits, Targets(labels)).backward()
    assert all(p.grad is not None and abs(p.grad.item()) < 1e-9 for p in loss.parameters())


@pytest.mark.parametrize("weighting", ["uncertainty", "fixed"])
def test_empty_batch_costs_nothing_and_has_gradients(weighting: Any) -> None:
    loss, logits = GenotypeLoss(COUNTS, weighting), logits_for(0, grad=True)
    value = loss(logits, Targets(torch.zeros(0, 3, dtype=torch.int64)))
    value.backward()
    assert value.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_exchanged_state_is_one_weight_per_gene_in_modules_without_children() -> None:
    loss = GenotypeLoss(COUNTS)
    names = ["weights.idh.log_variance", "weights.atrx.log_variance", "weights.codel_1p19q.log_variance"]
    assert list(loss.state_dict()) == [name for name, _ in loss.named_parameters()] == names
    owners = [module for module in loss.modules() if list(module.parameters(recurse=False))]
    assert all(not list(module.children()) and not list(module.buffers()) for module in owners)


def test_half_precision_logits_are_widened() -> None:
    logits = {gene: z.to(torch.bfloat16) for gene, z in logits_for(4).items()}
    assert GenotypeLoss(COUNTS).per_task(logits, SOME_UNKNOWN).dtype is torch.float32


def test_presets_differ_in_what_goes_into_ldam() -> None:
    assert loss_preset("recommended") == LossSettings()
    assert loss_preset("reference") == LossSettings(ldam_input="double_softmax")
    for name in ("recommended", "reference"):
        GenotypeLoss(COUNTS, **loss_preset(name).model_dump())
    with pytest.raises(ConfigError, match="choose recommended or reference"):
        loss_preset("best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {Gene.IDH: (1, 1)}}, "lack atrx, codel_1p19q"),
        ({"counts": COUNTS, "weighting": "equal"}, "weighting 'equal'"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenotypeLoss(**arguments)
