import copy
import importlib.util
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fedglioma.case import GENES, Task
from fedglioma.errors import ConfigError, DataError
from fedglioma.models import baselines
from fedglioma.models.baselines import (
    CLASSIFIERS,
    SEGMENTERS,
    BaselineConfig,
    build_baseline,
    check_crop,
    published_width,
)
from fedglioma.weights import GROUPS, group_of

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="monai is not installed")
needs_einops = pytest.mark.skipif(
    importlib.util.find_spec("einops") is None,
    reason="einops is not installed, which Swin-UNETR needs",
)
ALL = [
    pytest.param(name, marks=[needs_monai, *([needs_einops] if name == "swinunetr" else [])])
    for name in (*CLASSIFIERS, *SEGMENTERS)
]
WITHOUT_SWIN = [param for param in ALL if param.values[0] != "swinunetr"]
SMALL = {"resnet50": 2, "densenet121": 2, "senet": 4, "unet": 2, "segresnet": 2, "swinunetr": 12}
SMALLEST = {"resnet50": 16, "densenet121": 29, "senet": 16, "unet": 16, "segresnet": 8, "swinunetr": 32}


def small(name, norm="group"):
    torch.manual_seed(0)
    return build_baseline(BaselineConfig(name=name, width=SMALL[name], norm=norm))


def image_for(name, cases=1):
    return torch.randn(cases, 4, *(3 * [SMALLEST[name]]), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ALL)
def test_smallest_crop_gives_two_logits_for_each_task(name):
    model = small(name)
    outputs = model(image_for(name))
    assert tuple(outputs) == tuple(task.value for task in model.tasks)
    if name in CLASSIFIERS:
        assert model.tasks == tuple(Task(gene.value) for gene in GENES)
        assert {value.shape for value in outputs.values()} == {(1, 2)}
    else:
        assert model.tasks == (Task.SEGMENTATION,)
        assert outputs["segmentation"].shape == (1, 2, *(3 * [SMALLEST[name]]))
    assert model.checkpointed == ()


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # of modules that return a list
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of modules that see the image
@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_every_parameter_although_every_module_is_watched(name):
    model = small(name)
    # A full backward hook makes torch refuse whatever changes a module's output in place.
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    outputs = model(image_for(name, cases=2 if name != "swinunetr" else 1))
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("norm", "kept"),
    [("group", nn.GroupNorm), ("batch", nn.BatchNorm3d), ("instance", nn.InstanceNorm3d)],
)
def test_every_volume_norm_is_the_one_asked_for(name, norm, kept):
    with torch.device("meta"):
        model = small(name, norm)
    norms = (nn.GroupNorm, nn.BatchNorm3d, nn.InstanceNorm3d)
    kinds = {type(module) for module in model.modules() if isinstance(module, norms)}
    assert kinds == {kept}
    if norm == "group":
        groups = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        assert all(m.num_channels // m.num_groups >= min(4, m.num_channels) for m in groups)


@pytest.mark.parametrize("name", WITHOUT_SWIN)  # two cases of it take a second
def test_a_case_does_not_depend_on_the_others_of_its_batch(name):
    model, pair = small(name).eval(), image_for(name, cases=2)
    together = next(iter(model(pair).values()))
    alone = next(iter(model(pair[1:]).values()))
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITHOUT_SWIN)
def test_a_batch_without_cases_gives_outputs_without_cases_and_zero_gradients(name):
    model = small(name)
    outputs = model(image_for(name)[:0])
    assert all(len(value) == 0 for value in outputs.values())
    sum(value.sum() for value in outputs.values()).backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", ALL)
def test_what_an_absent_sequence_holds_never_matters(name):
    model, image = small(name).eval(), image_for(name)
    present = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    spoilt = image.clone()
    spoilt[:, 1] = float("nan")
    key = model.tasks[0].value
    with torch.no_grad():
        seen = model(image, present)[key]
        assert torch.equal(model(spoilt, present)[key], seen)
        assert not torch.equal(model(image)[key], seen)


@pytest.mark.parametrize("name", [p for p in ALL if p.values[0] in CLASSIFIERS])
def test_each_genes_head_travels_in_its_own_group(name):
    with torch.device("meta"):
        model = small(name)
    groups = {n: group_of(f"model.{n}") for n, _ in model.named_parameters()}
    assert set(groups.values()) == set(GROUPS) - {"segmentation"}
    for gene in GENES:
        of_gene = {n for n, group in groups.items() if group == gene.value}
        assert of_gene == {f"heads.{gene.value}.weight", f"heads.{gene.value}.bias"}


@needs_monai
def test_published_networks_have_monais_own_parameters():
    from monai.networks import nets

    made = {
        "resnet50": lambda: nets.resnet50(
            pretrained=False, n_input_channels=4, conv1_t_stride=2, bias_downsample=False, feed_forward=False
        ),
        "densenet121": lambda: nets.DenseNet121(spatial_dims=3, in_channels=4, out_channels=1).features,
        "senet": lambda: nets.SEResNet50(spatial_dims=3, in_channels=4, num_classes=1),
        "unet": lambda: nets.UNet(3, 4, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2),
        "segresnet": lambda: nets.SegResNet(3, init_filters=32, in_channels=4),
    }
    for name, make in made.items():
        norm = {"unet": "instance", "segresnet": "group"}.get(name, "batch")
        with torch.device("meta"):
            theirs = make()
            ours = build_baseline(BaselineConfig(name=name, norm=norm))
        shapes = [p.shape for n, p in theirs.named_parameters() if not n.startswith("last_linear")]
        assert [p.shape for n, p in ours.named_parameters() if not n.startswith("heads")] == shapes


@needs_monai
@needs_einops
def test_swinunetr_has_monais_own_parameters():
    from monai.networks.nets import SwinUNETR

    shapes = [parameter.shape for parameter in SwinUNETR(4, 2, feature_size=12).parameters()]
    assert [parameter.shape for parameter in small("swinunetr", "instance").parameters()] == shapes


@needs_monai
@pytest.mark.parametrize("name", ["resnet50", "segresnet", "unet"])
def test_networks_compute_what_monais_in_place_ones_do(name):
    from monai.networks import nets

    made = {
        "resnet50": lambda: nets.ResNet(
            "bottleneck",
            [3, 4, 6, 3],
            [2, 4, 8, 16],
            n_input_channels=4,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        ),
        "segresnet": lambda: nets.SegResNet(3, init_filters=2, in_channels=4, norm="batch"),
        "unet": lambda: nets.UNet(3, 4, 2, (2, 4, 8, 16, 32), (2, 2, 2, 2), num_res_units=2, norm="batch"),
    }
    theirs, ours = made[name](), small(name, "batch")
    network = ours.backbone if name in CLASSIFIERS else ours.network
    theirs.load_state_dict(network.state_dict())
    image = image_for(name, cases=2)
    torch.testing.assert_close(network(image), theirs(image))


@needs_monai
@pytest.mark.parametrize("kind", ["senet", "swinunetr"])
def test_rebuilt_blocks_compute_what_monais_in_place_ones_do(kind):
    from monai.networks.blocks import UnetResBlock
    from monai.networks.blocks.squeeze_and_excitation import SEResNetBottleneck

    from fedglioma.models.monai_networks import _ours

    block = SEResNetBottleneck(3, 16, 4, 1, 16) if kind == "senet" else UnetResBlock(3, 4, 8, 3, 1, "batch")
    x = torch.randn(2, 16 if kind == "senet" else 4, 4, 4, 4)
    theirs, ours = copy.deepcopy(block), _ours(block, "batch")
    assert type(ours) is not type(theirs)
    torch.testing.assert_close(ours(x), theirs(x.clone()))


@needs_monai
@pytest.mark.parametrize("name", ["resnet50", "senet", "unet", "segresnet", "densenet121"])
def test_the_coarsest_norm_is_where_the_table_says(name):
    model, seen = small(name), []
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[2:])))
    step = {"unet": 16, "segresnet": 8}.get(name, 1)
    crop = (SMALLEST[name], 48, 33 // step * step + (step if step > 1 else 0))
    model(torch.zeros(1, 4, *crop))
    coarsest = min(a * b * c for a, b, c in seen)
    assert baselines.coarsest(name, crop) == coarsest


@needs_monai
def test_an_image_that_does_not_fit_is_refused_in_words():
    unet = small("unet")
    with pytest.raises(
        DataError, match="image of 16 x 24 x 16 voxels: unet needs every axis to be a multiple"
    ):
        unet(torch.zeros(1, 4, 16, 24, 16))
    with pytest.raises(DataError, match=r"image of shape \(1, 3, 16, 16, 16\): unet needs \(B, 4, D, H, W\)"):
        unet(torch.zeros(1, 3, 16, 16, 16))
    with pytest.raises(DataError, match="norm instance has one voxel left"):
        small("unet", "instance")(torch.zeros(2, 4, 16, 16, 16))
    with pytest.raises(ConfigError, match="norm batch cannot train on one case of 16 x 16 x 16 voxels"):
        small("unet", "batch")(torch.zeros(1, 4, 16, 16, 16))
    assert small("unet", "batch").eval()(torch.zeros(1, 4, 16, 16, 16))["segmentation"].shape[1] == 2


@pytest.mark.parametrize(
    ("name", "crop", "message"),
    [
        ("swinunetr", (64, 64, 48), "crop 64 x 64 x 48: swinunetr needs every axis to be a multiple of 32"),
        ("unet", (40, 48, 48), "multiple of 16"),
        ("segresnet", (12, 16, 16), "multiple of 8"),
        ("densenet121", (28, 32, 32), "densenet121 needs every axis to be 29 or more"),
        ("senet", (15, 16, 16), "16 or more"),
        ("resnet50", (16, 16), "three axes"),
        (
            "resnet18",
            (64, 64, 64),
            "baseline 'resnet18' is unknown: choose resnet50, densenet121, senet",
        ),
    ],
)
def test_check_crop_refuses_before_anything_is_built(name, crop, message):
    with pytest.raises(ConfigError, match=message):
        check_crop(name, crop)


@needs_monai
def test_densenet_can_take_what_check_crop_lets_through_and_nothing_smaller():
    check_crop("densenet121", (29, 29, 29))
    dense = small("densenet121").backbone.eval()
    assert dense(torch.zeros(1, 4, 29, 29, 29)).shape == (1, 64)
    with pytest.raises(RuntimeError, match="smaller than kernel size"):
        dense(torch.zeros(1, 4, 28, 29, 29))


@pytest.mark.parametrize("missing", ["monai", "einops"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(baselines, "find_spec", lambda name: None if name == missing else found("torch"))
    with pytest.raises(
        ConfigError, match=rf"{missing} not installed; run: pip install 'fedglioma\[baselines"
    ):
        build_baseline(BaselineConfig(name="swinunetr", width=12))


def test_configuration_is_checked_without_monai(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    assert BaselineConfig(name="resnet50").width == published_width("resnet50") == 64
    assert BaselineConfig(name="swinunetr", width=24).norm == "group"
    for wrong in ({"name": "senet", "width": 6}, {"name": "unet", "width": 0}, {"name": "vgg"}):
        with pytest.raises(ValidationError):
            BaselineConfig(**wrong)
    with pytest.raises(ValidationError, match="width: 20 is not a multiple of 12, as swinunetr needs it"):
        BaselineConfig(name="swinunetr", width=20)
    with pytest.raises(ConfigError, match="'vgg' is unknown"):
        published_width("vgg")


@needs_monai
@needs_einops
def test_networks_on_the_meta_device_draw_nothing():
    state = torch.random.get_rng_state()
    with torch.device("meta"):
        models = [build_baseline(BaselineConfig(name=name, width=SMALL[name])) for name in SMALL]
    assert all(p.is_meta for model in models for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
