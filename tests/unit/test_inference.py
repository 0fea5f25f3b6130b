"""How a case is read: windows and mirror images against what they are by hand."""

import sys
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedglioma.case import GENES, Task
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.training.inference import Reader
from fedglioma.training.learner import EQUAL_COUNTS, build_learner

IDH, SEG = Task.IDH.value, Task.SEGMENTATION.value
Outputs = dict[str, Tensor]


class Says(nn.Module):
    """A network that is a function of the image, and counts how often it is asked."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Outputs]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[int, ...]] = []

    def forward(self, image: Tensor, present: Tensor) -> Outputs:
        self.asked.append(tuple(image.shape))
        return self.answer(image, present)


def two(value: Tensor) -> Tensor:
    """Return logits whose second is a value and whose first is half its square: nothing is symmetrical."""
    return torch.stack((value.square() / 2, value), dim=1)


def by_voxel(image: Tensor, present: Tensor) -> Outputs:
    return {SEG: two(image[:, 0] + 2 * image[:, 3] * present[:, 1, None, None, None])}


def by_mean(image: Tensor, _present: Tensor) -> Outputs:
    return {IDH: two(image.mean((1, 2, 3, 4))), SEG: two(image[:, 1])}


def by_place(image: Tensor, _present: Tensor) -> Outputs:
    """Return answers that depend on where in the cube something lies."""
    ramps = [torch.arange(1.0, 1 + n) for n in image.shape[2:]]
    weight = ramps[0][:, None, None] + 3 * ramps[1][:, None] + 7 * ramps[2]
    return {IDH: two(image[:, 0, 0, 0, 0] - image[:, 2, -1, 0, -1]), SEG: two(image[:, 0] * weight / 20)}


def random_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def probabilities(outputs: Outputs) -> Outputs:
    return {name: logits.softmax(1) for name, logits in outputs.items()}


def assert_same(found: Outputs, expected: Outputs, apart: float = 1e-5) -> None:
    """Check that two answers are the same probabilities."""
    assert set(found) == set(expected)
    for name, probability in probabilities(expected).items():
        torch.testing.assert_close(found[name].softmax(1), probability, rtol=0, atol=apart, msg=name)


def test_image_in_one_piece_is_the_networks_own_answer() -> None:
    image, present = random_image(2, 4, 5, 6, 7), torch.ones(2, 4)
    model = Says(by_place)
    found, expected = Reader().read(model, image, present), by_place(image, present)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert model.asked == [(2, 4, 5, 6, 7)]


def test_image_of_one_window_is_the_direct_answer() -> None:
    image, present = random_image(2, 4, 8, 8, 8), torch.ones(2, 4)
    assert_same(Reader(window=8).read(Says(by_place), image, present), by_place(image, present))


@pytest.mark.parametrize(("model", "crop", "width"), [("mdpnet", 16, 1), ("sgpnet", 32, 1), ("unet", 16, 4)])
def test_networks_image_of_one_window_is_its_direct_answer(model: str, crop: int, width: int) -> None:
    table = {"model": model, "crop": crop, "width": width}
    torch.manual_seed(0)
    network = build_learner(RunConfig.model_validate(table), EQUAL_COUNTS).model.eval()
    image, present = random_image(1, 4, crop, crop, crop), torch.ones(1, 4)
    with torch.no_grad():
        assert_same(Reader(window=crop).read(network, image, present), network(image, present), 1e-4)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 17)] * 3),
    window=st.integers(4, 10),
    cases=st.integers(1, 2),
    flips=st.booleans(),
)
def test_windows_cover_every_voxel_of_an_image_of_any_size(
    shape: tuple[int, int, int], window: int, cases: int, flips: bool
) -> None:
    image = random_image(cases, 4, *shape)
    present = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 1]])[:cases]
    found = Reader(window=window, flips=flips).read(Says(by_voxel), image, present)
    assert_same(found, by_voxel(image, present))


def test_every_window_has_the_size_that_was_asked_for() -> None:
    model = Says(by_voxel)
    Reader(window=8).read(model, random_image(1, 4, 5, 9, 20), torch.ones(1, 4))
    assert set(model.asked) == {(1, 4, 8, 8, 8)}
    assert len(model.asked) == 1 * 2 * 4  # one below 8; 9 needs 2; 20 by steps of 4 has starts 0, 4, 8, 12


@pytest.mark.parametrize("window", [None, 8])
def test_mirror_images_change_nothing_for_a_network_without_a_side(window: int | None) -> None:
    image, present = random_image(2, 4, 8, 8, 8), torch.ones(2, 4)
    found = Reader(window=window, flips=True).read(Says(by_mean), image, present)
    assert_same(found, by_mean(image, present))


def test_mirror_images_are_averaged_as_probabilities_in_the_images_own_orientation() -> None:
    image, present = random_image(2, 4, 3, 4, 5), torch.ones(2, 4)
    genotype, tumour = [], []
    for turned in product((1, -1), repeat=3):
        cut = tuple(slice(None, None, step) if step == 1 else None for step in turned)
        mirrored = image.clone()
        for axis, step in zip((2, 3, 4), cut, strict=True):
            if step is None:  # voxel n of the mirror image is voxel -1 - n
                order = list(range(mirrored.shape[axis]))[::-1]
                mirrored = mirrored.index_select(axis, torch.tensor(order))
        said = probabilities(by_place(mirrored, present))
        back = said[SEG]
        for axis, step in zip((2, 3, 4), cut, strict=True):
            if step is None:
                order = list(range(back.shape[axis]))[::-1]
                back = back.index_select(axis, torch.tensor(order))
        genotype.append(said[IDH])
        tumour.append(back)
    model = Says(by_place)
    found = probabilities(Reader(flips=True).read(model, image, present))
    assert len(model.asked) == 8
    torch.testing.assert_close(found[IDH], sum(genotype) / 8)
    torch.testing.assert_close(found[SEG], sum(tumour) / 8)
    plain = probabilities(by_place(image, present))
    assert not torch.allclose(found[IDH], plain[IDH], atol=1e-3)


def test_genotype_is_the_mean_over_the_windows_that_hold_any_brain() -> None:
    image = torch.zeros(1, 4, 8, 8, 16)  # windows at 0, 4 and 8 along the last axis
    image[..., 6] = random_image(1, 4, 8, 8)
    present = torch.ones(1, 4)

    def answer(window: Tensor, _given: Tensor) -> Outputs:
        return {IDH: two(window[:, 0, 0, 0, 2] - window[:, 1, 0, 0, 6])}

    first, second = (answer(image[..., start : start + 8], present)[IDH].softmax(1) for start in (0, 4))
    model = Says(answer)
    found = Reader(window=8).read(model, image, present)
    assert len(model.asked) == 3
    assert set(found) == {IDH}
    assert not torch.allclose(first, second)
    torch.testing.assert_close(found[IDH].softmax(1), (first + second) / 2)


def test_case_of_nothing_but_air_still_has_an_answer_beside_another_case() -> None:
    image = torch.zeros(2, 4, 8, 8, 12)
    image[1] = random_image(4, 8, 8, 12)
    answer = by_mean
    found = Reader(window=8).read(Says(answer), image, torch.ones(2, 4))
    assert found[IDH].shape == (2, 2)
    assert found[SEG].shape == (2, 2, 8, 8, 12)
    torch.testing.assert_close(found[IDH][0].softmax(0), torch.tensor([0.5, 0.5]))
    alone = Reader(window=8).read(Says(answer), image[1:], torch.ones(1, 4))
    torch.testing.assert_close(found[IDH][1:], alone[IDH])


def test_probability_of_zero_stays_a_number() -> None:
    def sure(image: Tensor, _present: Tensor) -> Outputs:
        return {IDH: torch.tensor([[200.0, -200.0]]).expand(len(image), 2)}

    found = Reader(flips=True).read(Says(sure), random_image(1, 4, 4, 4, 4), torch.ones(1, 4))
    assert torch.isfinite(found[IDH]).all()
    torch.testing.assert_close(found[IDH].softmax(1), torch.tensor([[1.0, 0.0]]))


def test_settings_decide_how_images_are_read() -> None:
    table: list[tuple[dict[str, object], Reader]] = [
        ({}, Reader()),
        ({"average_flips": True}, Reader(flips=True)),
        ({"inference": "sliding", "crop": 64}, Reader(window=64)),
        ({"model": "unet", "crop": 96}, Reader(window=96)),
        ({"model": "unet", "inference": "centre"}, Reader()),
        ({"model": "sgpnet"}, Reader()),
    ]
    for given_settings, reader in table:
        assert Reader.of(RunConfig.model_validate(given_settings)) == reader, given_settings
    assert {gene.value for gene in GENES} >= {IDH}


def test_windows_without_monai_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.inferers.utils", None)
    with pytest.raises(ConfigError, match=r"windows need MONAI: pip install 'fedglioma\[baselines\]'"):
        Reader(window=8).read(Says(by_voxel), random_image(1, 4, 8, 8, 8), torch.ones(1, 4))
