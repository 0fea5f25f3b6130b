"""Boxes that reach beyond a grid, and images stretched to size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.data.frame import box_about, cut_out, half_precision, stretched

SHAPE = (7, 6, 5)
starts = st.tuples(*[st.integers(-9, 9)] * 3)
sizes = st.tuples(*[st.integers(1, 12)] * 3)


@given(starts, sizes, st.integers(0, 2**32 - 1))
def test_cut_out_is_a_slice_of_the_mask_in_endless_emptiness(
    low: tuple[int, int, int], size: tuple[int, int, int], seed: int
) -> None:
    mask = np.random.default_rng(seed).random(SHAPE) > 0.5
    box = tuple((start, start + length) for start, length in zip(low, size, strict=True))
    endless = np.pad(mask, 25)
    expected = endless[tuple(slice(start + 25, stop + 25) for start, stop in box)]
    np.testing.assert_array_equal(cut_out(mask, box), expected)  # type: ignore[arg-type]


@given(starts, sizes, st.sampled_from([0.5, 1.0, 2.0, 5.5]))
def test_box_about_another_has_its_extents_and_its_middle(
    low: tuple[int, int, int], size: tuple[int, int, int], spacing_mm: float
) -> None:
    box = tuple((start, start + length) for start, length in zip(low, size, strict=True))
    found = box_about(box, (240.0, 240.0, 155.0), spacing_mm)  # type: ignore[arg-type]
    for (start, stop), (first, last), extent in zip(found, box, (240.0, 240.0, 155.0), strict=True):
        assert stop - start == round(extent / spacing_mm)
        assert abs((start + stop) - (first + last)) <= 1


def test_stretched_image_shows_the_same_at_the_same_place() -> None:
    """A ramp in mm stays that ramp, standardised; outside stays 0 and inside never becomes it."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-10, 5, 7)
    index = np.stack(np.meshgrid(*map(np.arange, (10, 8, 6)), indexing="ij"), -1)
    ramp = (index @ affine[:3, :3].T + affine[:3, 3]) @ [0.5, -0.25, 0.125]
    image = ramp.astype(np.float16)[None]
    image[image == 0] = 1e-3
    result, moved = stretched(image, affine, 16)
    assert result.shape == (1, 16, 16, 16)
    inner = np.stack(np.meshgrid(*[np.arange(3, 13)] * 3, indexing="ij"), -1)
    expected = (inner @ moved[:3, :3].T + moved[:3, 3]) @ [0.5, -0.25, 0.125]
    found = result[0][3:13, 3:13, 3:13].astype(float)
    slope, middle = np.polyfit(expected.ravel(), found.ravel(), 1)
    np.testing.assert_allclose(found, slope * expected + middle, atol=0.01)
    assert abs(result.mean()) < 0.01
    assert abs(result.astype(float).std() - 1) < 0.01
    np.testing.assert_allclose(np.linalg.norm(moved[:3, :3], axis=0) * 16, [20, 24, 24])
    image[0, :5] = 0
    cut, _ = stretched(image, affine, 16)
    assert not cut[0, :8].any()
    assert cut[0, 8:].all()


def test_half_precision_is_zero_outside_and_there_alone() -> None:
    inside = np.array([[[True, True, False]]])
    half = half_precision(np.array([[[0.0, 1e-9, 0.0]]], np.float32), inside)
    np.testing.assert_array_equal(half != 0, inside)
    assert abs(half).max() < 1e-6
