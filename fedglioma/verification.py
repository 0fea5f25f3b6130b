"""Whether an audit log is as it was written: the first line that is not, and what is wrong with it.

The chain shows every change that its author could not, or did not care to, carry through to the head.
Whoever can rewrite the whole log and its head forges both; a head that somebody else keeps shows that too.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedglioma import chain
from fedglioma.chain import Broken, Head, Line
from fedglioma.errors import ConfigError, FedGliomaError, ProtocolError


@dataclass(frozen=True)
class Verification:
    """What a log's chain shows: how far it is sound, and the first line that is not."""

    lines: int
    """Sound lines, before the first broken one."""
    first: str | None
    """Time of the first line, ISO 8601 in UTC."""
    last: str | None
    """Time of the last sound line."""
    head: str
    """Digest of the last sound line; 64 zeros where there is none."""
    broken: Broken | None
    torn_bytes: int = 0
    """Bytes at the end of a line that a crash cut short."""
    known: int | None = None
    """The line that has the head which was given to compare with; 0 for that of an empty log."""

    @property
    def verdict(self) -> str:
        """``sound``, or the first broken line and what is wrong with it."""
        return "sound" if self.broken is None else f"line {self.broken.line} {self.broken.what}"

    def error(self, file: Path) -> FedGliomaError | None:
        """Return the failure that a broken log is; none for a sound one."""
        return None if self.broken is None else FedGliomaError(f"{file}: {self.verdict}")

    def data(self) -> dict[str, Any]:
        """Return the result as a table for JSON."""
        return asdict(self) | {"sound": self.broken is None}

    def text(self) -> str:
        """Return the result as lines for a person."""
        lines = [f"verdict  {self.verdict}", f"lines    {self.lines}"]
        if self.broken is not None:
            lines[1] += f" before line {self.broken.line}"
        if self.first is not None:
            lines.append(f"period   {self.first} to {self.last}")
        lines.append(f"head     {self.head}")
        if self.known is not None:
            lines.append(f"compared the head given is that of line {self.known}")
        if self.torn_bytes and self.broken is None:
            lines.append(
                f"note     the last {self.torn_bytes} bytes are a line that a crash cut short; "
                "the next start moves them aside and records it"
            )
        return "\n".join(lines)


def verify(path: Path, *, head: str | None = None) -> Verification:
    """Return what a log's chain shows; it is read line by line, so its length costs no memory.

    Parameters
    ----------
    path : Path
        The log. Its head file is looked for beside it.
    head : str or None
        A digest kept elsewhere, of the last line at that time: one of the log's lines must have it.

    Raises
    ------
    ConfigError
        There is no such file, it may not be read, or ``head`` is no digest.
    """
    given = None if head is None else head.strip().lower()
    if given is not None and not chain.DIGEST.fullmatch(given):
        raise ConfigError(f"--head {given[:80]!r}: is not a digest; give its 64 hexadecimal digits")
    try:
        with chain.opened(path, write=False) as handle:
            size, beside = os.fstat(handle).st_size, _head_beside(path)
        # The lock is given back: what is added meanwhile lies behind ``size`` and is left for next time.
        return _Walk(beside, given).along(path, size)
    except FileNotFoundError:
        return _absent(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None


def walked(log: Path, size: int) -> tuple[Verification, list[Line]]:
    """Return what a log's chain shows, and its sound lines; for whoever holds the log's lock."""
    walk = _Walk(_head_beside(log), None, keep=True)
    return walk.along(log, size), walk.kept


def _head_beside(path: Path) -> Head | str | None:
    """Return the log's head, or what is wrong with its file."""
    try:
        return chain.read_head(path)
    except ProtocolError as error:
        return str(error)


def _absent(path: Path) -> Verification:
    if not chain.head_file(path).exists():
        raise ConfigError(f"{path}: no such audit log")
    gone = Broken(1, f"is missing: the log is gone, {chain.head_file(path).name} is still there")
    return Verification(0, None, None, chain.NOTHING, gone)


class _Walk:
    """A walk along a log: what has been seen so far, never more than one line of it unless ``keep`` is on."""

    def __init__(self, beside: Head | str | None, given: str | None, *, keep: bool = False) -> None:
        self.keep = keep
        self.kept: list[Line] = []
        self.beside = beside
        self.given = given
        self.last = chain.START
        self.previous = chain.NOTHING
        self.times: tuple[str, str] | None = None
        self.known = 0 if given == chain.NOTHING else None
        self.tail = b""

    def along(self, path: Path, size: int) -> Verification:
        broken = self._lines(path, size) or self._head() or self._end()
        first, last = self.times or (None, None)
        return Verification(self.last.seq, first, last, self.last.digest, broken, len(self.tail), self.known)

    def _lines(self, path: Path, size: int) -> Broken | None:
        position = 0
        with path.open("rb") as file:
            while raw := file.readline(min(chain.LONGEST + 1, size - position)):
                position += len(raw)
                if position == size and not raw.endswith(b"\n"):
                    self.tail = raw
                    break
                try:
                    self._step(raw)
                except ProtocolError as error:
                    return Broken(self.last.seq + 1, str(error))
        return None

    def _step(self, raw: bytes) -> None:
        line, due = chain.decode(raw), self.last.seq + 1
        if line.seq != due:
            raise ProtocolError(f"has the number {line.seq}: lines were removed, put in or moved")
        if line.previous != self.last.digest:
            raise ProtocolError(
                "is not the line that was written here: it does not go on from the line before, "
                "so one of the two was changed, put in or moved"
            )
        here = Head(line.seq, line.digest)
        if isinstance(self.beside, Head) and self.beside.seq == due and self.beside != here:
            raise ProtocolError("is not the line that the head names: it was written anew")
        self.last, self.previous = here, line.previous
        self.times = (self.times[0] if self.times else line.time, line.time)
        if self.keep:
            self.kept.append(line)
        if line.digest == self.given:
            self.known = line.seq

    def _head(self) -> Broken | None:
        if isinstance(self.beside, str):
            return Broken(self.last.seq + 1, f"may be missing: {self.beside}")
        # A head that somebody else kept stands in for one that did not travel with a copy of the log.
        if self.beside is None and self.given == self.last.digest:
            return None
        return chain.out_of_step(self.last, self.previous, self.beside)

    def _end(self) -> Broken | None:
        due = self.last.seq + 1
        if self.tail and (len(self.tail) >= chain.LONGEST or not chain.unfinished(self.tail, due)):
            return Broken(due, "is not a line of an audit log, nor the beginning of one")
        if self.given is not None and self.known is None:
            return Broken(
                due,
                "is missing: no line has the head that was given, "
                "so the end was cut off or the whole log was written anew",
            )
        return None
