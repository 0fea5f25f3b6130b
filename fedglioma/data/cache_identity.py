"""Whether anything in a cache may say who the patients are, looked for before anybody trains on it.

A cache holds arrays of numbers and vouchers of known keys, named by checksums: whatever else lies there was
put there by hand or by another program. Vouchers are read as plain JSON, since a checked model never sees a
key that stands twice, nor says which strings there are. Of arrays only the header is read.
"""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from fedglioma.data.cache import Voucher
from fedglioma.data.manifest import patient_key
from fedglioma.data.prepare import PrepareSettings
from fedglioma.errors import IdentityError
from fedglioma.pseudonym import identifying_fields

SHORTEST_ID: Final = 4
"""Shorter ids are numbers and words that stand in any text."""
_SHOWN: Final = 3
_MOST_VOUCHER_BYTES: Final = 1 << 22
_HEADER_BYTES: Final = 1024

_ENTRY = re.compile(r"[0-9a-f]{64}\.(npy|json)")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.(npy|json)\.[0-9a-f]{8}\.part")
_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00(?P<short>..)|[\x02\x03]\x00(?P<long>....))"
    rb"\{'descr': '[<>|][biuf](?P<size>\d{1,2})', 'fortran_order': (?:False|True), "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_KINDS: Final = ".nii.gz .nii .dcm .ima .png .jpg .csv .tsv .json .npy .txt .html .pdf .xlsx .zip".split()  # noqa: SIM905 - quotes say no more
# A figure with its unit, or with a decimal point, is none of a hospital's ids.
_FIGURE = re.compile(r"(?<![^\W_])(?:\d+\.\d+|\d+(?=\s?(?:ml|mm|%)))(?![^\W\d_]*\d)")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Trace:
    """One thing in a cache that may say who it is: a short name, whose file, and what may be told of it."""

    code: str
    file: str
    detail: str = ""


class Twice(ValueError):
    """A key stands twice in one JSON object."""


def check_cache(folder: Path, patients: Iterable[str]) -> int:
    """Return how many files a cache has, once nothing in them was found to say who the patients are.

    Sub-folders hold the sites' own reports and are not looked into. Nothing is read but JSON and the first
    bytes of arrays.

    Parameters
    ----------
    patients : iterable of str
        Ids of the cohort; those of fewer than ``SHORTEST_ID`` characters are not looked for.

    Raises
    ------
    IdentityError
        Something was found; the message names files by their checksums, other files by their kind alone.
    OSError
        The folder cannot be read.
    """
    files, found = look_through(folder, patients)
    if not found:
        return files
    parts = []
    for code, count in Counter(trace.code for trace in found).items():
        named = [
            f"{trace.file}{trace.detail and f': {trace.detail}'}" for trace in found if trace.code == code
        ]
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        parts.append(f"{count} {code} ({', '.join(named[:_SHOWN])}{more})")
    raise IdentityError(
        f"cache: {'; '.join(parts)}: this may say who the patients are, so nothing is trained on it; "
        "remove these files from the cache folder and run prepare again"
    )


def look_through(folder: Path, patients: Iterable[str]) -> tuple[int, tuple[Trace, ...]]:
    """Return how many files lie in a cache, and what was found in them; raises ``OSError``."""
    ids = _Ids(patients)
    files, found = 0, []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return 0, ()
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) or _UNFINISHED.fullmatch(entry.name):
            continue
        files += 1
        try:
            found += _traces(Path(entry.path), ids)
        except FileNotFoundError:  # another process keeps a new entry, or sweeps
            files -= 1
    return files, tuple(found)


def _traces(path: Path, ids: "_Ids") -> list[Trace]:
    name = path.name
    if not _ENTRY.fullmatch(name):
        # The name may be a patient's.
        kind = next((kind for kind in _KINDS if name.casefold().endswith(kind)), None)
        return [Trace(code="not_an_entry", file=f"a {kind} file" if kind else "a file of another kind")]
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return [Trace(code="not_a_plain_file", file=name)]
    if name.endswith(".npy"):
        return [] if _is_bare_array(path, status.st_size) else [Trace(code="array_header", file=name)]
    return list(_of_voucher(path, status.st_size, ids))


def _is_bare_array(path: Path, size: int) -> bool:
    """Return whether a file is one header as numpy writes it, and as many bytes as that says."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    match = _HEADER.match(start)
    if match is None:
        return False
    told = match["short"] or match["long"]
    begin = match.start("short" if match["short"] else "long") + len(told)
    shape = [int(n) for n in match["shape"].replace(b" ", b"").split(b",") if n]
    return match.end() == begin + int.from_bytes(told, "little") and size == match.end() + math.prod(
        shape
    ) * int(match["size"])


def _of_voucher(path: Path, size: int, ids: "_Ids") -> Iterator[Trace]:
    name = path.name
    try:
        if size > _MOST_VOUCHER_BYTES:
            raise ValueError
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
        if not isinstance(content, dict):
            raise ValueError
        keys, unknown = identifying_fields(content), _has_unknown_key(content)
        named = any(ids.named_in(text) for text in _texts(content))
    except Twice:
        yield Trace(code="unknown_key", file=name)
        return
    except (ValueError, RecursionError):  # what cannot be read cannot be vouched for
        yield Trace(code="not_a_voucher", file=name)
        return
    if keys:
        bare = {"".join(filter(str.isalnum, key.casefold())) for key in keys}
        yield Trace(code="identifying_key", file=name, detail=" ".join(sorted(bare)))
    elif unknown:
        yield Trace(code="unknown_key", file=name)
    if named:
        yield Trace(code="patient_named", file=name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise Twice
    return table


def _has_unknown_key(content: Mapping[str, Any]) -> bool:
    """Return whether a key, at any depth, is none of a voucher's or of the settings that it leaves open."""
    try:
        Voucher.model_validate(content)
    except ValidationError as error:
        # Another version may lack a key or hold another number: that says nothing about anybody.
        if any(fault["type"] == "extra_forbidden" or "[key]" in fault["loc"] for fault in error.errors()):
            return True
    record = content.get("record")
    settings = record.get("settings") if isinstance(record, Mapping) else None
    if not isinstance(settings, Mapping):
        return settings is not None
    plain = all(isinstance(value, str | int | float | None) for value in settings.values())
    return not plain or not settings.keys() <= PrepareSettings.model_fields.keys()


def _texts(value: object) -> Iterator[str]:
    """Yield every string of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


class _Ids:
    """The cohort's ids, each as its words: found whatever stands between the words."""

    def __init__(self, patients: Iterable[str]) -> None:
        self._by_first: dict[str, set[tuple[str, ...]]] = {}
        for patient in patients:
            bare = patient_key(patient)
            words = tuple(_WORD.findall(bare))
            if len(bare) >= SHORTEST_ID and words:
                self._by_first.setdefault(words[0], set()).add(words)

    def named_in(self, text: str) -> bool:
        """Return whether an id stands in a text as whole words."""
        if not self._by_first:
            return False
        words = _WORD.findall(_FIGURE.sub(" ", text.casefold()))
        return any(
            tuple(words[place : place + len(wanted)]) == wanted
            for place, word in enumerate(words)
            for wanted in self._by_first.get(word, ())
        )
