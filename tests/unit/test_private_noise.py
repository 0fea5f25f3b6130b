"""The noise and the noised step: normal, of the right width, unforeseeable."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from fedglioma.errors import PrivacyError
from fedglioma.privacy import noise_source
from fedglioma.privacy.noise_source import NoiseSource
from fedglioma.privacy.optimizer import PrivateOptimizer
from fedglioma.privacy.secret import SecretRandom

KEY = bytes(range(32))
MANY = 400_000


def drawn(count: int, std: float = 1.0, key: bytes = KEY, dtype: torch.dtype = torch.float32) -> Tensor:
    tensor = torch.zeros(count, dtype=dtype)
    NoiseSource(SecretRandom(key)).add_to(tensor, std)
    return tensor


@pytest.mark.parametrize("std", [0.01, 1.0, 30.0])
def test_deviation_lies_in_its_chi_square_interval(std: float) -> None:
    noise = drawn(MANY, std).double()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], MANY)
    assert low < float(noise.square().sum()) / std**2 < high
    assert abs(float(noise.mean())) < 4 * std / math.sqrt(MANY)


def test_noise_is_normal() -> None:
    noise = drawn(MANY).double().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(noise)) < 5 * math.sqrt(24 / MANY)


def test_noise_has_the_tails_of_the_normal() -> None:
    noise = drawn(4_000_000).abs()
    for far in (3.0, 4.0, 4.5):
        expected = 4_000_000 * 2 * stats.norm.sf(far)
        assert abs(int((noise > far).sum()) - expected) < 4.5 * math.sqrt(expected)


def test_rarest_radii_are_drawn_finer() -> None:
    # With every radius below the limit, u is below 2^-24: all radii are beyond 5.7 deviations.
    class Small(SecretRandom):
        def fill(self, buffer: memoryview) -> None:
            super().fill(buffer)
            if buffer.format == "i":
                words = np.frombuffer(buffer, np.int32)
                words[: len(words) // 2] &= 127

    tensor = torch.zeros(200_000)
    NoiseSource(Small(KEY)).add_to(tensor, 1.0)
    parts = tensor.split(2 * noise_source._PAIRS)
    radii = torch.cat([part[: len(part) // 2].square() + part[len(part) // 2 :].square() for part in parts])
    # Given u < 2^-24, u is uniform below it, and so is exp(-r^2 / 2).
    uniform = (torch.exp(-radii.double() / 2) * 2**24).numpy()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert len(np.unique(uniform)) > 50_000


def test_two_numbers_of_a_pair_are_independent() -> None:
    noise = drawn(2 * noise_source._PAIRS).double()
    one, other = noise.chunk(2)
    bound = 4 / math.sqrt(len(one))
    for f in (lambda x: x, torch.square, torch.abs):
        assert abs(float(torch.corrcoef(torch.stack((f(one), f(other))))[0, 1])) < bound


def test_two_draws_are_independent() -> None:
    source = NoiseSource(SecretRandom(KEY))
    first, second = torch.zeros(MANY), torch.zeros(MANY)
    source.add_to(first, 1.0)
    source.add_to(second, 1.0)
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 4.5 / math.sqrt(MANY)
    assert (first == second).sum() < 10


def test_noise_differs_from_process_to_process_and_from_the_seed() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what must not matter
        tensor = torch.zeros(8)
        NoiseSource(SecretRandom()).add_to(tensor, 1.0)
        found.append(tensor)
    assert not torch.equal(*found)
    assert torch.equal(drawn(8), drawn(8))
    assert not torch.equal(drawn(8), drawn(8, key=bytes(32)))


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=5),
    layout=st.sampled_from(["contiguous", "channels last", "transposed", "gaps"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_number_of_any_tensor_gets_noise_of_its_own(
    shape: list[int], layout: str, dtype: torch.dtype
) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    if layout == "channels last" and len(shape) == 5:
        tensor = tensor.contiguous(memory_format=torch.channels_last_3d)
    elif layout == "transposed" and len(shape) > 1:
        tensor = tensor.transpose(0, -1)
    elif layout == "gaps" and shape:
        tensor = torch.zeros([*shape[:-1], 3 * shape[-1]], dtype=dtype)[..., ::3]
    NoiseSource(SecretRandom(KEY)).add_to(tensor, 1e-3)
    assert ((tensor != 0) & (tensor.abs() < 1e-2)).all()
    assert len(tensor.unique()) > 0.9 * tensor.numel() - 1


def model_and_optimizer(**changed: Any) -> tuple[nn.Module, PrivateOptimizer]:
    model = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 100))
    terms = {"noise_multiplier": 1.5, "clip_norm": 0.2, "expected_cases": 4.0, "secret": SecretRandom(KEY)}
    return model, PrivateOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), **{**terms, **changed})


def test_step_adds_noise_of_multiplier_times_clip_to_every_parameter() -> None:
    model, optimizer = model_and_optimizer()
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 8.0)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        moved = (old - parameter.detach()).double() * 4.0  # what was divided by the expected cases
        noise = moved - 8.0
        low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], noise.numel())
        assert low < float(noise.square().sum()) / (1.5 * 0.2) ** 2 < high
        assert abs(float(noise.mean())) < 4 * 0.3 / math.sqrt(noise.numel())


def test_step_without_a_gradient_is_noise_alone() -> None:
    model, optimizer = model_and_optimizer()
    before = model[0].weight.detach().clone()
    optimizer.step()
    moved = (before - model[0].weight.detach()).double()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], moved.numel())
    assert low < float(moved.square().sum()) / (0.3 / 4) ** 2 < high


def test_gradient_cannot_be_used_for_two_steps() -> None:
    model, optimizer = model_and_optimizer()
    optimizer.step()
    with pytest.raises(ValueError, match="zero_grad"):
        optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()


def test_sum_is_noised_in_its_own_memory() -> None:
    model, optimizer = model_and_optimizer()
    grads = []
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad.data_ptr())
    optimizer.step()
    assert [p.grad.data_ptr() for p in model.parameters() if p.grad is not None] == grads


@pytest.mark.parametrize("name", ["noise_multiplier", "clip_norm", "expected_cases"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_step_needs_numbers_above_zero(name: str, value: float) -> None:
    with pytest.raises(PrivacyError, match="above 0"):
        model_and_optimizer(**{name: value})


def test_step_takes_no_closure() -> None:
    _, optimizer = model_and_optimizer()
    with pytest.raises(PrivacyError, match="closure"):
        optimizer.step(lambda: 0.0)
