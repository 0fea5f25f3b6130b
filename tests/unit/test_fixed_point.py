"""Numbers as multiples of a unit: sums are exact to the unit, and what does not fit is refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglioma.errors import AggregationError, Diverged, ProtocolError
from fedglioma.privacy.fixed_point import BLOCK, FixedPoint, Part, decode_parts, encode_parts

ranges = st.floats(2.0**-100, 2.0**100)
site_counts = st.integers(1, 200)


@settings(deadline=None, max_examples=200)
@given(ranges, site_counts)
def test_unit_is_the_smallest_power_of_two_with_which_the_largest_sum_fits(limit: float, sites: int) -> None:
    code = FixedPoint(limit, sites)
    mantissa, _ = np.frexp(code.unit)
    assert mantissa == 0.5

    def fits(unit: float) -> bool:
        return sites * round(Fraction(limit) / Fraction(unit)) <= 2**31 - 1

    assert fits(code.unit)
    assert not fits(code.unit / 2)
    assert Fraction(sites) * Fraction(limit) / 2**31 < Fraction(code.unit) * (1 + Fraction(1, 2**20))
    assert Fraction(code.unit) <= 4 * Fraction(sites) * Fraction(limit) / 2**31


@settings(deadline=None, max_examples=150)
@given(ranges, st.integers(1, 9), st.sampled_from(["float32", "float64"]), st.data())
def test_sum_of_n_sites_is_off_by_at_most_half_a_unit_each(
    limit: float, sites: int, kind: str, data: st.DataObject
) -> None:
    code = FixedPoint(limit, sites)
    n = data.draw(st.integers(1, sites))
    share = arrays(np.float64, (n, 3), elements=st.floats(-1, 1))
    numbers = (data.draw(share) * limit).astype(kind)
    assume(np.abs(numbers.astype(np.float64)).max() <= limit)  # rounding to float32 may have passed it
    total = np.zeros(3, np.uint32)
    for row in numbers:
        total += code.encode(row)
    for found, column in zip(code.decode(total, n), numbers.T, strict=True):
        exact = sum(Fraction(float(number)) for number in column)
        assert abs(Fraction(float(found)) - exact) <= Fraction(code.unit) * n / 2


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 100), st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20))
def test_whole_numbers_are_exact(sites: int, counts: list[int]) -> None:
    code = FixedPoint(1e6, min(sites, 2000))
    used = np.array(counts[: min(len(counts), sites)], np.float64)
    total = np.zeros(1, np.uint32)
    for number in used:
        total += code.encode(np.array([number]))
    assert code.unit <= 1
    assert code.decode(total, len(used))[0] == sum(int(number) for number in used)


@pytest.mark.parametrize("sites", [3, 4, 7, 8, 64, 100])
@pytest.mark.parametrize("sign", [-1, 1])
def test_largest_sum_does_not_turn_round(sites: int, sign: int) -> None:
    code = FixedPoint(0.75, sites)
    total = np.zeros(1, np.uint32)
    for _ in range(sites):
        total += code.encode(np.array([sign * 0.75]))
    assert code.decode(total, sites)[0] == sign * 0.75 * sites


def test_ties_go_to_even_and_negative_numbers_are_twos_complement() -> None:
    code = FixedPoint(2.0**29, 1)
    assert code.unit == 0.5
    assert code.encode(np.array([0.25, 0.75, -0.25, -0.5, -1.0])).tolist() == [0, 2, 0, 2**32 - 1, 2**32 - 2]


def test_long_vectors_are_coded_like_short_ones() -> None:
    code = FixedPoint(1.0, 3)
    many = np.random.default_rng(0).uniform(-1, 1, 2 * BLOCK + 5).astype(np.float32)
    coded = code.encode(many)
    assert coded.dtype == np.uint32
    for i in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 4):
        assert int(coded[i]) == round(Fraction(float(many[i])) / Fraction(code.unit)) % 2**32
    assert code.encode(np.zeros(0)).size == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_number_that_is_not_finite_is_training_that_diverged(bad: float) -> None:
    with pytest.raises(Diverged, match="not finite"):
        FixedPoint(1.0, 3).encode(np.array([0.0, bad, 0.5], np.float32))


@pytest.mark.parametrize("bad", [1.0000001, -1.0000001, 4.5])
def test_number_outside_the_range_is_refused_without_saying_which_or_how_large(bad: float) -> None:
    with pytest.raises(ProtocolError, match="outside the agreed range, 1 either way") as caught:
        FixedPoint(1.0, 3).encode(np.array([0.0, bad]))
    assert "4.5" not in str(caught.value)
    assert "clip" in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "sites"), [(0.0, 3), (-1.0, 3), (np.inf, 3), (np.nan, 3), (1.0, 0), (1e40, 3)]
)
def test_range_that_is_none_is_refused(limit: float, sites: int) -> None:
    with pytest.raises(ProtocolError, match="the range must be above 0"):
        FixedPoint(limit, sites)


def test_sum_that_no_sites_inside_the_range_can_have_is_refused() -> None:
    code = FixedPoint(1.0, 8)
    one = code.encode(np.array([1.0]))
    assert code.decode(one, 1)[0] == 1
    with pytest.raises(AggregationError, match="larger than 1 sites"):
        code.decode(one + one, 1)
    for count in (0, 9):
        with pytest.raises(AggregationError, match=f"{count} sites"):
            code.decode(one, count)


PARTS = (
    Part(name="trunk", size=3, range=1.0),
    Part(name="idh", size=0, range=1.0),
    Part(name="n", size=1, range=1e5),
)


def test_parts_travel_as_one_vector_each_with_its_own_unit() -> None:
    given = {"n": np.array([70_000.0]), "trunk": np.array([0.5, -1, 0.1], np.float32), "idh": np.zeros(0)}
    vector = encode_parts(PARTS, 3, given)
    assert vector.shape == (4,)
    back = decode_parts(PARTS, 3, vector + vector, 2)
    assert list(back) == ["trunk", "idh", "n"]
    assert back["n"].tolist() == [140_000]
    assert back["trunk"] == pytest.approx([1, -2, 0.2], abs=3e-8)


@pytest.mark.parametrize(
    "change", [{"n": None}, {"more": np.zeros(1)}, {"trunk": np.zeros(2)}, {"trunk": np.zeros((3, 1))}]
)
def test_parts_that_were_not_agreed_on_are_refused(change: dict[str, object]) -> None:
    given: dict[str, object] = {"trunk": np.zeros(3), "idh": np.zeros(0), "n": np.zeros(1)} | change
    arrays_given = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    with pytest.raises(ProtocolError, match="were agreed on"):
        encode_parts(PARTS, 3, arrays_given)
    with pytest.raises(AggregationError, match="not the parts"):
        decode_parts(PARTS, 3, np.zeros(5, np.uint32), 2)
