import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglioma.errors import DataError
from fedglioma.metrics.bootstrap import resample_weights
from fedglioma.metrics.segmentation import dice, hd95_mm, segmentation_metrics, volume_ml

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="monai is not installed")
MASKS = arrays(np.bool_, (5, 6, 4))
SPACINGS = st.tuples(*3 * [st.floats(0.3, 5)])


def cube(start, edge=8, grid=32):
    mask = np.zeros((grid, grid, grid), dtype=bool)
    mask[tuple(slice(s, s + edge) for s in start)] = True
    return mask


@pytest.mark.parametrize("k", [0, 1, 3, 8, 12])
def test_dice_of_a_cube_moved_by_k_voxels_is_the_share_that_still_overlaps(k):
    assert dice(cube((4, 4, 4)), cube((4 + k, 4, 4))) == pytest.approx(max(0, 8 - k) / 8)


@pytest.mark.parametrize("k", [0, 1, 3, 8, 12])
@pytest.mark.parametrize(("axis", "step"), [(0, 1.0), (1, 2.0), (2, 0.5)])
def test_hd95_of_a_cube_moved_along_an_axis_is_the_way_in_mm(k, axis, step):
    moved = [4, 4, 4]
    moved[axis] += k
    # The front face, more than 5 % of the surface, is k voxels away from the other cube's.
    assert hd95_mm(cube((4, 4, 4)), cube(moved), (1.0, 2.0, 0.5)) == pytest.approx(k * step)


def test_hd95_forgives_a_twentieth_of_the_surface_and_no_more():
    reference = cube((4, 4, 4), edge=10)  # 1000 - 8^3 = 488 surface voxels
    stray = reference.copy()
    stray[30, 30, 30] = True
    assert hd95_mm(stray, reference, (1, 1, 1)) == 0
    for i in range(26):
        stray[30, i, 30] = True
    assert hd95_mm(stray, reference, (1, 1, 1)) > 10


def test_voxels_of_two_single_voxel_masks_are_their_distance_apart():
    first, second = cube((1, 2, 3), edge=1), cube((4, 6, 15), edge=1)
    assert hd95_mm(first, second, (1, 1, 1)) == pytest.approx(13)
    assert hd95_mm(first, second, (10, 10, 10)) == pytest.approx(130)


def test_empty_masks_have_no_distance_and_two_of_them_no_dice():
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=np.int8)
    assert dice(empty, empty) is None
    assert dice(empty, full) == dice(full, empty) == 0
    assert [hd95_mm(a, b, (1, 1, 1)) for a, b in ((empty, full), (full, empty), (empty, empty))] == [None] * 3
    assert volume_ml(empty, (1, 1, 1)) == 0


def test_volume_is_voxels_times_their_size():
    assert volume_ml(cube((0, 0, 0), edge=10), (1, 1, 1)) == pytest.approx(1)
    assert volume_ml(cube((0, 0, 0), edge=10), (0.5, 2, 3)) == pytest.approx(3)


@needs_monai
@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
@settings(deadline=None, max_examples=60)
@given(predicted=MASKS, reference=MASKS, spacing=SPACINGS)
def test_dice_and_hd95_are_monais(predicted, reference, spacing):
    import torch
    from monai.metrics import DiceHelper, compute_hausdorff_distance

    first, second = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (predicted, reference))
    both = [torch.cat((1 - mask, mask), dim=1) for mask in (first, second)]
    if reference.any():
        theirs, _ = DiceHelper(include_background=False, apply_argmax=False)(*both)
        assert dice(predicted, reference) == pytest.approx(float(theirs), abs=1e-6)
    if predicted.any() and reference.any():
        distance = compute_hausdorff_distance(*both, percentile=95, spacing=spacing)
        assert hd95_mm(predicted, reference, spacing) == pytest.approx(float(distance), rel=1e-5, abs=1e-5)


@settings(max_examples=40)
@given(predicted=MASKS, reference=MASKS, spacing=SPACINGS)
def test_measures_are_symmetric_blind_to_orientation_and_to_empty_margins(predicted, reference, spacing):
    score, distance = dice(predicted, reference), hd95_mm(predicted, reference, spacing)
    assert dice(reference, predicted) == score
    assert hd95_mm(reference, predicted, spacing) == distance
    turned = [mask.transpose(2, 0, 1)[::-1] for mask in (predicted, reference)]
    assert dice(*turned) == score
    padded = [np.pad(mask, 2) for mask in (predicted, reference)]
    turned_distance = hd95_mm(*turned, (spacing[2], spacing[0], spacing[1]))
    if distance is None:
        assert turned_distance is hd95_mm(*padded, spacing) is None
    else:
        assert [turned_distance, hd95_mm(*padded, spacing)] == pytest.approx([distance, distance])


@pytest.mark.parametrize(
    ("masks", "spacing", "message"),
    [
        (
            (np.zeros((2, 2, 2)), np.zeros((2, 2, 3))),
            (1, 1, 1),
            r"\(2, 2, 2\) and \(2, 2, 3\) cannot be compared",
        ),
        ((np.zeros((2, 2, 2)), np.full((2, 2, 2), -1)), (1, 1, 1), "values other than 0 and 1"),
        ((np.zeros((2, 2, 2)), np.full((2, 2, 2), 4)), (1, 1, 1), "values other than 0 and 1"),
        ((np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2))), (1, 1, 1), "values other than 0 and 1"),
        ((np.zeros((2, 2)), np.zeros((2, 2))), (1, 1, 1), "three axes"),
        ((np.zeros((2, 2, 2)), np.zeros((2, 2, 2))), (1, 0, 1), "three positive distances in mm"),
        ((np.zeros((2, 2, 2)), np.zeros((2, 2, 2))), (1, np.nan, 1), "three positive distances in mm"),
    ],
)
def test_masks_and_spacings_that_make_no_sense_are_refused(masks, spacing, message):
    with pytest.raises(DataError, match=message):
        hd95_mm(*masks, spacing)


def test_means_leave_out_what_does_not_exist_and_say_how_often():
    nan = np.nan
    ours = segmentation_metrics(
        np.array([0.9, 0.0, nan, 0.6]),
        np.array([2.0, nan, nan, 4.0]),
        np.array([10.0, 0.0, 0.0, 30.0]),
        np.array([12.0, 5.0, 0.0, nan]),
        np.array([1, 2, 3, 3]),
        resamples=200,
    )
    assert (ours.n, ours.n_patients, ours.no_dice, ours.no_hd95, ours.no_volume) == (4, 3, 1, 2, 1)
    assert ours.mean_dice.value == pytest.approx(0.5)
    assert ours.median_dice.value == pytest.approx(0.6)
    assert ours.mean_hd95_mm.value == pytest.approx(3)
    assert ours.mean_volume_error_ml.value == pytest.approx((2 + 5 + 0) / 3)
    assert ours.mean_dice.low <= 0.5 <= ours.mean_dice.high
    assert ours.mean_hd95_mm.dropped > 0


@settings(deadline=None, max_examples=25)
@given(data=st.data(), n=st.integers(2, 12))
def test_median_of_each_resample_is_numpys_of_the_repeated_cases(data, n):
    values = np.array(
        data.draw(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), min_size=n, max_size=n))
    )
    zeros = np.zeros(n)
    measure = segmentation_metrics(values, zeros, zeros, zeros, resamples=60, seed=5).median_dice
    known = values[~np.isnan(values)]
    assert measure.value == (pytest.approx(np.median(known)) if len(known) else None)
    draws = []
    for weights in next(resample_weights(np.arange(n), 60, seed=5)).astype(int):
        repeated = np.repeat(values, weights)
        repeated = repeated[~np.isnan(repeated)]
        if len(repeated):
            draws.append(np.median(repeated))
    if measure.low is not None:
        assert [measure.low, measure.high] == pytest.approx(list(np.quantile(draws, (0.025, 0.975))))
        assert measure.dropped == 60 - len(draws)


def test_nothing_measured_gives_reasons_instead_of_numbers():
    nothing = np.full(3, np.nan)
    ours = segmentation_metrics(nothing, nothing, nothing, nothing)
    assert ours.mean_dice.value is ours.median_dice.value is ours.mean_hd95_mm.value is None
    assert ours.mean_dice.reason == ours.median_dice.reason == "no case with a tumour"
    assert ours.mean_hd95_mm.reason == "no case with both a predicted and a true tumour"
    empty = segmentation_metrics(nothing[:0], nothing[:0], nothing[:0], nothing[:0])
    assert empty.n == 0
    assert empty.median_dice.value is None


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match=r"\[2, 2, 2, 1, 2\] values: one of each measure per case"):
        segmentation_metrics(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(1))
