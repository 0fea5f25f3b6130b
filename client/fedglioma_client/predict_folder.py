"""Where a patient's result lies: a folder that appears whole, for its owner alone."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedglioma.errors import ConfigError
from fedglioma.newfile import PRIVATE, replacing, sync
from fedglioma_client.machine import writable
from fedglioma_client.predict_result import Prediction, Question

DATA_NAME: Final = "prediction.json"
MASK_NAME: Final = "segmentation.nii.gz"
OVERVIEW_NAME: Final = "overview.png"
PAGE_NAME: Final = "report.html"


def check_out(folder: Path) -> None:
    """Raise ``ConfigError`` unless results can be written into a folder; it is not made yet."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; name a folder")
    try:
        writable(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--out {folder}: cannot be written ({reason}); name another folder") from None


def earlier_result(folder: Path, question: Question, *, overwrite: bool) -> Prediction | None:
    """Return the result that a patient's folder holds already, if it answers the same question.

    Raises
    ------
    ConfigError
        The folder holds something else, and it is not to be overwritten.
    """
    if overwrite or not os.path.lexists(folder):
        return None
    try:
        found = Prediction.model_validate_json((folder / DATA_NAME).read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is not None and found.question == question:
        return found
    what = "something else" if found is None else "the result of another model, other options or other images"
    raise ConfigError(f"{folder}: holds {what}; give --overwrite to replace it, or another --out")


@contextmanager
def result_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it takes the place of what has the name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    part, old = (path.with_name(f".{path.name}.{mark}.{kind}") for kind in ("part", "old"))
    part.mkdir(mode=0o700)
    try:
        yield part
        sync(part)
        if os.path.lexists(path):
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if os.path.lexists(old):
                old.rename(path)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _remove(old)
    sync(path.parent)


def write_private(path: Path, content: bytes) -> None:
    """Write a file whole, for its owner alone; raises ``OSError``."""
    with replacing(path, mode=PRIVATE) as file:
        file.write(content)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
