"""A head that is moved by a known amount between two scans, and how far a registration is off."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedglioma.data.volume import Affine, FloatArray, Mask, Volume

MOST_DEGREES = 15.0
MOST_MM = 20.0
ROOM_MM = 12.0
PART_MM = 1.0
"""How finely a thick slice is sampled before it is averaged."""
SNR = 25.0
"""Of the brain's median, in what is added to the noise that the image has."""
POINTS = 5000


@dataclass(frozen=True)
class Scan:
    """A volume in RAS order and the brain's voxels on its grid."""

    volume: Volume
    brain: Mask

    @cached_property
    def points(self) -> npt.NDArray[np.float64]:
        """Points evenly spread over the brain, in RAS mm and with a 1, shape (N, 4)."""
        inside = np.argwhere(self.brain)
        chosen = inside[:: max(1, len(inside) // POINTS)]
        points: npt.NDArray[np.float64] = np.c_[chosen, np.ones(len(chosen))] @ self.volume.affine.T
        return points

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """The middle of the brain, in RAS mm, shape (3,)."""
        centre: npt.NDArray[np.float64] = self.points[:, :3].mean(axis=0)
        return centre


def draw_movement(rng: np.random.Generator, centre: npt.NDArray[np.float64]) -> Affine:
    """Return a rigid movement of RAS points, turned about ``centre``; angle and distance are uniform."""
    axis, way = rng.normal(size=(2, 3))
    turned = Rotation.from_rotvec(np.radians(rng.uniform(0, MOST_DEGREES)) * axis / np.linalg.norm(axis))
    matrix = np.eye(4)
    matrix[:3, :3] = turned.as_matrix()
    shift = rng.uniform(0, MOST_MM) * way / np.linalg.norm(way)
    matrix[:3, 3] = centre + shift - matrix[:3, :3] @ centre
    return matrix


def taken(scan: Scan, movement: Affine, rng: np.random.Generator, slices_mm: float | None = None) -> Volume:
    """Return the moved head as another scan sees it, with noise of its own, in a field of view of its own.

    The voxels have the volume's own size and axes, from a corner that chance decides; with ``slices_mm`` the
    third axis has slices averaged over that thickness. A head that was stripped stays so.
    """
    stripped = not scan.volume.array[~scan.brain].any()
    corner, shape = _field_of_view(scan, movement, rng)
    view = scan.volume.affine.copy()
    view[:3, 3] = (scan.volume.affine @ [*corner, 1.0])[:3]
    parts = 1
    if slices_mm is not None:
        parts = round(slices_mm / PART_MM)
        size = scan.volume.spacing[2]
        shape = (*shape[:2], int(np.ceil(shape[2] * size / slices_mm)) * parts)
        view[:3, 2] *= PART_MM / size
    index = np.linalg.inv(movement @ scan.volume.affine) @ view
    image = _slices(_sampled(scan.volume.array, index, shape, order=3), parts)
    brain = _slices(_sampled(scan.brain.astype(np.float32), index, shape, order=1), parts) >= 0.5
    view[:3, 3] += view[:3, 2] * (parts - 1) / 2
    view[:3, 2] *= parts
    noise = float(np.median(scan.volume.array[scan.brain])) / SNR
    real, imaginary = rng.normal(0, noise, (2, *image.shape)).astype(np.float32)
    image = np.hypot(np.maximum(image, 0) + real, imaginary)
    return Volume(np.where(brain, image, 0) if stripped else image, view)


def target_error(found: Affine, true: Affine, scan: Scan) -> float:
    """Return the mean distance in mm, over the brain, by which points are laid wrong."""
    return float(np.linalg.norm((scan.points @ (found - true).T)[:, :3], axis=1).mean())


def _field_of_view(
    scan: Scan, movement: Affine, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], tuple[int, ...]]:
    """Return the first voxel's index, a broken one, and the size of a view that holds the moved head."""
    array = scan.volume.array
    head = np.argwhere(array > 0.1 * np.percentile(array[scan.brain], 99))[::101]
    there = (
        np.linalg.inv(scan.volume.affine) @ movement @ scan.volume.affine @ np.c_[head, np.ones(len(head))].T
    )
    room = ROOM_MM / np.array(scan.volume.spacing)
    low, high = there[:3].min(axis=1) - room, there[:3].max(axis=1) + room
    return low - rng.uniform(0, 1, 3), tuple(int(n) for n in np.ceil(high - low) + 2)


def _sampled(array: FloatArray, index: Affine, shape: tuple[int, ...], *, order: int) -> FloatArray:
    """Return the array at the indices of a view's voxels, by scipy and not by what is to be judged."""
    seen: FloatArray = ndimage.affine_transform(
        array, index[:3, :3], index[:3, 3], output_shape=shape, order=order, output=np.float32
    )
    return seen


def _slices(array: FloatArray, parts: int) -> FloatArray:
    """Return the mean of each ``parts`` neighbours along the third axis."""
    mean: FloatArray = array.reshape(*array.shape[:2], -1, parts).mean(axis=3)
    return mean
