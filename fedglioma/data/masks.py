"""The expert's tumour mask on the voxels of its case's prepared array: a second, quick pass over the cache.

A mask belongs to the image that it was drawn on: its grid says which. Where that image was laid over the
reference, the mask is moved with it. From the expert's voxels to the network's it is sampled once, at the
nearest, through the box and any stretching alike. Labels are those of BraTS from 2023: 1 necrotic or
non-enhancing core, 2 oedema, 3 enhancing; 4, as BraTS wrote it before, becomes 3.

A mask that cannot be used never costs a case: the case goes on without it, and a warning says why.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses
from pydantic import JsonValue

from fedglioma.case import CHANNELS, Finding
from fedglioma.data.cache import Cache, LabelArray, Placed, Record, Stored, content_key
from fedglioma.data.harmonize import RAS_TO_LPS, to_ras, to_sitk
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.volume import (
    Affine,
    FloatArray,
    Mask,
    Volume,
    VolumeError,
    decode_volume,
    is_compressed,
    read_bytes,
)
from fedglioma.words import quoted

MASKS_VERSION: Final = 1
"""Raised whenever the same mask would give other labels: it is part of every mask's key."""

LEAST_INSIDE: Final = 0.8
"""Share of the outlined tumour that has to lie in the brain."""

CODE: Final = "mask"
LABELS: Final = (0, 1, 2, 3, 4)
ENHANCING: Final = 3
OLD_ENHANCING: Final = 4
ROUNDING: Final = 1e-3
"""A label stored with a scale may come back so far off."""
SAME_MM: Final = 0.1
"""So far apart may the corners of the same grid be in two headers; programs round them differently."""
_SHOWN: Final = 5


def lay_masks(
    cases: Sequence[PreparedCase], records: Sequence[Record], cache: Cache, *, workers: int = 1
) -> tuple[tuple[PreparedCase, ...], tuple[Finding, ...]]:
    """Return the cases with their masks in the cache, and why some of the masks are not used.

    Parameters
    ----------
    records : sequence of Record
        Those of the cases' arrays, beside them.

    Raises
    ------
    OSError
        The cache cannot be written.
    """
    with ThreadPoolExecutor(max(workers, 1)) as threads:
        laid = list(threads.map(partial(_laid, cache), cases, records))
    return tuple(case for case, _ in laid), tuple(finding for _, finding in laid if finding is not None)


def _laid(cache: Cache, prepared: PreparedCase, record: Record) -> tuple[PreparedCase, Finding | None]:
    case = prepared.case
    if case.mask is None:
        return prepared, None
    try:
        stored = stored_mask(prepared, record, case.mask, cache)
    except VolumeError as error:
        finding = Finding(
            patient=case.patient,
            site=case.site,
            code=CODE,
            message=f"{quoted(case.mask.name)}: {error.reason}; the mask is not used",
            stage="prepare",
        )
        return replace(prepared, case=case.model_copy(update={"mask": None})), finding
    return replace(prepared, mask=stored.array, mask_digest=stored.digest), None


def stored_mask(prepared: PreparedCase, record: Record, path: Path, cache: Cache) -> Stored:
    """Return the cache's entry of a mask laid on a prepared array, made where it is not there yet.

    Raises
    ------
    VolumeError
        The mask cannot be used; the reason has the remedy.
    OSError
        The cache cannot be written, or the prepared array not be read.
    """
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    treated: dict[str, JsonValue] = {
        "prepared": prepared.array.stem,
        "mask": digest,
        "masks_version": MASKS_VERSION,
    }
    key = content_key(record.inputs, treated)
    found = cache.get(key)
    if found is not None:
        return found
    volume = _read(content, compressed=is_compressed(path))
    brain: Mask = (np.load(prepared.array, mmap_mode="r", allow_pickle=False) != 0).any(axis=0)
    return cache.put(key, labels_in(volume, record, brain), record.model_copy(update={"mask": digest}))


def drawing_over_reference(path: Path, record: Record) -> Volume:
    """Return an expert's labels on the expert's own voxels, in RAS order, as they lie over the reference.

    Raises
    ------
    VolumeError
        The file cannot be used, its values are no labels, or its grid is that of no modality.
    """
    volume = _read(read_bytes(path), compressed=is_compressed(path))
    return Volume(_labels(volume.array), _affine_over_reference(volume, record))


def labels_in(volume: Volume, record: Record, brain: Mask) -> LabelArray:
    """Return a mask's labels at the voxels of a prepared array, shape (D, H, W).

    Parameters
    ----------
    volume : Volume
        The mask's values, in RAS order.
    brain : array of bool, shape (D, H, W)
        The prepared array's own brain.

    Raises
    ------
    VolumeError
        The values are no labels, the grid is that of no modality, or the tumour lies outside the brain.
    """
    drawing = Volume(_labels(volume.array), _affine_over_reference(volume, record))
    target = np.array(record.affine)
    inside = _share_inside(drawing, target, brain)
    if inside < LEAST_INSIDE:
        raise VolumeError(
            CODE,
            f"{1 - inside:.0%} of the tumour lies outside the brain; open it over the images in a viewer, "
            "and save it on the image that it was drawn on",
        )
    labels = _sampled(drawing, target, brain.shape)
    if not labels.any():
        raise VolumeError(CODE, f"the tumour is smaller than a voxel of {record.spacing_mm:g} mm")
    return labels


def _read(content: bytes, *, compressed: bool) -> Volume:
    try:
        return to_ras(decode_volume(content, compressed=compressed))
    except VolumeError as error:
        if error.code == "constant":
            raise _nothing_outlined() from None
        raise


def _nothing_outlined() -> VolumeError:
    return VolumeError(
        CODE, "every voxel has the same value, so no tumour is outlined; outline it or remove the file"
    )


def _labels(values: FloatArray) -> FloatArray:
    """Return a mask's values as labels of BraTS from 2023; raises ``VolumeError``."""
    whole = np.rint(values)
    broken = np.unique(values[np.abs(values - whole) > ROUNDING])
    if broken.size:
        raise VolumeError(
            CODE,
            f"{_some(broken)}: values between the labels; save it as a label map, without interpolation",
        )
    found = np.unique(whole)
    unknown = found[~np.isin(found, LABELS)]
    if unknown.size:
        raise VolumeError(
            CODE,
            f"label {_some(unknown)}: known are 0, 1 necrotic or non-enhancing, 2 oedema, 3 or 4 enhancing; "
            "renumber them",
        )
    if not found.any():
        raise _nothing_outlined()
    if {ENHANCING, OLD_ENHANCING} <= set(found.tolist()):
        # BraTS 2024 calls a resection cavity 4 and enhancing tumour 3.
        raise VolumeError(
            CODE,
            "labels 3 and 4 both stand in it, and either may mean enhancing; give a resection cavity label 0 "
            "and enhancing tumour label 3",
        )
    return np.where(whole == OLD_ENHANCING, np.float32(ENHANCING), whole)


def _some(values: FloatArray) -> str:
    more = f" and {values.size - _SHOWN} more" if values.size > _SHOWN else ""
    return ", ".join(f"{value:g}" for value in values[:_SHOWN].tolist()) + more


def _affine_over_reference(volume: Volume, record: Record) -> Affine:
    """Return the affine that lays a mask over the reference; raises ``VolumeError``.

    Of images that share the mask's grid, one that was not moved decides, then the order of the channels:
    tumours are mostly outlined on FLAIR.
    """
    mask = Placed.of(volume)
    drawn_on = [m for m in CHANNELS if m in record.grids and _same_place(mask, record.grids[m])]
    if not drawn_on:
        known = ", ".join(f"{m} {_times(placed)}" for m, placed in record.grids.items())
        raise VolumeError(
            CODE,
            f"its grid of {_times(mask)} voxels is that of none of the patient's images ({known}), or lies "
            "elsewhere; save it on the grid of the image that it was drawn on",
        )
    modality = min(drawn_on, key=lambda m: m in record.movements)
    affine: Affine = np.array(record.grids[modality].affine)
    if modality in record.movements:
        affine = np.linalg.inv(np.array(record.movements[modality].matrix)) @ affine
    return affine


def _same_place(one: Placed, other: Placed) -> bool:
    if one.shape != other.shape:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in one.shape], [1.0], indexing="ij")).reshape(4, -1)
    apart = ((np.array(one.affine) - np.array(other.affine)) @ corners)[:3]
    return bool(np.linalg.norm(apart, axis=0).max() <= SAME_MM)


def _times(placed: Placed) -> str:
    return "x".join(map(str, placed.shape))


def _share_inside(drawing: Volume, target: Affine, brain: Mask) -> float:
    """Return the share of a drawing's tumour voxels whose middle lies in the brain.

    Counted on the expert's own voxels, so that coarse voxels here do not decide.
    """
    voxels = np.argwhere(drawing.array)  # (N, 3)
    there = np.linalg.inv(target) @ drawing.affine
    places = np.rint(voxels @ there[:3, :3].T + there[:3, 3]).astype(np.int64)
    within = ((places >= 0) & (places < brain.shape)).all(axis=1)
    i, j, k = places[within].T
    return float(np.count_nonzero(brain[i, j, k])) / len(voxels)


def _sampled(drawing: Volume, target: Affine, shape: Sequence[int]) -> LabelArray:
    """Return the nearest label at every voxel of an upright grid, 0 outside the drawing's own."""
    image = to_sitk(drawing)
    mover = sitk.ResampleImageFilter()
    # Cases run in parallel, so a filter that takes every core would only take them from a neighbour.
    mover.SetNumberOfThreads(1)
    mover.SetInterpolator(sitk.sitkNearestNeighbor)
    mover.SetDefaultPixelValue(0)
    mover.SetSize([int(n) for n in shape])
    mover.SetOutputSpacing(np.diag(target)[:3].tolist())
    mover.SetOutputOrigin((RAS_TO_LPS @ target[:3, 3]).tolist())
    mover.SetOutputDirection(RAS_TO_LPS.ravel().tolist())
    moved = mover.Execute(image)  # named, because a view does not keep its image alive
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(moved).T, dtype=np.uint8)
