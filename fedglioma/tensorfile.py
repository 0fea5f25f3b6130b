"""Tensors on disk as safetensors: written whole or not at all, read or refused.

Files are written straight from the tensors' own memory; the format's library would first make one copy of
everything.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedglioma.errors import ProtocolError
from fedglioma.newfile import replacing

TYPES = {"float32": "F32", "int64": "I64", "uint16": "BF16", "uint8": "U8"}
"""Our numbers under the names of safetensors; 16 bits of ours are always a bfloat16."""

_NO_DIGEST = 64 * "0"
"""As long as a sha256."""

_ZIP = b"PK\x03\x04"
"""What PyTorch's own files begin with: a zip archive that holds a pickle."""
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_POINTER = b"version https://git-lfs"


def put_safetensors(
    file: IO[bytes],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    digest: Future[str] | None = None,
) -> None:
    """Write tensors and metadata into an open file, the largest types first, as the format wants it.

    ``digest`` is a sha256 that is still being computed while the tensors are written; it then enters the
    metadata under that name.
    """
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    late = {} if digest is None else {"digest": _NO_DIGEST}
    file.write(_header(names, arrays, {**metadata, **late}))
    for name in names:
        file.write(arrays[name].data)
    if digest is not None:
        file.seek(0)
        file.write(_header(names, arrays, {**metadata, "digest": digest.result()}))


def _header(names: Sequence[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        array = arrays[name]
        table[name] = {
            "dtype": TYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    digest: Future[str] | None = None,
) -> None:
    """Write tensors and metadata, whole or not at all.

    Parameters
    ----------
    digest : future of str, optional
        As in ``put_safetensors``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        put_safetensors(file, tensors, metadata, digest)


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return tensors and metadata of a file.

    Raises
    ------
    ProtocolError
        The file is absent, truncated or not safetensors.
    """
    with _told_in_words(path), safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def safetensors_shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type, as safetensors names it, and the shape of each tensor; none of them is read.

    Raises
    ------
    ProtocolError
        As ``read_safetensors``.
    """
    with _told_in_words(path), safe_open(path, framework="numpy") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}


@contextmanager
def _told_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = _what_it_is(path) or type(error).__name__
        raise ProtocolError(f"{path}: not a readable safetensors file ({reason})") from None


def _what_it_is(path: Path) -> str | None:
    """Return what to do about a file that is often taken for safetensors; None where it is not known."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if not start:
        return "it is empty; copy it again"
    if start.startswith(_POINTER):
        return "a Git LFS pointer, not the file itself; fetch it with git lfs pull"
    if start.startswith((_ZIP, *_PICKLES)):
        return "a pickle by its content, which is never opened; ask for the weights as safetensors"
    return "it is damaged or cut off; copy it again"
