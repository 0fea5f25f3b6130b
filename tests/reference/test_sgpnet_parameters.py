"""SGPNet at the paper's width: each row of the layer table, its parameters and sizes, and what they compute.

The forward pass is written out once more as the table reads, with plain functions, from the same weights.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedglioma.models.sgpnet import SGPNet, SGPNetConfig

ROWS = {
    "down1": 4_320,
    "down2": 17_280,
    "down3": 69_120,
    "down4": 276_480,
    "down5": 1_105_920,
    "up5.rise": 221_184,
    "up5.mix": 4_096,
    "up4.join": 442_368,
    "up4.mix": 8_192,
    "up4.rise": 55_296,
    "up3.join": 110_592,
    "up3.mix": 2_048,
    "up3.rise": 13_824,
    "up2.join": 27_648,
    "up2.mix": 512,
    "up2.rise": 3_456,
    "up1": 6_912,
    "heads.segmentation.guess3": 130,
    "heads.segmentation.guess2": 66,
    "heads.segmentation.guess1": 34,
    "heads.idh.conv3": 55_296,
    "heads.idh.conv2": 13_824,
    "heads.idh.conv1": 3_456,
    "heads.idh.shortcut": 128,
    "heads.idh.fc": 114,
}

# Channels and edge of what each block gives for a cube of 144 voxels; the decoder's levels come first.
OUTPUTS = {
    "down1": [(8, 144)],
    "down2": [(16, 72)],
    "down3": [(32, 36)],
    "down4": [(64, 18)],
    "down5": [(128, 9)],
    "up5": [(64, 18)],
    "up4": [(128, 18), (32, 36)],
    "up3": [(64, 36), (16, 72)],
    "up2": [(32, 72), (8, 144)],
    "up1": [(16, 144)],
    "heads.segmentation": [(2, 144)],
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(**switches: object) -> SGPNet:
    with torch.device("meta"):
        return SGPNet(SGPNetConfig.model_validate(switches))


@pytest.mark.parametrize(("row", "expected"), ROWS.items())
def test_row_has_the_parameters_of_the_table(row: str, expected: int) -> None:
    assert count(on_paper().get_submodule(row)) == expected


def test_rows_are_the_whole_network() -> None:
    assert count(on_paper()) == sum(ROWS.values()) == 2_442_296


@pytest.mark.parametrize("targets", ["both", "idh", "random", "seg"])
def test_every_experiment_has_the_same_parameters(targets: str) -> None:
    assert count(on_paper(targets=targets)) == 2_442_296


def test_without_the_shortcut_its_128_parameters_are_gone() -> None:
    assert count(on_paper(head_1x1="none")) == 2_442_296 - 128


@pytest.mark.parametrize(("width", "millions"), [(4, 0.61), (2, 0.15)])
def test_smaller_widths_have_the_parameters_that_were_measured(width: int, millions: float) -> None:
    assert count(on_paper(width=width)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_blocks_give_the_sizes_of_the_table() -> None:
    model, found = on_paper(), {}

    def note(name: str, outputs: Tensor | tuple[Tensor, ...]) -> None:
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        assert all(t.shape[2] == t.shape[3] == t.shape[4] for t in tensors)
        found[name] = [(t.shape[1], t.shape[2]) for t in tensors]

    for name in OUTPUTS:
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: note(name, out))
    model(torch.empty(1, 4, 144, 144, 144, device="meta"))
    assert found == OUTPUTS


def as_the_table_reads(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        w = weights[f"{name}.weight"]
        return F.conv3d(x, w, weights.get(f"{name}.bias"), stride, w.shape[-1] // 2)

    def lr(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    def in_lr(x: Tensor) -> Tensor:
        mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, correction=0)
        return lr((x - mean) / (variance + 1e-5).sqrt())

    def up(x: Tensor) -> Tensor:
        for axis in (2, 3, 4):
            x = x.repeat_interleave(2, axis)
        return x

    r = conv(x, "down1.enter")
    c = [in_lr(conv(lr(conv(lr(r), "down1.conv1")), "down1.conv2") + r)]
    for down in ("down2", "down3", "down4", "down5"):
        r = conv(c[-1], f"{down}.enter", 2)
        c.append(in_lr(conv(in_lr(conv(in_lr(r), f"{down}.conv1")), f"{down}.conv2") + r))
    x = in_lr(conv(in_lr(conv(up(c[4]), "up5.rise.0")), "up5.mix.0"))
    levels = []
    for name, skip in (("up4", c[3]), ("up3", c[2]), ("up2", c[1])):
        levels.append(in_lr(conv(torch.cat((x, skip), 1), f"{name}.join.conv.0")))
        x = in_lr(conv(up(in_lr(conv(levels[-1], f"{name}.mix.0"))), f"{name}.rise.0"))
    _, l3, l2 = levels
    l1 = in_lr(conv(torch.cat((x, c[0]), 1), "up1.conv.0"))

    s = "heads.segmentation.guess"
    outline = up(up(conv(l3, f"{s}3")) + conv(l2, f"{s}2")) + conv(l1, f"{s}1")
    h = "heads.idh."
    read = [
        in_lr(conv(l3, f"{h}conv3")),
        in_lr(conv(l2, f"{h}conv2")),
        in_lr(conv(l1, f"{h}conv1") + conv(l1, f"{h}shortcut")),
    ]
    means = torch.cat([x.mean((2, 3, 4)) for x in read], 1)
    return means @ weights[f"{h}fc.weight"].T + weights[f"{h}fc.bias"], outline


def test_network_computes_what_the_table_reads() -> None:
    torch.manual_seed(0)
    model = SGPNet(SGPNetConfig(width=2)).double().eval()
    image = torch.randn(2, 4, 32, 32, 48, dtype=torch.float64)
    idh, outline = as_the_table_reads(dict(model.state_dict()), image)
    found = model(image)
    # Instance norm over the 12 voxels of the coarsest level magnifies rounding.
    torch.testing.assert_close(found["idh"], idh, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["segmentation"], outline, rtol=1e-6, atol=1e-8)
