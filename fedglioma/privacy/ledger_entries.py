"""The ledger's vocabulary: what is released, what its lines say, and what became of each release."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from pydantic import Field, ValidationError

from fedglioma.case import Frozen
from fedglioma.chain import Line
from fedglioma.config.privacy import LARGEST_DELTA, AccountantName
from fedglioma.errors import IdentityError, ProtocolError
from fedglioma.privacy.accounting import Mechanism
from fedglioma.pseudonym import SECRET_BYTES, plain_id

FORMAT: Final = 1
UPDATE: Final = "update"
"""``what`` of a training round's update; anything else is another release."""
SHA256: Final = r"^[0-9a-f]{64}$"
_FOR_LEDGER: Final = b"FEDGLIOMA LEDGER 1\n"
"""Before what is keyed. Ids are folded to small letters before theirs, so that no id is ever this."""

About = dict[str, str | int | float | None]


class ReleaseKey(Frozen):
    """What is released: the answer to one question of one run, said once.

    ``what`` tells the answers of a round apart: ``update``, ``counts``, ``landmarks:<digest>``. An answer
    that has to be made anew is another ``attempt`` and is paid for again.
    """

    run: str = Field(min_length=1, max_length=100)
    round: int = Field(ge=0)
    what: str = Field(default=UPDATE, pattern=r"^[a-z][a-z0-9_.:-]{0,99}$")
    attempt: int = Field(default=1, ge=1)

    def __str__(self) -> str:
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"run {self.run}, round {self.round}, {self.what}{again}"


class Budget(Frozen):
    """What any patient may lose in a lifetime; an infinite epsilon is no limit."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, le=LARGEST_DELTA)
    accountant: AccountantName = "prv"


class Kind(StrEnum):
    """What a line of the ledger records."""

    OPENED = "opened"
    RESERVED = "reserved"
    COMMITTED = "committed"
    VOIDED = "voided"
    COPIED = "copied"
    TORN = "torn"


class Opened(Frozen):
    """The ledger begins."""

    site: str
    format: Literal[1]


class Reserved(Frozen):
    """Before the first step: what will be spent, and of whom."""

    key: ReleaseKey
    mechanisms: tuple[Mechanism, ...] = Field(min_length=1)
    members: str = Field(pattern=SHA256)
    patients: int = Field(ge=1)
    about: About = Field(default_factory=dict, max_length=16)


class Committed(Frozen):
    """Before it leaves: the answer is made, and the spending stands."""

    reservation: int = Field(ge=1)
    update: str = Field(pattern=SHA256)
    bytes: int = Field(ge=0)


class Voided(Frozen):
    """A reservation is given up: nothing left the site, nothing is spent."""

    reservation: int = Field(ge=1)
    reason: str


class Copied(Frozen):
    """From here on heads are kept at a second place too, named by the digest of its path."""

    place: str = Field(pattern=SHA256)


class Torn(Frozen):
    """A line that a crash cut short stood here; what it was to say was never done."""

    bytes: int = Field(ge=1)
    digest: str = Field(pattern=SHA256)


@dataclass(frozen=True)
class Reservation:
    """The right to make one release; ``Ledger.commit`` takes it."""

    seq: int
    key: ReleaseKey


@dataclass
class Release:
    """A reservation, and what became of it."""

    seq: int
    time: str
    reserved: Reserved
    committed: Committed | None = None
    voided: bool = False

    @property
    def key(self) -> ReleaseKey:
        """What is released."""
        return self.reserved.key

    @property
    def open(self) -> bool:
        """Whether it is neither committed nor given up."""
        return self.committed is None and not self.voided

    @property
    def reservation(self) -> Reservation:
        """What ``Ledger.reserve`` gave for it."""
        return Reservation(self.seq, self.key)


@dataclass
class Book:
    """A ledger's lines, read in order."""

    site: str = ""
    releases: dict[int, Release] = field(default_factory=dict)
    place: str = ""
    heads: list[str] = field(default_factory=list)
    """Digest of each line."""

    def find(self, key: ReleaseKey) -> Release | None:
        """Return the release of this key that was not given up."""
        return next((r for r in self.releases.values() if r.key == key and not r.voided), None)

    def standing(self) -> list[Release]:
        """Return what counts as spent: all that was committed, or may yet be."""
        return [release for release in self.releases.values() if not release.voided]


def read_book(lines: Sequence[Line]) -> Book:
    """Return what sound lines say.

    Raises
    ------
    ProtocolError
        In words that begin with the line's number: it says what no ledger says.
    """
    book = Book()
    for line in lines:
        try:
            _enter(book, line)
        except (ValidationError, ValueError) as error:
            words = str(error).splitlines()[0]
            raise ProtocolError(f"line {line.seq} says what no ledger says ({words})") from None
        book.heads.append(line.digest)
    return book


def _enter(book: Book, line: Line) -> None:
    kind = Kind(line.event)
    if (kind is Kind.OPENED) != (line.seq == 1):
        raise ValueError("a ledger is opened in its first line and nowhere else")
    if kind is Kind.OPENED:
        book.site = Opened.model_validate(line.data).site
    elif kind is Kind.RESERVED:
        reserved = Reserved.model_validate(line.data)
        if book.find(reserved.key) is not None:
            raise ValueError("it was reserved before")
        book.releases[line.seq] = Release(line.seq, line.time, reserved)
    elif kind is Kind.COMMITTED:
        committed = Committed.model_validate(line.data)
        _open(book, committed.reservation).committed = committed
    elif kind is Kind.VOIDED:
        _open(book, Voided.model_validate(line.data).reservation).voided = True
    elif kind is Kind.COPIED:
        book.place = Copied.model_validate(line.data).place
    else:
        Torn.model_validate(line.data)


def _open(book: Book, seq: int) -> Release:
    release = book.releases.get(seq)
    if release is None or not release.open:
        raise ValueError(f"line {seq} is no open reservation")
    return release


def member_tags(secret: bytes, patients: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted tags of patients as the ledger keeps them: 128 bits of HMAC-SHA256, in hex.

    Spaces around an id, its case and its Unicode form make no difference.

    Raises
    ------
    IdentityError
        The site's secret is shorter than 32 bytes.
    """
    if len(secret) < SECRET_BYTES:
        raise IdentityError(f"the site's secret has {len(secret)} bytes; it needs at least {SECRET_BYTES}")
    # A filler that stands for an id in a table is this table's id all the same.
    plain = {plain_id(patient) or patient.strip().casefold() for patient in patients}
    tags = (
        hmac.new(secret, _FOR_LEDGER + one.encode("utf-8", "surrogateescape"), hashlib.sha256)
        for one in plain
    )
    return tuple(sorted({tag.hexdigest()[:32] for tag in tags}))
