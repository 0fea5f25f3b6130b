"""How well a tumour was outlined: Dice, 95 % Hausdorff distance, and volume.

A measure that does not exist for a case is ``None`` (nan in arrays), never 0 or 1, and the record counts
how often that was so.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from fedglioma.case import Frozen
from fedglioma.errors import DataError
from fedglioma.metrics.bootstrap import RESAMPLES, Measure, Statistic, bootstrap
from fedglioma.metrics.genotype import mean_statistic

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Spacing = tuple[float, float, float]

PERCENTILE = 95
MM3_PER_ML = 1000


class SegmentationMetrics(Frozen):
    """The figures of one set of outlined cases.

    Each mean is over the cases in which the measure exists: ``no_dice`` cases have neither a predicted nor
    a true tumour, ``no_hd95`` lack at least one of the two, ``no_volume`` have no volume to compare. An
    empty prediction has a Dice of 0 but no distance, so that ``mean_hd95_mm`` must be read beside
    ``no_hd95``: a network that outlines nothing in its hard cases would look better there.

    Of a copy that is passed on (``small_cells.py``) ``withheld`` says that ``n`` tells only on which side of
    the small-cell limit the outlined cases lie.
    """

    n: int
    n_patients: int
    no_dice: int
    no_hd95: int
    no_volume: int
    mean_dice: Measure
    median_dice: Measure
    mean_hd95_mm: Measure
    mean_volume_error_ml: Measure
    withheld: bool = False


def dice(predicted: NDArray[np.generic], reference: NDArray[np.generic]) -> float | None:
    """Return twice the overlap over the sum of both volumes, in [0, 1].

    ``None`` where both masks are empty: 0/0 says nothing of how well a tumour is outlined, and counting it
    as 1 would reward cases without a tumour. One empty mask gives 0.

    Parameters
    ----------
    predicted, reference : arrays of bool or of 0 and 1, shape (D, H, W)

    Raises
    ------
    DataError
        The shapes differ, or a mask holds something else.
    """
    first, second = _masks(predicted, reference)
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else None


def hd95_mm(
    predicted: NDArray[np.generic], reference: NDArray[np.generic], spacing_mm: Spacing
) -> float | None:
    """Return the 95th percentile Hausdorff distance between two masks' surfaces, in mm.

    A mask's surface are its voxels with a face neighbour outside it or outside the image. The distances
    from each surface voxel to the other surface give a percentile for each direction, interpolated
    linearly; the larger of the two counts, as in MONAI's ``compute_hausdorff_distance``. ``None`` where a
    mask is empty: no distance leads there.

    Parameters
    ----------
    predicted, reference : arrays of bool or of 0 and 1, shape (D, H, W)
    spacing_mm : tuple of float
        Distance of neighbouring voxels along D, H and W.

    Raises
    ------
    DataError
        The shapes differ, a mask holds something else, or a spacing is not positive.
    """
    first, second = _masks(predicted, reference)
    _check_spacing(spacing_mm)
    if not first.any() or not second.any():
        return None
    box = _bounding_box(first | second)
    surfaces = [_surface(mask[box]) for mask in (first, second)]
    here, there = (_percentile(a, b, spacing_mm) for a, b in (surfaces, surfaces[::-1]))
    return max(here, there)


def volume_ml(mask: NDArray[np.generic], spacing_mm: Spacing) -> float:
    """Return the volume of a mask (D, H, W) of bool or of 0 and 1, in mL.

    Raises
    ------
    DataError
        The mask holds something else, or a spacing is not positive.
    """
    _check_spacing(spacing_mm)
    return float(_binary(mask).sum() * np.prod(spacing_mm) / MM3_PER_ML)


def segmentation_metrics(
    dices: FloatArray,
    hd95s_mm: FloatArray,
    predicted_ml: FloatArray,
    reference_ml: FloatArray,
    patients: IntArray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SegmentationMetrics:
    """Return the figures of n outlined cases with their patient-bootstrap intervals.

    Parameters
    ----------
    dices, hd95s_mm, predicted_ml, reference_ml : arrays, shape (n,)
        nan where the measure does not exist for the case.
    patients : array of int, shape (n,), optional
        Equal for cases of one patient; without it every case is a patient.
    resamples : int
        0 gives values without intervals.

    Raises
    ------
    DataError
        The lengths differ.
    """
    people = np.arange(len(dices)) if patients is None else patients
    lengths = [len(a) for a in (dices, hd95s_mm, predicted_ml, reference_ml, people)]
    if len(set(lengths)) > 1:
        raise DataError(f"segmentation metrics: {lengths} values: one of each measure per case is needed")
    errors = np.abs(predicted_ml - reference_ml)
    statistics = {
        "mean_dice": _mean(dices, "no case with a tumour"),
        "median_dice": _median(dices, "no case with a tumour"),
        "mean_hd95_mm": _mean(hd95s_mm, "no case with both a predicted and a true tumour"),
        "mean_volume_error_ml": _mean(errors, "no case with both volumes"),
    }
    return SegmentationMetrics(
        n=len(dices),
        n_patients=len(np.unique(people)),
        no_dice=int(np.isnan(dices).sum()),
        no_hd95=int(np.isnan(hd95s_mm).sum()),
        no_volume=int(np.isnan(errors).sum()),
        **bootstrap(statistics, people, resamples=resamples, seed=seed),
    )


def _mean(values: FloatArray, undefined: str) -> Statistic:
    known = ~np.isnan(values)
    return mean_statistic(np.where(known, values, 0), known, undefined)


def _median(values: FloatArray, undefined: str) -> Statistic:
    """Return the median over the known values, each counted as often as its case was drawn."""
    order = np.argsort(values)[: int((~np.isnan(values)).sum())]  # nan sorts last
    ranked = values[order]

    def compute(weights: FloatArray) -> FloatArray:
        middle = np.full(len(weights), np.nan)
        reached = np.cumsum(weights[:, order], axis=1)
        drawn = reached[:, -1] > 0 if len(order) else np.zeros(len(weights), dtype=bool)
        reached = reached[drawn]
        if len(reached):
            total = reached[:, -1:]
            below = (reached > (total - 1) // 2).argmax(axis=1)
            above = (reached > total // 2).argmax(axis=1)
            middle[drawn] = (ranked[below] + ranked[above]) / 2
        return middle

    return Statistic(compute, undefined)


def _masks(predicted: NDArray[np.generic], reference: NDArray[np.generic]) -> tuple[BoolArray, BoolArray]:
    if predicted.shape != reference.shape:
        raise DataError(
            f"masks of shapes {predicted.shape} and {reference.shape} cannot be compared: "
            "bring the prediction onto the reference's grid"
        )
    return _binary(predicted), _binary(reference)


def _binary(mask: NDArray[np.generic]) -> BoolArray:
    if mask.ndim != 3:
        raise DataError(f"mask of shape {mask.shape}: three axes are needed")
    if mask.dtype == np.bool_:
        return mask.astype(np.bool_, copy=False)
    inside: BoolArray = mask == 1
    if not (inside | (mask == 0)).all():
        raise DataError(
            "a mask holds values other than 0 and 1: merge its labels, leave out cases not outlined"
        )
    return inside


def _check_spacing(spacing_mm: Spacing) -> None:
    if len(spacing_mm) != 3 or not all(0 < step < np.inf for step in spacing_mm):
        raise DataError(f"spacing {spacing_mm}: three positive distances in mm are needed")


def _bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _surface(mask: BoolArray) -> BoolArray:
    # What lies outside the box counts as outside the mask, as outside the image.
    surface: BoolArray = mask & ~binary_erosion(mask)
    return surface


def _percentile(surface: BoolArray, other: BoolArray, spacing_mm: Spacing) -> float:
    """Return the percentile of the distances from the voxels of one surface to the other surface."""
    distances = distance_transform_edt(~other, sampling=spacing_mm)
    return float(np.percentile(distances[surface], PERCENTILE))
