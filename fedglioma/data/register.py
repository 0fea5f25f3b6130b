"""One modality laid onto another of the same patient: a rigid movement, found by mutual information.

Mattes' mutual information (Mattes et al. 2003) over three levels, by SimpleITK, from the images' centres of
mass. Both images are resampled to 1.5 mm cubes first: between two stacks of thick slices the information
itself prefers slices that coincide. The skull may be there or not; no mask is needed.

The same volumes give the same movement.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses

from fedglioma.data.harmonize import RAS_TO_LPS, to_sitk
from fedglioma.data.volume import Affine, Volume, VolumeError

WORKING_MM: Final = 1.5
MOST_DEGREES: Final = 45.0
MOST_MM: Final = 60.0
LEAST_OVERLAP: Final = 0.5
_BINS: Final = 32
_SAMPLED: Final = (0.08, 0.04, 0.02)
_SHRINK: Final = (4, 2, 1)
_SMOOTH_MM: Final = (3.0, 2.0, 1.0)
_STEPS: Final = 200
_SEED: Final = 42
_DECIMALS: Final = 6


@dataclass(frozen=True)
class Movement:
    """Where a modality lies in another's space.

    ``matrix`` (4, 4) maps RAS mm of the fixed volume to RAS mm of the moving one. ``degrees`` is the angle of
    the rotation, ``millimetres`` how far the moving volume's centre travels. ``information`` is Mattes'
    mutual information at the end, in nats; ``overlap`` the share of the fixed volume's foreground that the
    moved volume covers.
    """

    matrix: Affine
    degrees: float
    millimetres: float
    information: float
    overlap: float

    def moved(self, volume: Volume) -> Volume:
        """Return the volume in the fixed one's space: the same voxels under another affine."""
        return Volume(volume.array, np.linalg.inv(self.matrix) @ volume.affine)


def register(fixed: Volume, moving: Volume) -> Movement:
    """Return the movement that lays ``moving`` onto ``fixed``; both in RAS order.

    Raises
    ------
    VolumeError
        ``registration``: it did not converge, the movement is larger than a head in a scanner makes, or the
        volumes hardly overlap afterwards. The figure is in the reason.
    """
    still, other = _cubes(fixed), _cubes(moving)
    method = _method()
    try:
        start = sitk.CenteredTransformInitializer(
            still, other, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
        method.SetInitialTransform(start, inPlace=False)
        found = method.Execute(still, other)
    except RuntimeError as error:
        raise VolumeError(
            "registration", f"could not be laid over the reference ({_last_line(error)})"
        ) from None
    matrix = _ras_matrix(found)
    movement = Movement(
        matrix=matrix,
        degrees=_degrees(matrix),
        millimetres=_travel(matrix, moving),
        information=-float(method.GetMetricValue()),
        overlap=_overlap(still, other, found),
    )
    _demand(movement, converged=method.GetOptimizerIteration() < _STEPS)
    return movement


def _method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    # Cases run in parallel, so a filter that takes every core would only take them from a neighbour.
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(_SAMPLED, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-3,
        numberOfIterations=_STEPS,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(_SHRINK)
    method.SetSmoothingSigmasPerLevel(_SMOOTH_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _cubes(volume: Volume) -> sitk.Image:
    """Return the volume on cubes of ``WORKING_MM`` along its own axes, outer faces flush."""
    image = to_sitk(volume)
    spacing, size = np.array(image.GetSpacing()), np.array(image.GetSize())
    counts = np.maximum(np.rint(spacing * size / WORKING_MM), 1).astype(int)
    axes = np.array(image.GetDirection()).reshape(3, 3)
    origin = np.array(image.GetOrigin()) + axes @ ((WORKING_MM - spacing) / 2)
    mover = sitk.ResampleImageFilter()
    mover.SetNumberOfThreads(1)
    mover.SetInterpolator(sitk.sitkLinear)
    mover.SetSize(counts.tolist())
    mover.SetOutputSpacing([WORKING_MM] * 3)
    mover.SetOutputOrigin(origin.tolist())
    mover.SetOutputDirection(image.GetDirection())
    cubes: sitk.Image = mover.Execute(image)
    return cubes


def _ras_matrix(transform: sitk.Transform) -> Affine:
    """Return a linear transform of points in LPS as a matrix of points in RAS."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = RAS_TO_LPS @ np.stack(columns, axis=1) @ RAS_TO_LPS
    matrix[:3, 3] = RAS_TO_LPS @ origin
    # The search differs by 1e-13 from run to run; prepared voxels and their digests must not.
    rounded: Affine = np.round(matrix, _DECIMALS)
    return rounded


def _degrees(matrix: Affine) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def _travel(matrix: Affine, moving: Volume) -> float:
    centre = moving.affine @ [*((np.array(moving.array.shape) - 1) / 2), 1.0]
    return float(np.linalg.norm((np.linalg.inv(matrix) @ centre - centre)[:3]))


def _overlap(still: sitk.Image, other: sitk.Image, found: sitk.Transform) -> float:
    """Return the share of the fixed foreground that lies inside the moved volume's field of view."""
    inside = sitk.Resample(other * 0 + 1, still, found, sitk.sitkNearestNeighbor, 0.0)
    shown = sitk.GetArrayViewFromImage(still)
    foreground = shown > (shown.min() + shown.max()) / 10
    return float(sitk.GetArrayViewFromImage(inside)[foreground].mean())


def _demand(movement: Movement, *, converged: bool) -> None:
    if not converged:
        reason = f"the search for its place did not come to an end in {_STEPS} steps"
        raise VolumeError("registration", reason)
    if movement.degrees > MOST_DEGREES or movement.millimetres > MOST_MM:
        raise VolumeError(
            "registration",
            f"it would have to be turned by {movement.degrees:.0f} degrees and moved by "
            f"{movement.millimetres:.0f} mm to fit the reference; is it the same patient's?",
        )
    if movement.overlap < LEAST_OVERLAP:
        raise VolumeError(
            "registration", f"laid over the reference it covers only {movement.overlap:.0%} of it"
        )


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()
