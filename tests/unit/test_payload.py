"""What travels: error bounds, sizes, and reading in parts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn

from fedglioma.errors import FedGliomaError
from fedglioma.payload import (
    BLOCK,
    PART,
    forms,
    from_bfloat16,
    packed_bytes,
    step_part,
    to_bfloat16,
    update,
)
from fedglioma.weights import GROUPS

PAYLOADS = ["float32", "bfloat16", "int8"]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
sizes = st.sampled_from([0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 7])


def groups(array: np.ndarray) -> dict[str, np.ndarray]:
    return dict.fromkeys(GROUPS, array)


def zeros(array: np.ndarray) -> dict[str, np.ndarray]:
    return groups(np.zeros_like(array))


def travelled(payload: str, local: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Return the step that arrives."""
    packed = update(payload, groups(local), groups(received))["idh"]
    return step_part(payload, packed, local.size, slice(0, local.size), received)


@given(drawn(np.uint32, st.integers(0, 50)))
@settings(deadline=None, max_examples=200)
def test_bfloat16_is_torchs_for_every_pattern_of_bits(bits):
    numbers = bits.view(np.float32)
    expected = torch.from_numpy(numbers.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    kept = np.isfinite(numbers) & np.isfinite(from_bfloat16(expected))
    np.testing.assert_array_equal(to_bfloat16(numbers)[kept], expected[kept])
    np.testing.assert_array_equal(
        from_bfloat16(expected)[kept].view(np.uint32), expected[kept].astype("u4") << 16
    )


def test_bfloat16_rounds_ties_to_even_and_never_overflows():
    tie_up, tie_down = np.float32(1 + 3 * 2.0**-8), np.float32(1 + 2.0**-8)
    most = np.finfo(np.float32).max
    found = from_bfloat16(to_bfloat16(np.array([tie_up, tie_down, most, -most], np.float32)))
    assert found.tolist() == [1 + 2.0**-6, 1.0, (2 - 2.0**-7) * 2.0**127, -(2 - 2.0**-7) * 2.0**127]


@given(drawn(np.float32, st.integers(1, 200), elements=st.floats(2.0**-126, 2.0**120, width=32)))
@settings(deadline=None, max_examples=100)
def test_bfloat16_is_off_by_at_most_a_256th(numbers):
    found = travelled("bfloat16", numbers, np.zeros_like(numbers))
    exact = numbers.astype(np.float64)
    assert (np.abs(found - exact) <= np.abs(exact) / 256).all()


@given(data=st.data(), size=sizes, magnitude=st.integers(-148, 127))
@settings(deadline=None, max_examples=150)
def test_int8_is_off_by_at_most_half_of_its_blocks_scale(data, size, magnitude):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    numbers = np.ldexp(rng.uniform(-1, 1, size), magnitude).astype(np.float32)
    if size and data.draw(st.booleans()):
        numbers[data.draw(st.integers(0, size - 1))] = data.draw(finite)
    found = travelled("int8", numbers, np.zeros_like(numbers))
    for start in range(0, size, BLOCK):
        exact = numbers[start : start + BLOCK].astype(np.float64)
        largest = np.abs(exact).max()
        scale = np.nextafter(np.float32(largest / 127), np.float32(np.inf), dtype=np.float32)
        error = np.abs(found[start : start + BLOCK] - exact).max()
        assert error <= float(scale) / 2 * (1 + 1e-12)


def test_int8_keeps_zero_the_extremes_and_multiples_of_the_scale():
    numbers = np.array([0, 127, -127, 64, -1], np.float32) / 1024
    np.testing.assert_array_equal(travelled("int8", numbers, np.zeros_like(numbers)), numbers)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_parts_that_are_read_make_up_the_whole(payload):
    rng = np.random.default_rng(0)
    received, step = rng.normal(size=(2, 5 * BLOCK + 17)).astype(np.float32)
    local = received + step * np.float32(0.01)
    packed = update(payload, groups(local), groups(received))["trunk"]
    whole = step_part(payload, packed, local.size, slice(0, local.size), received)
    pieces = [
        step_part(payload, packed, local.size, slice(start, min(start + 2 * BLOCK, local.size)), received)
        for start in range(0, local.size, 2 * BLOCK)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    exact = local.astype(np.float64) - received
    bound = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 1 / 254}[payload]
    assert np.abs(whole - exact).max() <= bound * np.abs(exact).max() + 1e-7


def test_arrays_longer_than_a_part_are_rounded_alike(monkeypatch):
    rng = np.random.default_rng(0)
    local = rng.normal(size=5 * BLOCK + 3).astype(np.float32)
    whole = {payload: update(payload, groups(local), zeros(local))["idh"] for payload in PAYLOADS}
    assert local.size < PART
    monkeypatch.setattr("fedglioma.payload.PART", 2 * BLOCK)
    for payload, expected in whole.items():
        np.testing.assert_array_equal(update(payload, groups(local), zeros(local))["idh"], expected)


def test_float32_travels_as_it_is():
    local = np.array([1.5, -0.0, 1e-45], np.float32)
    packed = update("float32", groups(local), zeros(local))
    assert packed["trunk"].tobytes() == local.tobytes()


@given(payload=st.sampled_from(PAYLOADS), size=sizes)
@settings(deadline=None, max_examples=30)
def test_sizes_are_known_before_anything_is_sent(payload, size):
    local = np.ones(size, np.float32)
    packed = update(payload, groups(local), zeros(local))
    expected = forms(payload, dict.fromkeys(GROUPS, size))
    assert {group: (str(array.dtype), array.size) for group, array in packed.items()} == expected
    assert packed_bytes(payload, dict.fromkeys(GROUPS, size)) == sum(a.nbytes for a in packed.values())


def test_int8_is_a_quarter_and_bfloat16_half_of_float32():
    layout = dict.fromkeys(GROUPS, 1 << 20)
    whole = packed_bytes("float32", layout)
    assert packed_bytes("bfloat16", layout) / whole == 0.5
    assert packed_bytes("int8", layout) / whole == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("payload", ["bfloat16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_step_that_is_not_finite_is_not_sent(payload, bad):
    local = np.array([0, bad], np.float32)
    with pytest.raises(FedGliomaError, match="diverged"):
        update(payload, groups(local), zeros(local))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_equal_steps_give_equal_bytes(payload):
    rng = np.random.default_rng(2)
    local = rng.normal(size=3000).astype(np.float32)
    one, other = (update(payload, groups(local.copy()), zeros(local))["idh"] for _ in range(2))
    assert one.tobytes() == other.tobytes()
