"""One NIfTI file: its header judged without its voxels, and its voxels without doubt.

The stream is unpacked here and not by nibabel, which parses the header only: a gzip stream is read to
its checksum, so that damage anywhere in it is seen, and every way in which a file can be unusable has a
short name that a report can count.
"""

import errno
import hashlib
import math
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from fedglioma.errors import DataError

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SPACING_MM: Final = (0.2, 12.0)
MAX_EXTENT_MM: Final = 600.0
MIN_AXIS: Final = 4
MAX_VOXELS: Final = 1 << 28
"""The finest whole head, at 0.4 mm, has half as many."""
MAX_FILE_BYTES: Final = 3 << 30
"""More than ``MAX_VOXELS`` need in any type of number."""
_START_BYTES: Final = 1 << 16
_BEYOND_BYTES: Final = 1 << 20
_FIRST_VOXEL_BYTES: Final = 64 << 20
_MAX_SHEAR: Final = 1e-3
_MAX_CONFLICT_MM: Final = 1.0
_GZIP = b"\x1f\x8b"
_NIFTI_1 = (348, b"n+1\0", slice(344, 348))
_NIFTI_2 = (540, b"n+2\0", slice(4, 8))


class VolumeError(DataError):
    """A file cannot be used as a modality; ``code`` is the reason's short name."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Volume:
    """Voxels of shape (X, Y, Z) and the affine from voxel index to RAS millimetres."""

    array: FloatArray
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        x, y, z = voxel_sizes(self.affine).tolist()
        return (x, y, z)


def voxel_sizes(affine: Affine) -> Affine:
    """Return the voxel size in mm along each axis, shape (3,)."""
    sizes: Affine = np.linalg.norm(affine[:3, :3], axis=0)
    return sizes


def is_compressed(path: Path) -> bool:
    """Return whether a file's name promises a gzip stream."""
    return path.name.endswith(".gz")


def check_volume(path: Path) -> None:
    """Judge a file by its first bytes; voxels are not read.

    Raises
    ------
    VolumeError
        The file cannot be read, is not what its name says, or its geometry cannot be used.
    """
    with _told_in_words():
        size = _regular_size(path)
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    header = _Header.parse(_inflate_start(start) if is_compressed(path) else start)
    if not is_compressed(path):
        header.demand(size)


def read_bytes(path: Path) -> bytes:
    """Return a file's content; raises ``VolumeError`` when it cannot be read or is empty."""
    with _told_in_words():
        _regular_size(path)
        return path.read_bytes()


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex; raises ``VolumeError`` when it cannot be read."""
    with _told_in_words():
        _regular_size(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_volume(path: Path) -> Volume:
    """Return a file's voxels in stored order, scaled to their values, with the affine.

    Raises
    ------
    VolumeError
        As ``check_volume``; also for a damaged stream and for voxels not finite or all equal.
    """
    return decode_volume(read_bytes(path), compressed=is_compressed(path))


def decode_volume(content: bytes, *, compressed: bool) -> Volume:
    """Return the volume that a NIfTI file's bytes stand for; raises as ``read_volume``."""
    header = _Header.parse(_inflate_start(content[:_START_BYTES]) if compressed else content)
    data = _inflate(content, header.needed + _BEYOND_BYTES) if compressed else content
    header.demand(len(data))
    stored = np.frombuffer(data, header.dtype, count=header.voxels, offset=header.offset)
    array = header.scale(stored).reshape(header.shape, order="F")  # (X, Y, Z)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise VolumeError(
            "non_finite", f"{bad} of {array.size} voxels are not finite; export the series again"
        )
    if low == high:
        raise VolumeError("constant", f"every voxel is {low:g}; export the series again")
    return Volume(array, header.affine)


@dataclass(frozen=True)
class _Header:
    """What a NIfTI header says, once it was found usable."""

    shape: tuple[int, int, int]
    affine: Affine
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    intercept: float | None

    @classmethod
    def parse(cls, start: bytes) -> "_Header":
        """Return the header in a file's first bytes; raises ``VolumeError``."""
        raw = _raw_header(start)
        try:
            dtype = np.dtype(raw.get_data_dtype())
            slope, intercept = raw.get_slope_inter()
            offset = int(raw["vox_offset"])
        except (HeaderDataError, KeyError, ValueError, OverflowError) as error:
            reason = f"the NIfTI header is damaged ({error!s}); convert the series again"
            raise VolumeError("header", reason) from None
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            kind = "colours" if dtype.names else f"of type {dtype}"
            raise VolumeError(
                "dtype", f"voxels are {kind} and not one grey value each; export the series as MR"
            )
        shape = _shape(raw)
        affine = _affine(raw, shape)
        if offset > _FIRST_VOXEL_BYTES:
            raise VolumeError("header", f"the voxels start at byte {offset:.3g}; convert the series again")
        # Some writers leave the offset at 0; a single file's voxels never start before this.
        first = 4 + raw.sizeof_hdr
        return cls(shape, affine, dtype, max(offset, first), slope, intercept)

    @property
    def voxels(self) -> int:
        x, y, z = self.shape
        return x * y * z

    @property
    def needed(self) -> int:
        """Bytes from the file's start to the last voxel's end."""
        return self.offset + self.voxels * self.dtype.itemsize

    def demand(self, size: int) -> None:
        """Raise ``VolumeError`` when fewer bytes are there than the voxels need."""
        if size < self.needed:
            raise VolumeError(
                "truncated", f"{size} bytes where the header asks for {self.needed}; copy the file again"
            )

    def scale(self, stored: npt.NDArray[Any]) -> FloatArray:
        """Return the stored numbers as values; what float32 cannot hold becomes infinite."""
        with np.errstate(over="ignore"):
            if self.slope is None or (self.slope == 1.0 and not self.intercept):
                return stored.astype(np.float32)
            return (stored * np.float64(self.slope) + np.float64(self.intercept or 0.0)).astype(np.float32)


def _raw_header(start: bytes) -> Any:
    """Return nibabel's view of the header of a single-file NIfTI, of version 1 or 2."""
    if _announces(start, *_NIFTI_1):
        return Nifti1Header(start[: _NIFTI_1[0]], check=False)
    if _announces(start, *_NIFTI_2):
        return Nifti2Header(start[: _NIFTI_2[0]], check=False)
    raise VolumeError("not_nifti", "not a single-file NIfTI; convert the series again")


def _announces(start: bytes, size: int, magic: bytes, place: slice) -> bool:
    stated = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    return len(start) >= size and size in stated and start[place] == magic


def _shape(raw: Any) -> tuple[int, int, int]:
    dim = [int(n) for n in raw["dim"]]
    axes = dim[1 : 1 + dim[0]] if 1 <= dim[0] <= 7 else []
    if len(axes) < 3 or any(n != 1 for n in axes[3:]):
        raise VolumeError("dimensions", f"{len(axes)}-D of {_times(axes)}; give one 3-D volume per modality")
    if min(axes[:3]) < MIN_AXIS:
        raise VolumeError("dimensions", f"{_times(axes)} voxels; every axis needs at least {MIN_AXIS}")
    if math.prod(axes) > MAX_VOXELS:
        raise VolumeError(
            "dimensions", f"{_times(axes)} voxels; no head has so many, convert the series again"
        )
    return (axes[0], axes[1], axes[2])


def _times(axes: list[int]) -> str:
    return "x".join(map(str, axes)) or "no axes"


def _affine(raw: Any, shape: tuple[int, int, int]) -> Affine:
    """Return the affine of a header whose geometry is usable."""
    sform, qform = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    if not sform and not qform:
        reason = "neither sform nor qform is set, so left and right are unknown; convert the series again"
        raise VolumeError("no_orientation", reason)
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            affine = np.asarray(raw.get_sform() if sform else raw.get_qform(), np.float64)
            other = np.asarray(raw.get_qform(), np.float64) if sform and qform else affine
    except (HeaderDataError, ValueError) as error:
        raise VolumeError("affine", f"the orientation cannot be computed ({error}); convert again") from None
    if not np.isfinite(affine).all() or not np.isfinite(other).all():
        raise VolumeError("affine", "the orientation is not finite; convert the series again")
    _demand_sizes(voxel_sizes(affine), shape)
    axes = affine[:3, :3] / voxel_sizes(affine)
    if np.abs(axes.T @ axes - np.eye(3)).max() > _MAX_SHEAR:
        raise VolumeError("sheared", "the axes are not at right angles; resample or convert the series again")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1.0], indexing="ij")).reshape(4, -1)
    apart = float(np.sqrt((((affine - other) @ corners)[:3] ** 2).sum(axis=0)).max())
    if apart > _MAX_CONFLICT_MM:
        reason = f"sform and qform disagree by {apart:.1f} mm; convert the series again"
        raise VolumeError("orientation_conflict", reason)
    return affine


def _demand_sizes(sizes: Affine, shape: tuple[int, int, int]) -> None:
    text = " x ".join(f"{size:.3g}" for size in sizes)
    low, high = SPACING_MM
    # Half a percent is what float32 headers and rounded protocols differ by.
    if sizes.min() < low * 0.995 or sizes.max() > high * 1.005:
        raise VolumeError("spacing", f"voxels of {text} mm; allowed is {low:g} to {high:g} mm")
    extent = float((sizes * shape).max())
    if extent > MAX_EXTENT_MM:
        raise VolumeError(
            "extent", f"{extent:.0f} mm along one axis; no head is longer than {MAX_EXTENT_MM:.0f} mm"
        )


def _regular_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise VolumeError("not_a_file", "a folder or a device where a file is expected; put the file there")
    if status.st_size == 0:
        raise VolumeError("empty", "0 bytes; copy the file again")
    if status.st_size > MAX_FILE_BYTES:
        most = f"{MAX_FILE_BYTES >> 30} GiB"
        raise VolumeError(
            "too_large", f"{status.st_size / 2**30:.1f} GiB; one head's file has at most {most}"
        )
    return status.st_size


def _inflate(content: bytes, most: int) -> bytearray:
    """Return what a gzip stream of one member or several unpacks to; raises before it is over ``most``."""
    data, place = bytearray(), 0
    view = memoryview(content)
    while place < len(content):
        gap = bytes(view[place : place + _START_BYTES])
        zeros = len(gap) - len(gap.lstrip(b"\0"))  # some writers fill up the last block
        place += zeros
        if zeros == len(gap):
            continue
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = view[place : place + _START_BYTES]
            if not piece:
                raise VolumeError("truncated", "the gzip stream ends too early; copy the file again")
            try:
                data += member.decompress(piece, most + 1 - len(data))
            except zlib.error as error:
                raise _damaged(error) from None
            if len(data) > most:
                reason = "it unpacks to far more than its header describes; convert the series again"
                raise VolumeError("too_large", reason)
            place += len(piece) - len(member.unused_data)
    return data


def _inflate_start(start: bytes) -> bytes:
    """Return what the first bytes of a gzip stream unpack to, as far as they reach."""
    if not start.startswith(_GZIP):
        raise _not_gzip(start)
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _START_BYTES)
    except zlib.error as error:
        raise _damaged(error) from None


def _damaged(error: zlib.error) -> VolumeError:
    return VolumeError("damaged", f"the gzip stream is damaged ({error}); copy the file again")


def _not_gzip(start: bytes) -> VolumeError:
    pointer = start.startswith(b"version https://git-lfs")
    what = (
        "a Git LFS pointer, not the file itself" if pointer else "not a gzip stream, whatever the name says"
    )
    return VolumeError("not_gzip", f"{what}; copy the file again")


@contextmanager
def _told_in_words() -> Iterator[None]:
    """Turn what the operating system says about a file into a reason."""
    try:
        yield
    except FileNotFoundError:
        raise VolumeError("unreadable", "a link to a file that is not there; copy the file itself") from None
    except OSError as error:
        loop = error.errno == errno.ELOOP
        what = "a link that leads in a circle" if loop else f"cannot be read ({error.strerror or error})"
        raise VolumeError("unreadable", f"{what}; check the file and its permissions") from None
