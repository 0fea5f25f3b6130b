"""The ledger on disk: a hash chain with its head, the sets of patients it names, and heads kept elsewhere.

``<state>/privacy/`` holds ``ledger.jsonl``, ``ledger.head``, ``sets/<digest>.json`` and ``outbox/<digest>``.
Whatever does not fit together is refused: there is no way round it in the program.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedglioma import chain
from fedglioma.case import Frozen
from fedglioma.chain import Line
from fedglioma.errors import PrivacyError, ProtocolError
from fedglioma.newfile import PRIVATE, sync, write_new
from fedglioma.privacy.ledger_entries import FORMAT, Book, Copied, Kind, Opened, Torn, read_book
from fedglioma.verification import walked

FOLDER: Final = "privacy"
LEDGER_FILE: Final = "ledger.jsonl"
SETS: Final = "sets"
OUTBOX: Final = "outbox"
OWN: Final = 0o700
REMEDY: Final = (
    "nothing private leaves this site until it is explained; keep the folder as it is, and see "
    "docs/privacy-ledger.md"
)


def tampered(place: Path, what: str) -> PrivacyError:
    """Return the refusal of a ledger that is not as it was written."""
    return PrivacyError(f"{place}: {what}; {REMEDY}")


class OpenLedger:
    """A ledger whose lock is held, and what it says."""

    def __init__(self, file: "LedgerFile", handle: int) -> None:
        self.file = file
        self.handle = handle
        path = file.path
        size = os.fstat(handle).st_size
        found, self.lines = walked(path, size)
        if found.broken is not None:
            words = found.verdict.replace("an audit log", "a ledger")
            raise tampered(path, f"was changed after it was written: {words}")
        if not self.lines:
            file.require_nothing_else()
        self.torn = found.torn_bytes
        self.end = size - found.torn_bytes
        try:
            self.book = read_book(self.lines)
        except ProtocolError as error:
            raise tampered(path, str(error)) from None
        if self.lines and self.book.site != file.site:
            raise tampered(path, f"is the ledger of site {self.book.site}, not of {file.site}")
        file.check_copy(self.book)

    def write(self, kind: Kind, entry: Frozen) -> Line:
        """Add a line and return it; line, head and the head's second copy are on disk by then.

        Raises
        ------
        PrivacyError
            A disk is full, away, or may not be written.
        """
        try:
            self.begin()
            return self._append(kind, entry)
        except OSError as error:
            place = error.filename or self.file.path
            raise PrivacyError(
                f"{place}: the privacy ledger cannot be written ({error.strerror or error}); nothing "
                "private leaves without it: make space, mount the disk, or give the right to write"
            ) from None

    def begin(self) -> None:
        """Make the ledger fit to be added to: its first line, its head, what a crash cut short."""
        path = self.file.path
        if not self.lines:
            os.ftruncate(self.handle, 0)  # at most the beginning of a first line that a crash cut short
            self.torn = 0
            self._append(Kind.OPENED, Opened(site=self.file.site, format=FORMAT))
        # Two lines before their head would not be told from lines that were put in.
        elif chain.read_head(path) != chain.Head(self.lines[-1].seq, self.lines[-1].digest):
            chain.write_head(path, self.lines[-1], PRIVATE)
        if self.torn:
            tail = os.pread(self.handle, self.torn, self.end)
            torn = Torn(bytes=len(tail), digest=hashlib.sha256(tail).hexdigest())
            line = self._seal(Kind.TORN, torn)
            chain.replace_end(path, self.end, line)
            self.torn = 0
            self._added(line)
        place = self.file.place()
        if place and self.book.place != place:
            # The file first: a line that names a copy which a crash prevented would bar the site.
            self.file.write_copy(self.lines[-1])
            self._append(Kind.COPIED, Copied(place=place))

    def _append(self, kind: Kind, entry: Frozen) -> Line:
        line = self._seal(kind, entry)
        if len(chain.encode(line)) > chain.LONGEST:
            raise PrivacyError(f"{kind.value}: is longer than a line of the ledger can be; say less of it")
        chain.append(self.handle, line)
        self._added(line)
        return line

    def _seal(self, kind: Kind, entry: Frozen) -> Line:
        last = self.lines[-1] if self.lines else None
        seq, previous = (1, chain.NOTHING) if last is None else (last.seq + 1, last.digest)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return chain.seal(seq, now, kind.value, entry.model_dump(mode="json"), previous)

    def _added(self, line: Line) -> None:
        chain.write_head(self.file.path, line, PRIVATE)
        if self.book.place and self.book.place == self.file.place():
            self.file.write_copy(line)
        self.lines.append(line)
        self.book = read_book(self.lines)


class LedgerFile:
    """Where a site's ledger lies.

    Parameters
    ----------
    state : Path
        The site's state folder; the ledger's own folder in it is made with the first line.
    site : str
    head_copy : Path or None
        A file, on another disk at best, in which each line's head is kept too.
    outbox : Path or None
        Where what was committed lies, if not in the ledger's own folder.
    """

    def __init__(self, state: Path, site: str, head_copy: Path | None, outbox: Path | None = None) -> None:
        self.folder = state / FOLDER
        self.path = self.folder / LEDGER_FILE
        self.site = site
        self.head_copy = head_copy
        self.outbox = self.folder / OUTBOX if outbox is None else outbox

    def exists(self) -> bool:
        """Whether a line was ever written, as far as it shows.

        Raises
        ------
        PrivacyError
            The ledger is gone, and something of it is still there.
        """
        if self.path.exists():
            return True
        self.require_nothing_else()
        return False

    @contextmanager
    def opened(self, *, write: bool) -> Iterator[OpenLedger]:
        """Open the ledger, hold its lock, and read it from its first line to its last.

        Raises
        ------
        PrivacyError
            It is not as it was written; or it may not be read.
        """
        try:
            if write:
                self._make_folders(new=not self.exists())
            with chain.opened(self.path, write=write, mode=PRIVATE) as handle:
                yield OpenLedger(self, handle)
        except OSError as error:
            place = error.filename or self.path
            raise PrivacyError(
                f"{place}: the privacy ledger cannot be used ({error.strerror or error}); nothing private "
                "leaves without it: give the client's user the right to read and write"
            ) from None

    def _make_folders(self, *, new: bool) -> None:
        """Make what is not there: of a ledger that was put back from a backup, folders that were empty."""
        folders = (self.folder, self.folder / SETS, self.outbox)
        if all(folder.is_dir() for folder in folders):
            return
        for folder in folders:
            folder.mkdir(mode=OWN, parents=True, exist_ok=True)
        sync(self.folder)
        if new:
            sync(self.folder.parent)

    def require_nothing_else(self) -> None:
        """Raise ``PrivacyError`` where there is no line, and yet a trace of one."""
        traces = [
            chain.head_file(self.path),
            *self.folder.glob(f"{SETS}/*.json"),
            *self.folder.glob("outbox/*"),
        ]
        left = next((trace for trace in traces if trace.exists()), None)
        if left is not None:
            name = left.relative_to(self.folder)
            raise tampered(self.path, f"is gone or empty, and {name} of it is still there")
        self.check_copy(Book())

    def place(self) -> str:
        """Return the digest that stands for where heads are copied to; empty where they are not.

        Of the path without ``..``, so that one place has one name. Links on the way stand as they are: where
        one is bent to an empty folder, the copy must be missed.
        """
        return "" if self.head_copy is None else _digest(os.path.normpath(self.head_copy.absolute()))

    def _places(self) -> tuple[str, ...]:
        """Return the digests by which a line may name that place: earlier versions took the path as given."""
        return () if self.head_copy is None else (self.place(), _digest(self.head_copy.absolute()))

    def check_copy(self, book: Book) -> None:
        """Raise ``PrivacyError`` where the second copy of the head is of a line that the ledger has not."""
        if self.head_copy is None:
            return
        try:
            head = chain.head_at(self.head_copy)
        except ProtocolError:
            raise tampered(self.head_copy, "does not hold the head of a ledger") from None
        except OSError as error:
            raise PrivacyError(
                f"{self.head_copy}: the second copy of the ledger's head cannot be read "
                f"({error.strerror or error}); mount the disk, or give the right to read"
            ) from None
        if head is None:
            if book.place in self._places():
                raise tampered(self.head_copy, "the second copy of the ledger's head is gone, or its disk is")
        elif head.seq > len(book.heads) or book.heads[head.seq - 1] != head.digest:
            raise tampered(
                self.path,
                f"has no line {head.seq} as {self.head_copy} names it: an older copy of the ledger was put "
                "back, or it was written anew",
            )

    def write_copy(self, line: Line) -> None:
        """Keep a line's head at the second place."""
        if self.head_copy is not None:
            chain.write_head_at(self.head_copy, line, PRIVATE)

    def write_set(self, members: Iterable[str]) -> str:
        """Keep a set of patients' tags, unless it is kept already, and return its digest."""
        content = json.dumps(sorted(set(members)), separators=(",", ":")).encode("ascii") + b"\n"
        digest = hashlib.sha256(content).hexdigest()
        path = self.set_path(digest)
        if path.exists():
            self._read_set(digest)
        else:
            write_new(path, content, mode=PRIVATE)
        return digest

    def read_sets(self, digests: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """Return the tags of each set, by its digest.

        Raises
        ------
        PrivacyError
            A set is gone or is not the one that was written.
        """
        return {digest: self._read_set(digest) for digest in set(digests)}

    def set_path(self, digest: str) -> Path:
        """Return where a set of patients' tags lies."""
        return self.folder / SETS / f"{digest}.json"

    def outbox_path(self, digest: str) -> Path:
        """Return where an update that was committed lies."""
        return self.outbox / digest

    def _read_set(self, digest: str) -> frozenset[str]:
        path = self.set_path(digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise tampered(path, "the set of patients is gone, and releases count against it") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise tampered(path, "the set of patients was changed after it was written")
        tags: list[Any] = json.loads(content)
        return frozenset(tags)


def _digest(path: str | Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()
