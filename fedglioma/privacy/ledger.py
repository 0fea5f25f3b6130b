"""The privacy ledger of a site: spending is reserved before a step and committed before an update leaves.

What is spent is counted for each patient over all rounds, runs and models, whatever the server says, and
whatever crashes: an open reservation counts until it is settled, and an update that was committed can only be
sent again as it is.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedglioma import chain
from fedglioma.chain import Head
from fedglioma.config.privacy import AccountantName
from fedglioma.errors import BudgetExhausted, PrivacyError
from fedglioma.newfile import PRIVATE, replacing, sweep
from fedglioma.privacy import spending
from fedglioma.privacy.accounting import Mechanism
from fedglioma.privacy.ledger_entries import (
    About,
    Book,
    Budget,
    Committed,
    Kind,
    Release,
    ReleaseKey,
    Reservation,
    Reserved,
    Voided,
)
from fedglioma.privacy.ledger_file import LedgerFile, tampered

logger = logging.getLogger(__name__)


class Ledger:
    """A site's ledger in ``<state>/privacy``; any number of processes may use it, one at a time.

    Every method reads the whole chain anew and raises ``PrivacyError`` where it is not as it was written.

    Parameters
    ----------
    state : Path
        The site's state folder.
    site : str
        The site's name, which the ledger has in its first line.
    head_copy : Path or None
        A file, on another disk at best, in which the ledger's head is kept too, and compared.
    outbox : Path or None
        A folder for what was committed and may be sent again, where that is not to lie with the ledger.
    """

    def __init__(
        self, state: Path, site: str, *, head_copy: Path | None = None, outbox: Path | None = None
    ) -> None:
        self._file = LedgerFile(state, site, head_copy, outbox)

    @property
    def path(self) -> Path:
        """Where the chain lies."""
        return self._file.path

    def head(self) -> Head:
        """Return number and digest of the last line, for others to keep; 0 and 64 zeros before the first."""
        heads = self._book().heads
        return Head(len(heads), heads[-1] if heads else chain.NOTHING)

    def require_head(self, digest: str) -> None:
        """Refuse a ledger that never had this head, which somebody else kept.

        Raises
        ------
        PrivacyError
            No line has it: an older copy was put back, or the ledger was written anew.
        """
        if digest != chain.NOTHING and digest not in self._book().heads:
            raise tampered(
                self.path,
                f"no line has the head {digest[:16]} that was kept elsewhere: an older copy of the ledger "
                "was put back, or it was written anew",
            )

    def entries(self) -> tuple[Release, ...]:
        """Return every reservation with what became of it, the oldest first."""
        return tuple(self._book().releases.values())

    def members_of(self, release: Release) -> frozenset[str]:
        """Return the tags of a release's patients."""
        return self._sets([release])[release.reserved.members]

    def committed(self, key: ReleaseKey) -> Release | None:
        """Return the release of this key if it was committed: it may have left."""
        found = self._book().find(key)
        return None if found is None or found.open else found

    def stored(self, key: ReleaseKey) -> bytes | None:
        """Return the bytes that were committed under a key, to send them again; None where they are gone."""
        found = self.committed(key)
        if found is None or found.committed is None:
            return None
        digest = found.committed.update
        try:
            content = self._file.outbox_path(digest).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest() == digest:
            return content
        logger.warning("outbox/%s is not what was committed and is not sent", digest[:16])
        return None

    def epsilon_spent(
        self, members: Collection[str] | None, delta: float, accountant: AccountantName
    ) -> float:
        """Return the epsilon of the patient who lost most, open reservations included.

        Parameters
        ----------
        members : collection of tags or None
            Of whom (``member_tags``); None for everybody who was ever in a release.
        """
        limit = Budget(epsilon=1.0, delta=delta, accountant=accountant)
        return spending.worst(self._histories(self._book().standing(), members), (), limit)

    def epsilon_of(self, releases: Sequence[Release], delta: float, accountant: AccountantName) -> float:
        """Return the epsilon of some of the releases alone, of the patient who lost most by them."""
        limit = Budget(epsilon=1.0, delta=delta, accountant=accountant)
        return spending.worst(self._histories(releases, None), (), limit)

    def rounds_left(self, mechanisms: Sequence[Mechanism], members: Collection[str], limit: Budget) -> int:
        """Return how many more releases of these mechanisms the limit allows, at most 100,000."""
        found = self._histories(self._book().standing(), members)
        return spending.rounds_left(found, mechanisms, limit)

    def allows(self, mechanisms: Sequence[Mechanism], members: Collection[str], limit: Budget) -> bool:
        """Whether the limit allows one more release of these mechanisms."""
        found = self._histories(self._book().standing(), members)
        return spending.worst(found, mechanisms, limit) <= limit.epsilon

    def reserve(
        self,
        key: ReleaseKey,
        mechanisms: Sequence[Mechanism],
        members: Collection[str],
        limit: Budget,
        *,
        patients: int | None = None,
        about: About | None = None,
    ) -> Reservation:
        """Set aside what a release will spend, before its first step; on disk when it returns.

        Asked again for the same release, as after a crash, it gives the same reservation and spends nothing
        more; with other mechanisms or patients the first is given up.

        Parameters
        ----------
        members : collection of tags
            Every patient who may take part in a step (``member_tags``).
        patients : int, optional
            How many they are, where one may have several tags.
        about : mapping or None
            Words and numbers for the screen, as ``clip_norm``; none of a patient.

        Raises
        ------
        BudgetExhausted
            A patient would lose more than the limit; nothing was written.
        PrivacyError
            Something was released under this key already; or no patient or mechanism is named.
        """
        if not members or not mechanisms:
            raise PrivacyError(f"{key}: names no patient or no mechanism, so that nothing could be counted")
        with self._file.opened(write=True) as ledger:
            earlier = ledger.book.find(key)
            if earlier is not None and earlier.committed is not None:
                raise PrivacyError(
                    f"{key}: was answered before; send the same bytes again, or count it as another attempt"
                )
            others = [release for release in ledger.book.standing() if release is not earlier]
            self._require_room(self._histories(others, members), key, mechanisms, limit)
            ledger.begin()  # a set of patients without a line before it would look like a lost ledger
            entry = Reserved(
                key=key,
                mechanisms=tuple(mechanisms),
                members=self._file.write_set(members),
                patients=patients or len(set(members)),
                about=about or {},
            )
            if earlier is not None:
                same = (earlier.reserved.mechanisms, earlier.reserved.members)
                if same == (entry.mechanisms, entry.members):
                    return earlier.reservation
                ledger.write(Kind.VOIDED, Voided(reservation=earlier.seq, reason="asked for otherwise"))
            return Reservation(ledger.write(Kind.RESERVED, entry).seq, key)

    def commit(self, reservation: Reservation, update: bytes) -> Release:
        """Record that an update is made and may leave; it and the record are on disk when this returns.

        The same update may be committed twice, as after a crash. Older updates of the run are removed.

        Raises
        ------
        PrivacyError
            The reservation was given up, or another update was committed under it: this one must not leave.
        """
        digest = hashlib.sha256(update).hexdigest()
        with self._file.opened(write=True) as ledger:
            release = ledger.book.releases.get(reservation.seq)
            if release is None or release.key != reservation.key or release.voided:
                raise PrivacyError(
                    f"{reservation.key}: nothing is reserved for it any more; it must not leave"
                )
            if release.committed is not None and release.committed.update != digest:
                raise PrivacyError(f"{reservation.key}: another update was released; this one must not leave")
            self._keep(digest, update)
            if release.committed is None:
                entry = Committed(reservation=release.seq, update=digest, bytes=len(update))
                ledger.write(Kind.COMMITTED, entry)
            self._forget_before(ledger.book, reservation.key)
            return ledger.book.releases[release.seq]

    def settle(self, keep: ReleaseKey | None = None) -> tuple[ReleaseKey, ...]:
        """Give up every open reservation but that of ``keep``, at a start: nothing of them left the site.

        An update leaves only after it was committed. Files that a crash left in the outbox are removed. Where
        the outbox is a run's own, other runs may be at work beside it: their reservations stand, and count.
        """
        if not self._file.exists():
            return ()
        with self._file.opened(write=True) as ledger:
            sweep(self._file.outbox)
            beside = None if keep is None or self._file.outbox.parent == self._file.folder else keep.run
            given_up = [
                r
                for r in ledger.book.standing()
                if r.open and r.key != keep and (beside is None or r.key.run == beside)
            ]
            for release in given_up:
                reason = "the site stopped before anything of it left"
                ledger.write(Kind.VOIDED, Voided(reservation=release.seq, reason=reason))
            known = {r.committed.update for r in ledger.book.releases.values() if r.committed is not None}
            for path in self._file.outbox.iterdir():
                if path.name not in known:
                    path.unlink()
            return tuple(release.key for release in given_up)

    def _require_room(
        self,
        found: list[spending.History],
        key: ReleaseKey,
        mechanisms: Sequence[Mechanism],
        limit: Budget,
    ) -> None:
        after = spending.worst(found, mechanisms, limit)
        if after <= limit.epsilon:
            return
        spent = spending.worst(found, (), limit)
        alone = spending.worst([], mechanisms, limit)
        left = spending.rounds_left(found, [m.model_copy(update={"steps": 1}) for m in mechanisms], limit)
        raise BudgetExhausted(
            f"{key}: the privacy budget does not allow it: epsilon {spent:.4g} is spent, this costs "
            f"{alone:.4g} alone and would make it {after:.4g}, the limit is {limit.epsilon:.4g} (delta "
            f"{limit.delta:g}, accountant {limit.accountant}); no such release is left, and "
            f"{left} of its steps would fit"
        )

    def _histories(
        self, releases: Sequence[Release], members: Collection[str] | None
    ) -> list[spending.History]:
        return spending.histories(releases, self._sets(releases), members)

    def _sets(self, releases: Sequence[Release]) -> Mapping[str, frozenset[str]]:
        return self._file.read_sets(release.reserved.members for release in releases)

    def _book(self) -> Book:
        if not self._file.exists():
            return Book()
        with self._file.opened(write=False) as ledger:
            return ledger.book

    def _keep(self, digest: str, update: bytes) -> None:
        path = self._file.outbox_path(digest)
        with suppress(FileNotFoundError):
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                return
        with replacing(path, mode=PRIVATE) as file:
            file.write(update)

    def _forget_before(self, book: Book, key: ReleaseKey) -> None:
        """Remove what the outbox holds of the run's earlier rounds and attempts: it was superseded."""
        done = [(r.key, r.committed.update) for r in book.releases.values() if r.committed is not None]
        earlier = {
            digest
            for other, digest in done
            if (other.run, other.what) == (key.run, key.what)
            and (other.round, other.attempt) < (key.round, key.attempt)
        }
        needed = {digest for other, digest in done if other == key or other.run != key.run}
        for digest in earlier - needed:
            self._file.outbox_path(digest).unlink(missing_ok=True)
