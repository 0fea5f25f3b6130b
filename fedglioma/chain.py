"""The hash chain on disk: what a line of a log is, where the log ends, and the head beside it.

A line is one JSON object; its ``digest`` is the sha256 over the canonical JSON (sorted keys, no spaces,
ASCII) of everything else in it, and ``previous`` is the digest of the line before. ``audit.head`` beside
``audit.jsonl`` holds the number and digest of the last line, so that a log cut off at its end is noticed.
``audit.py`` and ``privacy/ledger.py`` decide what is recorded; nothing here knows.
"""

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedglioma.errors import ConfigError, FedGliomaError, ProtocolError
from fedglioma.newfile import sync

AUDIT_FILE = "audit.jsonl"
DIGEST = re.compile(r"[0-9a-f]{64}")
NOTHING = "0" * 64
"""What the first line has as ``previous``."""
LONGEST = 65536
"""Bytes of a line, its end included: a reader never holds more than two of them."""
PATIENCE_S = 30.0
"""A writer holds the lock for milliseconds; one that was stopped in there must not hang the others."""
KEYS = ("seq", "time", "event", "data", "previous", "digest")


@dataclass(frozen=True)
class Line:
    """One line of a log."""

    seq: int
    time: str
    event: str
    data: dict[str, Any]
    previous: str
    digest: str


@dataclass(frozen=True)
class Head:
    """Number and digest of a log's last line."""

    seq: int
    digest: str


START = Head(0, NOTHING)
"""The head of an empty log."""


@dataclass(frozen=True)
class Broken:
    """The first line that is not as it was written, and what is wrong, in words that follow its number."""

    line: int
    what: str


def seal(seq: int, when: str, event: str, data: dict[str, Any], previous: str) -> Line:
    """Return the line with its digest."""
    open_line = {"seq": seq, "time": when, "event": event, "data": data, "previous": previous}
    return Line(seq, when, event, data, previous, hashlib.sha256(_canonical(open_line)).hexdigest())


def encode(line: Line) -> bytes:
    """Return a line as it stands in the file, its end included; keys stand in the order of reading."""
    # By way of the canonical form, so that there is one order of keys only, at every depth.
    table = {key: getattr(line, key) for key in KEYS} | {"data": json.loads(_canonical(line.data))}
    return json.dumps(table, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def decode(raw: bytes) -> Line:
    """Return the line that these bytes, its end included, are.

    Raises
    ------
    ProtocolError
        In words that follow "line 7: ": not a line, or one that was changed after it was sealed.
    """
    if len(raw) > LONGEST or not raw.endswith(b"\n"):
        raise ProtocolError("is longer than a line of an audit log can be")
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        raise ProtocolError("is not JSON") from None
    if not isinstance(table, dict) or set(table) != set(KEYS) or not _typed(table):
        raise ProtocolError("is not a line of an audit log")
    line = Line(**table)
    try:
        sealed = seal(line.seq, line.time, line.event, line.data, line.previous)
        same = encode(sealed)
    except (ValueError, RecursionError):
        raise ProtocolError("holds what no line can hold") from None
    if sealed.digest != line.digest:
        raise ProtocolError("was changed: its digest is not that of its content")
    # The digest is over values: spaces, the order of keys and a key given twice are edits all the same.
    if same != raw:
        raise ProtocolError("was changed: it says the same, but not in the bytes that were written")
    return line


def _typed(table: dict[str, Any]) -> bool:
    words = all(isinstance(table[key], str) for key in ("time", "event", "previous", "digest"))
    return words and type(table["seq"]) is int and isinstance(table["data"], dict)


def _canonical(table: dict[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def head_file(log: Path) -> Path:
    """Return where a log's head lies: ``audit.head`` beside ``audit.jsonl``."""
    return log.with_suffix(".head")


def read_head(log: Path) -> Head | None:
    """Return a log's head, or None where there is none.

    Raises
    ------
    ProtocolError
        The file holds something else.
    """
    return head_at(head_file(log))


def head_at(path: Path) -> Head | None:
    """Return the head that a file holds, or None where there is none.

    Raises
    ------
    ProtocolError
        The file holds something else.
    """
    try:
        with path.open("rb") as file:
            table = json.loads(file.read(LONGEST))
        seq, digest = table["seq"], table["digest"]
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ProtocolError(f"{path.name} beside it does not hold a head") from None
    if type(seq) is not int or seq < 1 or not isinstance(digest, str):
        raise ProtocolError(f"{path.name} beside it does not hold a head")
    return Head(seq, digest)


def write_head(log: Path, line: Line, mode: int = 0o666) -> None:
    """Make a line the head of its log, whole or not at all; the log's lock must be held."""
    write_head_at(head_file(log), line, mode)


def write_head_at(path: Path, line: Line, mode: int = 0o666) -> None:
    """Write a head into a file of any name; as ``write_head``."""
    # One name under the log's lock: what a kill leaves is written over, where nobody sweeps.
    temporary = path.with_name(f".{path.name}.part")
    with open(
        temporary, "w", encoding="ascii", opener=lambda name, flags: os.open(name, flags, mode)
    ) as file:
        json.dump({"seq": line.seq, "digest": line.digest}, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    # Without this a power cut could bring back an older head, and the log would seem to be ahead of it.
    sync(path.parent)


def out_of_step(last: Head, previous: str, head: Head | None) -> Broken | None:
    """Return what is wrong between a log's end and its head; None where nothing is.

    A log may be one line ahead of its head: a crash came between the two.

    Parameters
    ----------
    last : Head
        The last line; ``START`` for an empty log.
    previous : str
        The digest of the line before it.
    head : Head or None
        What the head file says.
    """
    head = head or START
    if head in (last, Head(last.seq - 1, previous)):
        return None
    if head.seq > last.seq:
        return Broken(last.seq + 1, f"is missing: the head names line {head.seq}, so the end was cut off")
    if head == START:
        return Broken(last.seq + 1, "may be missing: the head was removed, so the end may have been cut off")
    if head.seq >= last.seq - 1:
        return Broken(head.seq, "is not the line that the head names: it was written anew")
    return Broken(head.seq + 2, f"is too far from the head, which names line {head.seq}: it was put in")


def ending(handle: int) -> tuple[Line | None, int]:
    """Return a log's last whole line, None in an empty log, and the offset at which it ends.

    What lies behind the offset is a line that was cut short.

    Raises
    ------
    ProtocolError
        The last whole line is not one of a log.
    """
    size = os.fstat(handle).st_size
    start = max(size - 2 * LONGEST, 0)
    block = os.pread(handle, size - start, start)
    end = block.rfind(b"\n") + 1
    if end == 0 and start == 0 and size < LONGEST:
        return None, 0
    begin = block.rfind(b"\n", 0, max(end - 1, 0)) + 1
    if end == 0 or size - start - end >= LONGEST or (begin == 0 and start > 0):
        raise ProtocolError("the end of the file is longer than a line of an audit log can be")
    try:
        return decode(block[begin:end]), start + end
    except ProtocolError as error:
        raise ProtocolError(f"the last line {error}") from None


def unfinished(tail: bytes, seq: int) -> bool:
    """Whether a file's last bytes are the beginning of line ``seq``, cut short by a crash.

    A file system may leave zeros where the rest was to stand.
    """
    begun = tail.rstrip(b"\0")
    start = f'{{"seq":{seq},"time":"'.encode("ascii")
    return begun.startswith(start) or start.startswith(begun)


def append(handle: int, line: Line) -> None:
    """Write a line at a log's end and flush it to the disk: whole, or not at all where the disk is full."""
    data, size = encode(line), os.fstat(handle).st_size
    written = 0
    try:
        while written < len(data):
            written += os.write(handle, data[written:])
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def replace_end(log: Path, offset: int, line: Line) -> None:
    """Write a line over what lies behind an offset, so that no moment has the log without either."""
    handle = os.open(log, os.O_WRONLY)
    try:
        data = encode(line)
        written = 0
        while written < len(data):
            written += os.pwrite(handle, data[written:], offset + written)
        os.ftruncate(handle, offset + len(data))
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def opened(log: Path, *, write: bool, mode: int = 0o640) -> Iterator[int]:
    """Open a log and hold its lock: alone to write, together with other readers to read.

    Opened for each line anew, so that a forked process never shares the lock.

    Raises
    ------
    ConfigError
        Not a regular file.
    FedGliomaError
        Another process holds the lock for longer than any writer needs.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if write else os.O_RDONLY | os.O_NONBLOCK
    handle = os.open(log, flags | os.O_CLOEXEC, mode)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ConfigError(f"{log}: is not a regular file; an audit log is one")
        _lock(handle, fcntl.LOCK_EX if write else fcntl.LOCK_SH, log)
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, kind: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise FedGliomaError(
                    f"{log}: another process has held it for {PATIENCE_S:.0f} s; end that process first"
                ) from None
            time.sleep(0.002)
        else:
            return
