"""Parameter counts of MDPNet at the paper's width, layer by layer and for each ablation of tables 4 to 6."""

import pytest
import torch
from torch import nn

from fedglioma.case import Gene, Modality
from fedglioma.models.mdpnet import Attention, MDPNet, MDPNetConfig

LAYERS = {
    "trunk.init_conv": 1_744,
    "trunk.init_drop": 0,
    "trunk.b1": 13_920,
    "trunk.d1": 13_856,
    "trunk.b2": 110_976,
    "trunk.d2": 55_360,
    "trunk.b3": 443_136,
    "trunk.d3": 221_312,
    "stem.0": 43_904,
    "stem.1": 128,
    "stem.4": 442_880,
    "stem.5": 1_557_760,
    "fuse": 32_896,
    "b4": 3_542_016,
    "deep1.norm": 256,
    "deep1.embed": 1_769_984,
    "deep1.positions": 2_097_152,
    "deep1.layers": 4 * 5_250_048,
    "deep1.layers.0": 5_250_048,
    "deep1.out_norm": 1_024,
    "deep2.layer3": 6_246_782,
    "deep2.layer4": 24_976_798,
    "fc_in": 2_295_040,
    "heads.idh": 672_354,
    "heads.atrx": 672_354,
    "heads.codel_1p19q": 673_378,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def built(config: MDPNetConfig) -> MDPNet:
    with torch.device("meta"):
        return MDPNet(config)


@pytest.mark.parametrize(("layer", "expected"), LAYERS.items())
def test_layer_has_the_parameters_of_the_paper(layer: str, expected: int) -> None:
    assert count(built(MDPNetConfig()).get_submodule(layer)) == expected


@pytest.mark.parametrize(("preset", "expected"), [("recommended", 66_885_202), ("reference", 66_885_206)])
def test_preset_has_the_parameters_of_the_paper(preset: str, expected: int) -> None:
    assert count(built(MDPNetConfig.preset(preset))) == expected


@pytest.mark.parametrize(
    ("path2", "expected", "features"),
    [
        ((), 32_928_694, 1280),
        ((Modality.T2,), 66_863_250, 1792),
        ((Modality.FLAIR,), 66_863_250, 1792),
        ((Modality.T2, Modality.FLAIR), 66_885_202, 1792),
    ],
)
def test_second_path_ablation(path2: tuple[Modality, ...], expected: int, features: int) -> None:
    model = built(MDPNetConfig(path2=path2))
    assert (count(model), model.fc_in.in_features) == (expected, features)


@pytest.mark.parametrize(
    ("attention", "expected", "features"),
    [
        ("rda+rda", 72_584_814, 1280),
        ("vit+vit", 61_185_590, 2304),
        ("rda+vit", 66_885_202, 1792),
        ("vit+rda", 66_885_202, 1792),
    ],
)
def test_attention_ablation(attention: Attention, expected: int, features: int) -> None:
    model = built(MDPNetConfig(attention=attention))
    assert (count(model), model.fc_in.in_features) == (expected, features)


@pytest.mark.parametrize(
    ("guide", "expected", "inputs"),
    [
        ((), 66_884_178, 1280),
        ((Gene.IDH,), 66_884_690, 1281),
        ((Gene.ATRX,), 66_884_690, 1281),
        ((Gene.IDH, Gene.ATRX), 66_885_202, 1282),
    ],
)
def test_guidance_ablation(guide: tuple[Gene, ...], expected: int, inputs: int) -> None:
    model = built(MDPNetConfig(guide=guide))
    assert count(model) == expected
    assert model.get_submodule("heads.codel_1p19q.fc1").weight.shape == (512, inputs)


@pytest.mark.parametrize(
    ("width", "millions", "digits"), [(8, 16.2, 1), (4, 4.08, 2), (2, 1.03, 2), (1, 0.26, 2)]
)
def test_smaller_width(width: int, millions: float, digits: int) -> None:
    assert round(count(built(MDPNetConfig(width=width, pos_grid=(4, 4, 4)))) / 1e6, digits) == millions
