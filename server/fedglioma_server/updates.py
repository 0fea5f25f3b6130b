"""Updates on disk: each reply's payload as it travelled, so that none stays in memory.

During a run they lie in ``work/updates``; with ``keep_updates`` the round's folder moves to
``updates/round-0007`` when it is combined. A file is safetensors: the groups' flat arrays, and in its
metadata site, round, payload, layout and digest.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedglioma.config.site import SITE_NAME
from fedglioma.errors import ProtocolError
from fedglioma.payload import Sliceable
from fedglioma.tensorfile import TYPES, put_safetensors
from fedglioma.weights import GROUPS, Packed

_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One array of a file, read in parts and never whole."""

    descriptor: int
    offset: int
    dtype: str
    size: int

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Return some of the numbers.

        Raises
        ------
        ProtocolError
            The file ends before them.
        """
        start, stop, _ = part.indices(self.size)
        width = np.dtype(self.dtype).itemsize
        wanted = max(stop - start, 0) * width
        content = os.pread(self.descriptor, wanted, self.offset + start * width)
        if len(content) != wanted:
            raise ProtocolError("a stored update ends early; is the disk full or the file damaged?")
        return np.frombuffer(content, self.dtype)


@dataclass(frozen=True)
class StoredUpdate:
    """An update's file, opened."""

    arrays: Mapping[str, Stored]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the update in a file; ``close`` it after use.

        Raises
        ------
        ProtocolError
            The file is absent, damaged, or does not hold an update.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ProtocolError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            return cls(*_read_header(descriptor))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            os.close(descriptor)
            raise ProtocolError(f"{path}: not a stored update ({type(error).__name__})") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self.arrays[GROUPS[0]].descriptor)


def _read_header(descriptor: int) -> tuple[dict[str, Stored], dict[str, str]]:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 0 < length < _LONGEST_HEADER:
        raise ValueError("no header")
    table = json.loads(os.pread(descriptor, length, 8))
    metadata = {str(key): str(value) for key, value in table.pop("__metadata__").items()}
    names = {ours: name for name, ours in TYPES.items()}
    arrays = {}
    for group in GROUPS:
        start, end = table[group]["data_offsets"]
        (size,) = table[group]["shape"]
        dtype = names[table[group]["dtype"]]
        if end - start != size * np.dtype(dtype).itemsize or size < 0:
            raise ValueError("offsets and shape differ")
        arrays[group] = Stored(descriptor, 8 + length + start, dtype, size)
    return arrays, metadata


def write_update(path: Path, packed: Packed, metadata: Mapping[str, str]) -> None:
    """Write an update straight from the arrays' own memory, under its final name, over what is there.

    Over, not anew: fresh pages for hundreds of megabytes cost the kernel more time than writing does.
    """
    with path.open("r+b" if path.exists() else "xb") as file:
        put_safetensors(file, packed, metadata)
        file.truncate()


@dataclass
class Spool:
    """The updates of the round in flight.

    Parameters
    ----------
    work : Path
        Folder that the round's files lie in until it is combined; the next round writes over them.
    kept : Path, optional
        Folder that a round's files move to; without it they are removed when the run ends.
    """

    work: Path
    kept: Path | None = None
    _open: list[StoredUpdate] = field(default_factory=list)
    _begun: bool = False

    def begin(self) -> None:
        """Let go of the round before; the first time, remove what an interrupted run left."""
        self._close()
        if self.kept is not None or not self._begun:
            shutil.rmtree(self.work, ignore_errors=True)
        self._begun = True
        self.work.mkdir(parents=True, mode=0o700, exist_ok=True)

    def put(self, site: str, packed: Packed, metadata: Mapping[str, str]) -> Mapping[str, Sliceable]:
        """Write a site's update and return it as arrays that are read in parts.

        Raises
        ------
        ProtocolError
            The site's name is none, and could lead out of the folder.
        """
        if not SITE_NAME.fullmatch(site):
            raise ProtocolError(f"site {site!r}: not a site's name, no file is written under it")
        path = self.work / f"{site}.safetensors"
        write_update(path, packed, metadata)
        stored = StoredUpdate.open(path)
        self._open.append(stored)
        return stored.arrays

    def end(self, number: int) -> None:
        """Let go of the round's updates, or move them to where they are kept."""
        self._close()
        if self.kept is None:
            return
        for path in self.work.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        goal = round_folder(self.kept, number)
        shutil.rmtree(goal, ignore_errors=True)
        goal.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.work.replace(goal)

    def remove(self) -> None:
        """Remove what lies in the folder, at the end of a run."""
        self._close()
        shutil.rmtree(self.work, ignore_errors=True)

    def _close(self) -> None:
        while self._open:
            self._open.pop().close()


def round_folder(kept: Path, number: int) -> Path:
    """Return where the updates of a round are kept."""
    return kept / f"round-{number:04d}"
