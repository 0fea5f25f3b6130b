"""Prepared cases on disk: ``<key>.npy`` and, written last, ``<key>.json`` that vouches for it.

The array is float16, shape (4, D, H, W), channels as in ``CHANNELS``, axes right, front, top; plain
``.npy`` because a training sample is then a slice of a memory map. A tumour's mask is an entry of its own:
uint8, shape (D, H, W). The key is made of what went in and how it was treated, so an entry never goes
stale: other input or other settings are another entry.

Both files are written under a temporary name, flushed and renamed. An entry that was damaged later fails
its checksum and counts as absent.
"""

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, ValidationError

from fedglioma.case import CHANNELS, Case, Frozen, Modality
from fedglioma.data.prepared import PreparedCase, Presence
from fedglioma.data.quality import Quality
from fedglioma.data.register import Movement
from fedglioma.data.volume import Affine, Volume
from fedglioma.scale import Landmarks

logger = logging.getLogger(__name__)

HalfArray = npt.NDArray[np.float16]
LabelArray = npt.NDArray[np.uint8]
Rows = tuple[tuple[float, ...], ...]
"""A matrix as JSON holds it."""

_PART: Final = ".part"
_ABANDONED_S: Final = 3600.0


class Remark(Frozen):
    """Something doubtful about a case that is kept: a short name and one line."""

    code: str
    message: str


class Moved(Frozen):
    """How a modality was laid over the reference: ``register.Movement``, its figures rounded.

    ``matrix`` (4, 4) maps RAS mm of the reference to RAS mm of the modality as it was given.
    """

    degrees: float
    millimetres: float
    information: float
    overlap: float
    matrix: Rows

    @classmethod
    def of(cls, movement: Movement) -> Self:
        """Return a movement as a record holds it."""
        figures = {
            name: round(getattr(movement, name), 4)
            for name in ("degrees", "millimetres", "information", "overlap")
        }
        return cls(matrix=_rows(movement.matrix), **figures)


class Placed(Frozen):
    """Where a modality's voxels lay before anything was moved: in RAS order, ``affine`` to RAS mm."""

    shape: tuple[int, int, int]
    affine: Rows

    @classmethod
    def of(cls, volume: Volume) -> Self:
        """Return the grid of a volume in RAS order."""
        x, y, z = volume.array.shape
        return cls(shape=(x, y, z), affine=_rows(volume.affine))


class Record(Frozen):
    """How a prepared array came about, and where its voxels lie.

    ``affine`` maps the array's voxel index to RAS mm; ``box`` is the part of the reference's whole grid
    that was kept; ``inputs`` are the digests of the files, ``voxels`` those of what they show, however it
    is stored. ``percentiles`` are those of ``scale.py``, of each modality's values in the brain.
    ``grids`` is where the images lay as they were given; ``movements`` has the modalities that were
    registered, the others shared the reference's grid. ``scale`` is the id of the consortium's scale where it
    was laid over, ``mask`` the digest of the tumour mask's file where the array is that mask. ``quality`` is
    what the images are like.
    """

    channels: tuple[Modality, ...] = CHANNELS
    present: Presence
    spacing_mm: float
    affine: Rows
    box: tuple[tuple[int, int], ...]
    inputs: dict[Modality, str]
    voxels: dict[Modality, str] = Field(default={})
    settings: dict[str, JsonValue]
    percentiles: dict[Modality, Landmarks]
    reference: Modality
    grids: dict[Modality, Placed] = Field(default={})
    movements: dict[Modality, Moved]
    quality: Quality | None = None
    scale: str | None = None
    mask: str | None = None
    remarks: tuple[Remark, ...] = ()


class Voucher(Frozen):
    """The JSON file: the record, with checksums of the array's file and of the record itself."""

    array_sha256: str
    record_sha256: str
    record: Record


@dataclass(frozen=True)
class Stored:
    """An entry found or made: the array's path, the checksum of its file, its record."""

    array: Path
    digest: str
    record: Record

    def as_case(self, case: Case) -> PreparedCase:
        """Return the case that this entry was made for."""
        record = self.record
        x, y, z = (abs(record.affine[axis][axis]) for axis in range(3))
        return PreparedCase(
            case, self.array, record.present, self.digest, record.percentiles, record.voxels, (x, y, z)
        )

    def open(self) -> HalfArray:
        """Return the array as a read-only memory map, shape (4, D, H, W)."""
        array: HalfArray = np.load(self.array, mmap_mode="r", allow_pickle=False)
        return array


def content_key(inputs: Mapping[Modality, str], settings: Mapping[str, JsonValue]) -> str:
    """Return the key of what file contents become under some settings; no path and no id enters."""
    parts = {
        "inputs": {m.value: inputs[m] for m in CHANNELS if m in inputs},
        "channels": [m.value for m in CHANNELS],
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Cache:
    """A folder of prepared cases; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def get(self, key: str) -> Stored | None:
        """Return the entry of a key once its checksum was found right, or None.

        Raises
        ------
        OSError
            The entry is there and cannot be read.
        """
        try:
            voucher = Voucher.model_validate_json(self._path(key, "json").read_bytes())
            with self._path(key, "npy").open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None
        except ValidationError:
            logger.warning("cache entry %s: its description is damaged; the case is prepared again", key[:12])
            return None
        told = (voucher.array_sha256, voucher.record_sha256, voucher.record.channels)
        if told != (digest, _checksum(voucher.record), CHANNELS):
            logger.warning("cache entry %s: a checksum is wrong; the case is prepared again", key[:12])
            return None
        return Stored(self._path(key, "npy"), digest, voucher.record)

    def put(self, key: str, array: HalfArray | LabelArray, record: Record) -> Stored:
        """Write an entry and return it; nothing is left behind when that fails.

        Raises
        ------
        OSError
            The disk is full or the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key, "npy")
        digest = _write(path, lambda file: np.save(file, np.ascontiguousarray(array), allow_pickle=False))
        voucher = Voucher(array_sha256=digest, record_sha256=_checksum(record), record=record)
        text = voucher.model_dump_json(indent=1) + "\n"
        try:
            _write(self._path(key, "json"), lambda file: file.write(text.encode()))
        except BaseException:
            # Nobody would ever vouch for it, or take it away.
            if not self._path(key, "json").exists():
                path.unlink(missing_ok=True)
            raise
        return Stored(path, digest, record)

    def sweep(self) -> None:
        """Remove what writers that were killed left behind."""
        for path in self.folder.glob(f".*{_PART}"):
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _path(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}.{kind}"


def _rows(matrix: Affine) -> Rows:
    return tuple(tuple(row) for row in matrix.tolist())


def _checksum(record: Record) -> str:
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> str:
    """Write a file so that it is either whole or not there; return the SHA-256 of what lies on disk."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
    try:
        with part.open("xb+") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return digest
