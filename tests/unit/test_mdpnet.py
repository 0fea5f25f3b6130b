import copy
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

from fedglioma.case import GENES, Gene, Modality
from fedglioma.errors import ConfigError, DataError
from fedglioma.models import blocks, mdpnet, resnet, vit
from fedglioma.models.mdpnet import MDPNet, MDPNetConfig


def tiny(**switches: Any) -> MDPNet:
    torch.manual_seed(0)
    return MDPNet(MDPNetConfig(**{"width": 1, "pos_grid": (2, 2, 2), **switches}))


def image_of(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(1))


def total(logits: dict[str, Tensor]) -> Tensor:
    # Weighted, for the two logits of a gene pull in opposite directions in any real loss.
    return sum((z * torch.tensor([1.0, -2.0], dtype=z.dtype)).sum() for z in logits.values())  # type: ignore[return-value]


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("size", [(16, 16, 16), (32, 32, 32), (40, 40, 40), (32, 48, 40), (17, 16, 23)])
@pytest.mark.parametrize("pos_grid", [(4, 4, 4), (2, 2, 2)])
def test_any_crop_gives_two_logits_per_gene(size: tuple[int, ...], pos_grid: tuple[int, int, int]) -> None:
    logits = tiny(pos_grid=pos_grid)(image_of(*size))
    assert list(logits) == ["idh", "atrx", "codel_1p19q"]
    assert all(z.shape == (2, 2) and z.isfinite().all() for z in logits.values())


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_any_width_trains_every_parameter(width: int) -> None:
    model = tiny(width=width)
    total(model(image_of(16, 16, 16))).backward()
    assert all(grad is not None and grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize(
    "switches",
    [
        {"path2": ()},
        {"path2": (Modality.T2,)},
        {"path2": (Modality.FLAIR,)},
        {"attention": "rda+rda"},
        {"attention": "vit+vit"},
        {"attention": "rda+vit"},
        {"path2": (), "attention": "rda+vit"},
        {"guide": ()},
        {"guide": (Gene.IDH,)},
        {"guide": (Gene.ATRX,)},
        {"guide_mode": "max_prob"},
        {"guide_detach": True},
        {"head_act": "none"},
        {"norm": "batch"},
        {"attn_drop": 0.1, "stem_drop": 0.0, "drop": 0.0, "head_drop": 0.0},
    ],
)
def test_every_switch_trains_every_parameter(switches: dict[str, Any]) -> None:
    model = tiny(**switches)
    total(model(image_of(32, 16, 16))).backward()
    assert all(grad is not None and grad.isfinite().all() for grad in gradients(model).values())


def test_second_path_sees_t2_and_flair_only() -> None:
    model = tiny().eval()
    seen: list[Tensor] = []
    assert model.stem is not None
    model.stem.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    image = image_of(16, 16, 16)
    model(image)
    assert torch.equal(seen[0], torch.stack((image[:, 3], image[:, 0]), dim=1))


@pytest.mark.parametrize("preset", ["recommended", "reference"])
def test_evaluation_is_deterministic(preset: str) -> None:
    model = MDPNet(MDPNetConfig.preset(preset, 1, (2, 2, 2))).eval()
    image = image_of(16, 16, 16)
    first, second = model(image), model(image)
    assert all(torch.equal(first[gene], second[gene]) for gene in GENES)


@pytest.mark.parametrize(("preset", "attention"), [("recommended", 0.0), ("reference", 0.1)])
def test_dropout_stands_where_the_paper_has_it(preset: str, attention: float) -> None:
    model = MDPNet(MDPNetConfig.preset(preset, 1, (2, 2, 2)))
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, (nn.Dropout, nn.Dropout3d))}
    expected = {"trunk.init_drop": 0.2, "deep1.drop": 0.1, "head_drop": 0.2}
    for layer in (f"deep1.layers.{number}" for number in range(4)):
        expected |= {f"{layer}.drop{place}": 0.1 for place in (1, 2, 3)}
        expected |= {f"{layer}.attention.{what}_drop": attention for what in ("weight", "project")}
    assert rates == expected


def test_training_drops_at_random() -> None:
    model = tiny()
    image = image_of(16, 16, 16)
    assert not torch.equal(model(image)["idh"], model(image)["idh"])


def test_network_returns_logits_not_probabilities() -> None:
    model = tiny().eval()
    with torch.no_grad():
        model.get_submodule("heads.idh.fc3").bias.copy_(torch.tensor([-5.0, 5.0]))
    z = model(image_of(16, 16, 16))["idh"]
    assert z.min() < 0
    assert z.softmax(1)[:, 1].min() > 0.9


@pytest.mark.parametrize(("mode", "told"), [("p_mut", True), ("max_prob", False)])
@pytest.mark.parametrize("gene", [Gene.IDH, Gene.ATRX])
def test_1p19q_is_told_which_class_was_predicted_only_under_p_mut(mode: str, told: bool, gene: Gene) -> None:
    model = tiny(width=2, guide_mode=mode).eval()
    swapped = copy.deepcopy(model)
    for parameter in swapped.get_submodule(f"heads.{gene.value}.fc3").parameters():
        parameter.data = parameter.data.flip(0)
    image = image_of(16, 16, 16)
    before, after = model(image), swapped(image)
    torch.testing.assert_close(after[gene], before[gene].flip(1))
    assert torch.equal(before["codel_1p19q"], after["codel_1p19q"]) is not told


@pytest.mark.parametrize("detach", [True, False])
def test_1p19q_teaches_the_guides_unless_detached(detach: bool) -> None:
    model = tiny(guide_detach=detach)
    model(image_of(16, 16, 16))["codel_1p19q"].sum().backward()
    grads = gradients(model)
    assert all((grads[f"heads.{gene}.fc1.weight"] is None) is detach for gene in ("idh", "atrx"))


def test_guide_columns_stand_last_in_the_order_of_the_switch() -> None:
    model = tiny(guide=(Gene.ATRX,)).eval()
    seen: list[Tensor] = []
    model.get_submodule("heads.codel_1p19q").register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    logits = model(image_of(16, 16, 16))
    assert torch.equal(seen[0][:, -1], logits["atrx"].softmax(1)[:, 1])


def test_heads_without_activation_are_linear() -> None:
    head = tiny(head_act="none").get_submodule("heads.idh")
    a, b = torch.randn(2, 3, 80), torch.randn(2, 3, 80)
    torch.testing.assert_close(head(a + b), head(a) + head(b) - head(torch.zeros(2, 3, 80)))


def test_parameters_of_a_gene_are_named_after_it() -> None:
    model = tiny()
    for gene in GENES:
        model.zero_grad()
        model(image_of(16, 16, 16))[gene].sum().backward()
        touched = {
            name.split(".")[1]
            for name, g in gradients(model).items()
            if name.startswith("heads.") and g is not None
        }
        assert touched == ({g.value for g in GENES} if gene is Gene.CODEL else {gene.value})


present_sets = st.lists(st.booleans(), min_size=4, max_size=4)
junk = st.sampled_from([0.0, -3.0, 1e30, math.nan, math.inf])


@settings(deadline=None, max_examples=15)
@given(present_sets, junk)
def test_content_of_an_absent_modality_changes_no_output_and_no_gradient(
    present: list[bool], content: float
) -> None:
    model = tiny().eval()
    there = torch.tensor([present, [True] * 4], dtype=torch.float32)

    def run(image: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model.zero_grad()
        logits = model(image, there)
        total(logits).backward()
        return logits, {name: g.clone() for name, g in gradients(model).items() if g is not None}

    clean = image_of(16, 16, 16)
    spoiled = clean.clone()
    spoiled[0, [not p for p in present]] = content
    (logits, grads), (logits_spoiled, grads_spoiled) = run(clean), run(spoiled)
    assert all(torch.equal(logits[gene], logits_spoiled[gene]) for gene in GENES)
    assert all(torch.equal(grads[name], grads_spoiled[name]) for name in grads)


def test_presence_of_everything_is_the_same_as_no_presence() -> None:
    model = tiny().eval()
    image = image_of(16, 16, 16)
    assert torch.equal(model(image)["idh"], model(image, torch.ones(2, 4))["idh"])


def test_gradient_of_a_batch_is_the_sum_over_its_cases() -> None:
    model = tiny().double().eval()
    image, present = (
        image_of(16, 16, 16, batch=3).double(),
        torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]]),
    )
    total(model(image, present)).backward()
    batch = {name: grad for name, grad in gradients(model).items() if grad is not None}
    model.zero_grad(set_to_none=True)
    for case in range(3):
        total(model(image[case : case + 1], present[case : case + 1])).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, batch[name], rtol=1e-8, atol=1e-10)


def test_empty_batch_passes_both_ways() -> None:
    model = tiny()
    logits = model(torch.zeros(0, 4, 16, 16, 16), torch.zeros(0, 4))
    assert all(z.shape == (0, 2) for z in logits.values())
    total(logits).backward()
    assert all(grad is not None and not grad.any() for grad in gradients(model).values())


@pytest.mark.parametrize("preset", ["recommended", "reference"])
def test_parameters_stand_in_modules_without_children(preset: str) -> None:
    model = MDPNet(MDPNetConfig.preset(preset, 1, (2, 2, 2)))
    parents = [name for name, module in model.named_modules() if list(module.children())]
    assert all(not list(model.get_submodule(name).parameters(recurse=False)) for name in parents)


def test_no_module_holds_both_parameters_and_buffers() -> None:
    assert not list(tiny().buffers())


def test_no_module_is_called_twice_and_each_takes_and_gives_one_tensor() -> None:
    model = tiny()
    calls: Counter[str] = Counter()

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
    model(image_of(16, 16, 16))
    # The dropout of attention weights only holds its rate: the fused kernel applies it.
    assert {name for name in leaves if calls[name] != 1} == {
        f"deep1.layers.{i}.attention.weight_drop" for i in range(4)
    }


def test_nothing_is_changed_in_place() -> None:
    model = tiny()
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]
    # A full backward hook gives each output as a view that autograd refuses to see changed.
    for module in model.modules():
        if module is not model and list(module.parameters()):
            module.register_full_backward_hook(lambda _module, _inputs, _outputs: None)
    total(model(image_of(16, 16, 16).requires_grad_())).backward()
    for part in (blocks, resnet, vit, mdpnet):
        assert "inplace=True" not in inspect.getsource(part)


def test_presets_differ_where_the_authors_code_does() -> None:
    recommended, reference = MDPNetConfig.preset("recommended"), MDPNetConfig.preset("reference")
    assert recommended == MDPNetConfig()
    changed = {k: v for k, v in reference.model_dump().items() if v != getattr(recommended, k)}
    assert changed == {"norm": "batch", "head_act": "none", "guide_mode": "max_prob", "attn_drop": 0.1}


def test_config_survives_json() -> None:
    config = MDPNetConfig.preset("reference", 2, (4, 4, 4))
    assert MDPNetConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"width": 0}, "greater than or equal to 1"),
        ({"channels": ("t1", "t1ce", "t2", "flair")}, "order of channels is flair, t1ce, t1, t2"),
        ({"path2": ("t2", "t2")}, "twice"),
        ({"guide": ("codel_1p19q",)}, "only idh and atrx can guide"),
        ({"pos_grid": (4, 0, 4)}, "at least 1"),
        ({"vit_heads": 7}, "7 heads do not divide 512"),
        ({"attention": "vit"}, "vit\\+rda"),
        ({"drop": 1.0}, "less than 1"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_config_refuses_with_words(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MDPNetConfig(**switches)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose recommended or reference"):
        MDPNetConfig.preset("refrence")


@pytest.mark.parametrize("shape", [(1, 3, 16, 16, 16), (1, 4, 16, 16), (4, 16, 16, 16), (1, 4, 16, 15, 16)])
def test_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"needs \(B, 4, D, H, W\)"):
        tiny()(torch.zeros(shape))


def test_batch_norm_refuses_to_train_on_a_single_value() -> None:
    model = tiny(norm="batch")
    with pytest.raises(ConfigError, match="norm group"):
        model(image_of(32, 32, 32, batch=1))
    model.eval()(image_of(32, 32, 32, batch=1))
    tiny(norm="batch", attention="vit+vit")(image_of(32, 32, 32, batch=1))
