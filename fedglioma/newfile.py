"""Files and folders that appear whole, with their mode from the first byte.

A kill at any instant leaves the old state or the new one, and at most a ``.*.part`` beside it. Keys and
certificates never take the place of another; ``replacing`` is for what is written anew.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedglioma.errors import ConfigError, IdentityError

PUBLIC = 0o644
PRIVATE = 0o600
PART = ".*.part"
"""Names of what is being written."""


def write_new(path: Path, content: bytes, *, mode: int = PUBLIC) -> None:
    """Write a file whole and flushed, under a name that was free.

    Raises
    ------
    ConfigError
        Something of that name is there.
    IdentityError
        The file should be for its owner alone, and the file system gives it to others.
    """

    def name(part: Path) -> None:
        try:
            os.link(part, path)  # a rename would replace what has the name
        except FileExistsError:
            raise ConfigError(f"{path}: is there already and is never overwritten") from None

    with _written(path, mode, name) as file:
        # A memory stick or a share of another system may not know modes: look before a secret is in.
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~mode:
            raise IdentityError(f"{path}: this file system cannot keep a file private; choose another disk")
        file.write(content)


@contextmanager
def replacing(path: Path, *, mode: int = PUBLIC) -> Iterator[IO[bytes]]:
    """Give a file to fill; flushed to disk, it takes the name when the block ends without an error.

    What has the name until then stays whole.
    """
    with _written(path, mode, lambda part: part.replace(path)) as file:
        yield file


@contextmanager
def _written(path: Path, mode: int, name: Callable[[Path], object]) -> Iterator[IO[bytes]]:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        name(part)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, for its owner alone; it gets its name when the block ends without an error.

    Raises
    ------
    ConfigError
        Something of that name is there.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    part.mkdir(mode=0o700)
    try:
        yield part
        sync(part)
        if path.exists():
            raise ConfigError(f"{path}: is there already and is never overwritten")
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a writer that was killed left in a folder; only for whoever holds the folder's lock."""
    for part in folder.glob(PART):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Bring a folder's list of names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
