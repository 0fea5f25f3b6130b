"""A patient's folder of DICOM files as series: found, grouped, ordered and judged by their headers alone.

A stack of slices that a converter would turn into a wrong volume without a word - one slice missing, one
double, two directions mixed - is refused here. What cannot be used has a reason; one bad file never stops
the others, and links that lead out of the patient's folder are not followed.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedglioma.data.cache import Remark
from fedglioma.data.dicom_header import FileHeader, TechnicalHeader, read_header
from fedglioma.data.dicom_walk import Findings, image_files
from fedglioma.data.sequence import NO_MAP, Choice, SeriesMap, classify
from fedglioma.data.volume import MAX_EXTENT_MM, MAX_VOXELS, SPACING_MM, Affine, VolumeError

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_PARALLEL: Final = 1e-3
_SAME_PLACE_MM: Final = 0.01
_SIDEWAYS_MM: Final = 0.1
_ECHO_GAP: Final = (1.0, 0.1)


@dataclass(frozen=True)
class Limits:
    """What a stack must have to count as a whole head."""

    min_slices: int = 12
    min_extent_mm: float = 80.0
    max_step_mm: float = 7.5


WHOLE_HEAD: Final = Limits()


@dataclass(frozen=True)
class Geometry:
    """Columns, rows and slices of a stack, and the affine from that index to RAS mm, shape (4, 4)."""

    shape: tuple[int, int, int]
    affine: Affine


@dataclass(frozen=True)
class Series:
    """Files that make one volume, in order along the slices, with all that is known of it.

    ``patient`` is the PatientID's keyed hash, empty when there is none; ``order`` counts the folder's series
    by time of acquisition, from 0.
    """

    files: tuple[Path, ...]
    header: TechnicalHeader
    geometry: Geometry
    choice: Choice
    patient: str
    number: int
    order: int


def find_series(
    folder: Path, secret: bytes, *, series_map: SeriesMap = NO_MAP, limits: Limits = WHOLE_HEAD
) -> tuple[tuple[Series, ...], tuple[Remark, ...]]:
    """Return the usable stacks in a patient's folder, in order of acquisition, and why others are not.

    Raises
    ------
    VolumeError
        ``unreadable``: the folder itself cannot be listed.
    """
    findings = Findings(folder)
    groups: dict[str, list[FileHeader]] = defaultdict(list)
    for path in image_files(folder, findings):
        try:
            header = read_header(path, secret)
        except VolumeError as error:
            findings.add(error, path)
        else:
            groups[header.uid].append(header)
    stacks = sorted(
        (stack for group in groups.values() for stack in _by_echo(group)),
        key=lambda stack: (min(h.acquired for h in stack), stack[0].number, stack[0].path),
    )
    found = []
    for order, stack in enumerate(stacks):
        try:
            found.append(make_series(stack, order=order, series_map=series_map, limits=limits))
        except VolumeError as error:
            findings.add(error, *(header.path for header in stack))
    return tuple(found), findings.told()


def make_series(
    headers: Sequence[FileHeader],
    *,
    order: int = 0,
    series_map: SeriesMap = NO_MAP,
    limits: Limits = WHOLE_HEAD,
) -> Series:
    """Return the series that files of one SeriesInstanceUID make up.

    Raises
    ------
    VolumeError
        ``mixed_patients``, ``localizer``, ``derived``, ``not_structural``, ``ignored``, or as ``stack``.
    """
    first = headers[0]
    if len({header.patient for header in headers}) > 1:
        raise VolumeError("mixed_patients", "files of several patients are in one series; sort them out")
    choice = classify(first.text, first.technical, series_map)
    if choice.code in ("localizer", "derived", "not_structural", "ignored"):
        raise VolumeError(choice.code, "; ".join(choice.reasons))
    ordered, geometry = stack(headers, limits)
    i, j, k = (round(float(size), 4) for size in np.linalg.norm(geometry.affine[:3, :3], axis=0))
    technical = first.technical.model_copy(update={"spacing_mm": (i, j, k), "slices": geometry.shape[2]})
    return Series(
        files=tuple(header.path for header in ordered),
        header=technical,
        geometry=geometry,
        choice=choice,
        patient=first.patient,
        number=first.number,
        order=order,
    )


def stack(headers: Sequence[FileHeader], limits: Limits = WHOLE_HEAD) -> tuple[list[FileHeader], Geometry]:
    """Return the files in order along their slices, and where the voxels lie.

    Raises
    ------
    VolumeError
        ``several_volumes``, ``mixed_matrix``, ``mixed_orientation``, ``duplicate_slices``,
        ``missing_slices``, ``sheared``, ``too_few_slices``, ``too_thick``, ``slab``, ``spacing``,
        ``dimensions`` or ``extent``.
    """
    first = headers[0]
    if len(headers) > 1 and any(len(header.frames) > 1 for header in headers):
        raise VolumeError("several_volumes", "several multi-frame files in one series; keep the original one")
    frames = [(frame, header) for header in headers for frame in header.frames]
    if len({frame.time_point for frame, _ in frames}) > 1:
        raise VolumeError("several_volumes", "several time points in one series; give one volume")
    spacing = np.array([frame.pixel_spacing for frame, _ in frames])  # (F, 2)
    sizes = {(header.rows, header.columns) for header in headers}
    if len(sizes) > 1 or np.ptp(spacing, axis=0).max() > 1e-3:
        raise VolumeError("mixed_matrix", "matrix or pixel size changes within the series; export it again")
    axes = np.array([frame.orientation for frame, _ in frames])  # (F, 6)
    if np.abs(axes - axes[0]).max() > _PARALLEL:
        raise VolumeError("mixed_orientation", "the slices are not parallel; a localizer, or several stacks")
    if len(frames) < limits.min_slices:
        reason = f"{len(frames)} slices; a head needs at least {limits.min_slices}"
        raise VolumeError("too_few_slices", reason)
    across, down = axes[0, :3], axes[0, 3:]
    normal = np.cross(across, down)
    positions = np.array([frame.position for frame, _ in frames])  # (F, 3)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    step = _even_step(along[order], positions[order], normal, limits)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([across * spacing[0, 1], down * spacing[0, 0], step])
    affine[:3, 3] = positions[order[0]]
    rows, columns = next(iter(sizes))
    if columns * rows * len(frames) > MAX_VOXELS:
        reason = f"{columns}x{rows}x{len(frames)} voxels; no head has so many, export the series again"
        raise VolumeError("dimensions", reason)
    geometry = Geometry((columns, rows, len(frames)), _LPS_TO_RAS @ affine)
    _demand_head(geometry, limits)
    ordered = [frames[index][1] for index in order] if len(headers) > 1 else [first]
    return ordered, geometry


def _even_step(along: Affine, positions: Affine, normal: Affine, limits: Limits) -> Affine:
    """Return the vector from slice to slice, shape (3,), of positions in order; raises ``VolumeError``."""
    steps = np.diff(along)
    usual = float(np.median(steps))
    double = int((steps < _SAME_PLACE_MM).sum())
    if double:
        reason = (
            f"{double} of {len(along)} slices share a place: copies, or several volumes; keep one of each"
        )
        raise VolumeError("duplicate_slices", reason)
    if np.abs(steps - usual).max() > max(0.1, 0.02 * usual):
        reason = (
            f"slices are {steps.min():.2f} to {steps.max():.2f} mm apart; copy the series again, all of it"
        )
        raise VolumeError("missing_slices", reason)
    if usual > limits.max_step_mm:
        raise VolumeError(
            "too_thick", f"slices {usual:.1f} mm apart; at most {limits.max_step_mm:g} mm is used"
        )
    step: Affine = (positions[-1] - positions[0]) / (len(along) - 1)
    sideways = (positions - positions[0]) - np.outer(along - along[0], normal)
    if np.linalg.norm(sideways, axis=1).max() > _SIDEWAYS_MM:
        raise VolumeError("sheared", "the slices are shifted sideways; export the series again")
    return step


def _demand_head(geometry: Geometry, limits: Limits) -> None:
    sizes = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    if sizes.min() < SPACING_MM[0] or sizes.max() > SPACING_MM[1]:
        raise VolumeError("spacing", f"voxels of {sizes.min():.3g} to {sizes.max():.3g} mm; export it again")
    extent = sizes * geometry.shape
    if extent.max() > MAX_EXTENT_MM:
        raise VolumeError("extent", f"{extent.max():.0f} mm long; no head is; export the series again")
    if extent.min() < limits.min_extent_mm:
        reason = f"a slab of {extent.min():.0f} mm; a whole brain needs {limits.min_extent_mm:g} mm"
        raise VolumeError("slab", f"{reason}. Give a series that covers the brain")


def _by_echo(group: list[FileHeader]) -> Iterator[list[FileHeader]]:
    """Yield the stacks of a series with several echoes; their echo times are far from each other."""
    ordered = sorted(group, key=lambda header: (header.technical.echo_ms or 0.0, str(header.path)))
    current: list[FileHeader] = []
    for header in ordered:
        last = current[-1].technical.echo_ms or 0.0 if current else 0.0
        if current and (header.technical.echo_ms or 0.0) - last > max(_ECHO_GAP[0], _ECHO_GAP[1] * last):
            yield current
            current = []
        current.append(header)
    if current:
        yield current
