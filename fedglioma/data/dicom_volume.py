"""Validated DICOM files to voxels: exactly these files, and the result held against their headers.

``dcm2niix`` converts, in a process of its own with bounds on time and memory; it ends with success also
where it wrote something else than was asked for, so every output is checked. Where its program is missing,
SimpleITK reads the sorted list. No word of either is passed on: they quote names and times.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import dcm2niix
import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses

from fedglioma.data.dicom import Geometry, Limits, stack
from fedglioma.data.dicom_header import read_header
from fedglioma.data.harmonize import RAS_TO_LPS
from fedglioma.data.volume import FloatArray, Volume, VolumeError, content_digest, decode_volume, read_bytes

PROGRAM: Final = Path(dcm2niix.bin)
_TIME_S: Final = 300.0
_MEMORY_KIB: Final = 8 << 20
_LEAST_FREE_BYTES: Final = 1 << 20
_OPTIONS: Final = [
    "-g",
    "i",
    "-b",
    "n",
    "-ba",
    "y",
    "-z",
    "n",
    "-i",
    "n",
    "-m",
    "n",
    "-x",
    "i",
    "-w",
    "1",
    "-f",
    "volume",
]
_TOLERANCE_MM: Final = 0.1
_ANY: Final = Limits(min_slices=1, min_extent_mm=0.0, max_step_mm=1e3)
# Only geometry is taken from the headers here, so this key protects nothing.
_NO_SECRET: Final = bytes(32)


def files_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 in hex over the files' sorted digests: neither their names nor their order count.

    Raises
    ------
    VolumeError
        A file cannot be read.
    """
    total = hashlib.sha256(b"dicom series 1\n")
    for digest in sorted(content_digest(path) for path in files):
        total.update(digest.encode("ascii"))
    return total.hexdigest()


def read_files(files: Sequence[Path], digest: str | None = None) -> Volume:
    """Return the volume of one series' files, in the converter's order, with its affine to RAS mm.

    Headers are read and judged again, for the files may have changed since they were chosen.

    Raises
    ------
    VolumeError
        As ``read_header``, ``stack`` and ``decode_volume``; ``changed`` when the files are not those of
        ``digest``; ``conversion`` when no volume, or another than the headers describe, comes out.
    OSError
        The folder for temporary files is full.
    """
    ordered, geometry = stack([read_header(path, _NO_SECRET) for path in files], _ANY)
    paths = [header.path for header in ordered]
    volume = _by_dcm2niix(paths) if PROGRAM.is_file() else _by_simpleitk(paths)
    _demand_geometry(volume, geometry)
    # After the conversion, so that what was converted is what has this digest.
    if digest is not None and files_digest(files) != digest:
        raise VolumeError("changed", "files of the series changed while it was read; run again")
    return volume


def _by_dcm2niix(paths: Sequence[Path]) -> Volume:
    with tempfile.TemporaryDirectory(prefix="fedglioma-") as name:
        given, made = Path(name, "in"), Path(name, "out")
        given.mkdir()
        made.mkdir()
        for number, path in enumerate(paths):
            (given / f"{number:05d}.dcm").symlink_to(path.absolute())
        # A shell sets the bound, for a function run between fork and exec may hang beside threads.
        bounded = ["/bin/sh", "-c", f'ulimit -v {_MEMORY_KIB} 2>/dev/null; exec "$@"', "sh"]
        try:
            ended = subprocess.run(  # noqa: S603 - our own program, and names that are ours
                [*bounded, str(PROGRAM), *_OPTIONS, "-o", str(made), str(given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=name,
                env={"PATH": os.defpath, "HOME": name, "TMPDIR": name, "LC_ALL": "C"},
                timeout=_TIME_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _failed(f"no end after {_TIME_S:.0f} s") from None
        volumes = sorted(made.iterdir())
        if ended.returncode and shutil.disk_usage(made).free < _LEAST_FREE_BYTES:
            # The converter says the same of a full disk and of a bad file; only one is the series' fault.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
        if ended.returncode or len(volumes) != 1 or volumes[0].suffix != ".nii":
            raise _failed(f"{len(volumes)} volumes came out")
        return decode_volume(read_bytes(volumes[0]), compressed=False)


def _by_simpleitk(paths: Sequence[Path]) -> Volume:
    try:
        if len(paths) > 1:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(path) for path in paths])
            reader.SetGlobalWarningDisplay(False)
            reader.SetOutputPixelType(sitk.sitkFloat32)
            image = reader.Execute()
        else:
            image = sitk.ReadImage(str(paths[0]), sitk.sitkFloat32)
    except RuntimeError:
        raise _failed("SimpleITK cannot read it") from None
    if image.GetDimension() != 3:
        raise _failed("it is not three-dimensional")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3], affine[:3, 3] = RAS_TO_LPS @ direction, RAS_TO_LPS @ np.array(image.GetOrigin())
    array: FloatArray = np.ascontiguousarray(sitk.GetArrayFromImage(image).T)
    if array.min() == array.max():
        raise VolumeError("constant", f"every voxel is {array.min():g}; export the series again")
    return Volume(array, affine)


def _demand_geometry(volume: Volume, geometry: Geometry) -> None:
    """Raise ``VolumeError`` unless the voxels are those of the headers, in whatever order of axes."""
    moved = np.linalg.solve(geometry.affine, volume.affine)  # from the volume's index to the headers'
    axes = np.rint(moved[:3, :3])
    is_permutation = (np.abs(axes).sum(axis=0) == 1).all() and (np.abs(axes).sum(axis=1) == 1).all()
    last = np.array(volume.array.shape) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in last], [1.0], indexing="ij")).reshape(4, -1)
    reached = (moved @ corners)[:3]  # (3, 8) in the headers' index
    sizes = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    wanted = np.array(geometry.shape) - 1
    low = np.abs(reached.min(axis=1)) * sizes
    high = np.abs(reached.max(axis=1) - wanted) * sizes
    if not is_permutation or max(low.max(), high.max()) > _TOLERANCE_MM:
        raise _failed("the volume lies elsewhere than the headers say")


def _failed(what: str) -> VolumeError:
    reason = f"the series cannot be converted: {what}; export it again, uncompressed"
    return VolumeError("conversion", reason)
