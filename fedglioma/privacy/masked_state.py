"""What a site remembers of a masked sum from one message to the next, in memory or in a private file.

The file holds private keys. It is written before an answer leaves, so that a site which restarts says
what it said before and nothing more. After the last answer no secret is left in it; what remains keeps the
site from a second sum of the same numbers, so it stays until the run is over.
"""

import stat
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from fedglioma.errors import PrivacyError
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.privacy.masked_wire import (
    FEWEST_SITES,
    Binary,
    Digest,
    Inbox,
    Key,
    KeyOffer,
    Name,
    Names,
    Pair,
    Revealed,
    Roster,
    Session,
)

Stage = Literal["offered", "shared", "masked", "agreed", "revealed"]


class Secrets(Binary):
    """A site's secrets of one session: two private keys, and a seed that all else follows from."""

    sealing: Key = Field(repr=False)
    masking: Key = Field(repr=False)
    seed: Key = Field(repr=False)


class SiteState(Binary):
    """Where a site stands in one session; each step returns the next one.

    ``peers`` are the node keys of the sites (PEM text), where this site knows them. ``least`` is how many
    sites it wants around it, whatever the server proposes. ``pairs`` are the shares
    that others made for it. ``vector`` is a keyed digest of what it masked. After it revealed, the secrets
    are gone and only the answer is left.
    """

    session: Session
    site: Name
    offer: KeyOffer
    stage: Stage = "offered"
    peers: dict[Name, str] | None = None
    least: int = Field(default=FEWEST_SITES, ge=FEWEST_SITES)
    secrets: Secrets | None = Field(default=None, repr=False)
    roster: Roster | None = None
    inbox: Inbox | None = Field(default=None, repr=False)
    pairs: dict[Name, Pair] = Field(default={}, repr=False)
    vector: Digest | None = Field(default=None, repr=False)
    survivors: Names | None = None
    answer: Revealed | None = Field(default=None, repr=False)

    def open_secrets(self) -> Secrets:
        """Return the secrets.

        Raises
        ------
        PrivacyError
            The site has revealed, and has them no more.
        """
        if self.secrets is None:
            raise PrivacyError(f"secure sum {self.session.id}: this site has revealed its shares; it is over")
        return self.secrets

    def known_roster(self) -> Roster:
        """Return the roster.

        Raises
        ------
        PrivacyError
            The site has not been told.
        """
        if self.roster is None:
            raise PrivacyError(f"secure sum {self.session.id}: the server has not said who takes part")
        return self.roster

    @property
    def bound(self) -> str:
        """Digest of session and roster: what keys and signatures are bound to."""
        return self.known_roster().digest(self.session)


def keep(path: Path, state: SiteState) -> None:
    """Write a state to its file, for its owner alone; what was there stays whole until the new one is."""
    with replacing(path, mode=PRIVATE) as file:
        file.write(state.model_dump_json().encode())


def kept(path: Path) -> SiteState | None:
    """Return the state in a file; None where there is no file.

    Raises
    ------
    PrivacyError
        Others can read the file, or it is damaged: the session is lost, and the server repeats the sum.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrivacyError(f"{path}: cannot be read ({error.strerror}); correct its owner or mode") from None
    if stat.S_IMODE(mode) & 0o077:
        raise PrivacyError(f"{path}: others can read this site's mask keys; remove the file")
    try:
        return SiteState.model_validate_json(content)
    except ValidationError:
        raise PrivacyError(
            f"{path}: damaged; remove it, and the sum it belongs to is done again with new keys"
        ) from None


def forget(path: Path) -> None:
    """Remove a state's file, where there is one."""
    path.unlink(missing_ok=True)
