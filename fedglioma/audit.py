"""The audit log of the server and of every site: who joined, what was offered, refused, sent; no content.

One JSON line for each event in ``audit.jsonl``, chained by digests (``chain.py``), so that
``verification.py`` can name the first line that was edited, removed, put in or moved.
"""

import hashlib
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedglioma import chain
from fedglioma.chain import Head
from fedglioma.errors import FedGliomaError, ProtocolError

MOST_CHARACTERS = 500
MOST_ENTRIES = 512
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

Plain = str | int | float | bool | None
Value = Plain | list[Plain] | dict[str, Plain]


class Event(StrEnum):
    """What an audit log records, each with its meaning."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> "Event":
        """Return the event's name; its meaning goes along."""
        event = str.__new__(cls, value)
        event._value_ = value
        event.meaning = meaning
        return event

    RUN_STARTED = "run_started", "a run began"
    RUN_RESUMED = "run_resumed", "an interrupted run went on after its last complete round"
    RUN_FINISHED = "run_finished", "a run did all its rounds"
    RUN_STOPPED = "run_stopped", "a run ended before its last round, with the reason"
    SITE_JOINED = "site_joined", "a site with a known key connected"
    SITE_LEFT = "site_left", "a site went away or was not heard of any more"
    SITE_REFUSED = "site_refused", "somebody was not let in, with the reason"
    OFFERED = "offered", "the server asked a site to take part under the terms named"
    ACCEPTED = "accepted", "a request or an update passed every check"
    REFUSED = "refused", "a request or an update did not, with the reason"
    SENT = "sent", "weights or an answer left this side, by digest and size"
    RECEIVED = "received", "weights or an answer arrived here, by digest and size"
    EXCLUDED = "excluded", "a site was left out of a round, with the reason"
    AGGREGATED = "aggregated", "updates became new weights, by digests and weights of the sum"
    CHECKPOINT = "checkpoint", "weights were written to disk or read again, by digest"
    CONTROL = "control", "somebody gave the running program a command"
    KEY_REVOKED = "key_revoked", "a site's key is no longer let in"
    TORN = "torn", "a line that a crash had cut short was moved aside"


def shortened(text: str) -> str:
    """Return words of somebody else as a log takes them: at most 500 characters."""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


class BrokenLog(FedGliomaError):
    """An audit log is not as it was written, so that nothing can be added to it."""


class AuditLog:
    """A log that is only ever added to, by any number of threads and processes.

    Parameters
    ----------
    path : Path
        The file, ``audit.jsonl`` by custom; made with its folder where it is not there. A line that a
        crash cut short is moved to ``audit.torn-<n>`` beside it, and an event says so.

    Raises
    ------
    BrokenLog
        The log is broken at its end: cut off, or not such a log.
    FedGliomaError
        It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        with self._settled():
            pass

    def head(self) -> str:
        """Return the digest of the last line; 64 zeros for an empty log."""
        with self._settled() as (_, last):
            return last.digest

    def append(self, event: str, /, **fields: Value) -> str:
        """Record an event and return the new head digest; the line is on disk by then.

        Parameters
        ----------
        event : str
            One of ``Event``.
        **fields : Value
            What it was about: ``site``, ``round``, ``digests`` (sha256 in hex), ``bytes``, ``reason``,
            ``weights``. Words of at most 500 characters, numbers, and flat lists and tables of these.

        Raises
        ------
        FedGliomaError
            A value could carry content (bytes, an array, a long text); or the disk is full, or the file
            may not be written.
        """
        kind, data = known_event(event), checked(fields)
        with self._settled() as (handle, last):
            line = chain.seal(last.seq + 1, _now(), kind, data, last.digest)
            if len(chain.encode(line)) > chain.LONGEST:
                raise FedGliomaError(f"audit event {kind}: is longer than {chain.LONGEST} bytes; record less")
            chain.append(handle, line)
            chain.write_head(self.path, line)
            return line.digest

    def note(self, event: str, /, **fields: Value) -> None:
        """Record an event as ``append`` does, with words cut to what a line takes."""
        cut = {name: shortened(value) if isinstance(value, str) else value for name, value in fields.items()}
        self.append(event, **cut)

    @contextmanager
    def _settled(self) -> Iterator[tuple[int, Head]]:
        """Hold the log with its end and head in order, whatever a crash left; give handle and end."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._mutex, chain.opened(self.path, write=True) as handle:
                yield handle, self._settle(handle)
        except ProtocolError as error:
            raise BrokenLog(
                f"{self.path}: {error}; keep it and its head as they are for whoever looks into it, "
                "and move both aside to begin a new log"
            ) from None
        except OSError as error:
            raise FedGliomaError(
                f"{self.path}: cannot be written ({error.strerror or error}); "
                "nothing goes on without its audit log: make space or give the right to write"
            ) from None

    def _settle(self, handle: int) -> Head:
        line, end = chain.ending(handle)
        last = chain.START if line is None else Head(line.seq, line.digest)
        head = chain.read_head(self.path)
        broken = chain.out_of_step(last, chain.NOTHING if line is None else line.previous, head)
        if broken is not None:
            raise ProtocolError(f"line {broken.line} {broken.what}")
        tail = os.pread(handle, chain.LONGEST, end)
        if tail:
            line = self._set_aside(tail, end, last)
            last = Head(line.seq, line.digest)
        if line is not None and head != last:
            chain.write_head(self.path, line)
        return last

    def _set_aside(self, tail: bytes, end: int, last: Head) -> chain.Line:
        number = 1
        while (aside := self.path.with_suffix(f".torn-{number}")).exists():
            number += 1
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        with os.fdopen(handle, "wb") as file:
            file.write(tail)
            file.flush()
            os.fsync(file.fileno())
        cut_short = chain.unfinished(tail, last.seq + 1)
        data: dict[str, Any] = {
            "file": aside.name,
            "bytes": len(tail),
            "digests": {"torn": hashlib.sha256(tail).hexdigest()},
            "reason": "a line that a crash cut short" if cut_short else "not the beginning of a line",
        }
        line = chain.seal(last.seq + 1, _now(), Event.TORN, data, last.digest)
        chain.replace_end(self.path, end, line)
        return line


def known_event(event: str) -> Event:
    """Return the event of this name.

    Raises
    ------
    FedGliomaError
        There is no such event.
    """
    for known in Event:
        if known == event:
            return known
    raise FedGliomaError(f"audit event {shortened(event)!r}: unknown; choose among {', '.join(Event)}")


def checked(fields: dict[str, Value]) -> dict[str, Any]:
    """Return an event's fields as plain values, or refuse what could carry content.

    Raises
    ------
    FedGliomaError
        A field is none of: words of at most 500 characters, a 64-bit integer, a finite number, a truth
        value, nothing, or a flat list or table of at most 512 of these; or a digest is no sha256 in hex.
    """
    plain = {}
    for name, value in fields.items():
        if not NAME.fullmatch(name):
            raise FedGliomaError(f"audit field {name!r}: write a name in small letters, digits and _")
        plain[name] = _flat(name, value)
    digests = plain.get("digests", [])
    for digest in digests.values() if isinstance(digests, dict) else _listed(digests):
        if not isinstance(digest, str) or not chain.DIGEST.fullmatch(digest):
            raise FedGliomaError("audit field digests: holds something else than sha256 digests in hex")
    return plain


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _flat(name: str, value: object) -> Any:
    if not isinstance(value, list | tuple | dict):
        return _plain(name, value)
    if len(value) > MOST_ENTRIES:
        raise FedGliomaError(f"audit field {name}: {len(value)} entries, at most {MOST_ENTRIES} are recorded")
    if not isinstance(value, dict):
        return [_plain(name, entry) for entry in value]
    for key in value:
        if not isinstance(key, str) or len(key) > 64:
            raise FedGliomaError(f"audit field {name}: a key is not a word of at most 64 characters")
    return {str(key): _plain(name, entry) for key, entry in value.items()}


def _plain(name: str, value: object) -> Plain:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= MOST_CHARACTERS:
        return str(value)
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    # The value itself stays out of the message: it may be the content that must not be recorded.
    raise FedGliomaError(
        f"audit field {name}: a value of type {type(value).__name__} is not recorded; give words of at most "
        f"{MOST_CHARACTERS} characters, a finite number, or the digest of what is meant"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
