"""The files of a patient's folder that may be images, found without leaving it; findings about them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fedglioma.data.cache import Remark
from fedglioma.data.volume import VolumeError
from fedglioma.words import quoted

MAX_FILES: Final = 100_000
MAX_DEPTH: Final = 16
_IMAGE_ENDINGS: Final = frozenset({"", ".dcm", ".dicom", ".dic", ".ima", ".img"})
_BESIDE: Final = frozenset({"dicomdir", "lockfile", "version", "readme", "license", "changes"})


class Findings:
    """Reasons, each once with how many files it is about, so that a thousand bad files are one line."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()
        self._about: dict[tuple[str, str, Path | None], list[Path]] = {}

    def add(self, error: VolumeError, *paths: Path) -> None:
        """Note a reason: single files that share one are put together, stacks of files stay apart."""
        stack = paths[0] if len(paths) > 1 else None
        self._about.setdefault((error.code, error.reason, stack), []).extend(paths)

    def told(self) -> tuple[Remark, ...]:
        """Return the findings, by name of their first file."""
        rows = sorted(
            (place_of(paths, self._root), code, why) for (code, why, _), paths in self._about.items()
        )
        return tuple(Remark(code=code, message=f"{place}: {why}") for place, code, why in rows)


def place_of(paths: Sequence[Path], root: Path) -> str:
    """Return where files are, inside the patient's folder, as findings quote it."""
    first = min(paths)
    inner = first.relative_to(root) if first.is_relative_to(root) else Path(first.name)
    shown = quoted(os.fsencode(inner).decode("utf-8", "replace"))
    return shown if len(paths) == 1 else f"{shown} and {len(paths) - 1} more"


def image_files(folder: Path, findings: Findings) -> Iterator[Path]:
    """Yield the files that may be images, in order of name; hidden ones and links are not followed.

    A link to a file inside the folder is left out in silence, for that file is found by itself.

    Raises
    ------
    VolumeError
        ``unreadable``: the folder itself cannot be listed.
    """
    root = folder.resolve()
    waiting = [(root, 0)]
    count = 0
    while waiting:
        place, depth = waiting.pop()
        for entry in _listed(place, root, findings):
            path = Path(entry.path)
            if entry.is_symlink():
                if not _stays(path, root):
                    reason = "a link out of the patient's folder, or to nothing; not followed"
                    findings.add(VolumeError("link_outside", reason), path)
            elif entry.is_dir(follow_symlinks=False):
                waiting += _deeper(path, depth, findings)
            elif _may_be_image(path):
                count += 1
                if count > MAX_FILES:
                    findings.add(VolumeError("too_many_files", f"only the first {MAX_FILES} are read"), path)
                    return
                yield path


def _listed(place: Path, root: Path, findings: Findings) -> list[os.DirEntry[str]]:
    """Return what is in a folder, hidden names left out; raises ``VolumeError`` for the root."""
    try:
        with os.scandir(place) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        reason = f"the folder cannot be listed ({error.strerror}); check its permissions"
        unreadable = VolumeError("unreadable", reason)
        if place == root:
            raise unreadable from None
        findings.add(unreadable, place)
        return []


def _deeper(path: Path, depth: int, findings: Findings) -> list[tuple[Path, int]]:
    if depth < MAX_DEPTH:
        return [(path, depth + 1)]
    findings.add(VolumeError("too_deep", f"more than {MAX_DEPTH} folders deep; not read"), path)
    return []


def _stays(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def _may_be_image(path: Path) -> bool:
    """Return whether a file's name could be an image's; what follows a dot may be a running number."""
    ending = path.suffix.lower()
    return path.stem.lower() not in _BESIDE and (ending in _IMAGE_ENDINGS or ending[1:].isdigit())
