"""The masks on a sum: their secrets put together from shares, and compared with what was announced."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from fedglioma.errors import AggregationError
from fedglioma.privacy import shamir
from fedglioma.privacy.key_agreement import KEY_BYTES, public_of, shared_key
from fedglioma.privacy.masked_wire import (
    MOST_SITES,
    Binary,
    Consent,
    KeyOffer,
    Name,
    Names,
    Revealed,
    Roster,
    SealedShares,
    Session,
    commitment_of,
    pair_text,
)

Phase = Literal["keys", "shares", "vectors", "unmasking", "done"]


class ServerState(Binary):
    """What the server knows besides the running sum; nothing in it is secret from the server."""

    session: Session
    phase: Phase = "keys"
    offers: dict[Name, KeyOffer] = Field(default={}, max_length=MOST_SITES)
    shares: dict[Name, SealedShares] = Field(default={}, max_length=MOST_SITES)
    added: Names = ()
    consents: dict[Name, Consent] = Field(default={}, max_length=MOST_SITES)
    revealed: dict[Name, Revealed] = Field(default={}, max_length=MOST_SITES)
    suspects: dict[Name, str] = Field(default={}, description="sites whose shares were wrong, and how")

    @property
    def place(self) -> str:
        """What an error begins with."""
        return f"secure sum {self.session.id}: "

    @property
    def roster(self) -> Roster:
        """Everybody whose keys came."""
        return Roster(offers=tuple(self.offers[name] for name in sorted(self.offers)))

    @property
    def least(self) -> int:
        """How many sites must survive, and reveal."""
        return self.session.least(len(self.offers))

    @property
    def dropped(self) -> tuple[str, ...]:
        """Sites with masks in others' vectors, and no vector of their own in the sum."""
        return tuple(sorted(set(self.shares) - set(self.added)))


@dataclass(frozen=True)
class Opened:
    """What the shares gave: survivors' seeds, the others' mask keys, and what was wrong."""

    seeds: dict[str, bytes] = field(repr=False)
    keys: dict[str, bytes] = field(repr=False)
    suspects: dict[str, str]
    refusal: AggregationError | None


def put_together(state: ServerState) -> Opened:
    """Return all secrets behind the masks that are left on the sum, each as its owner announced it.

    Nothing is ever returned that does not match: then ``refusal`` says which sites to leave out.
    """
    points = state.roster.points
    found: dict[str, bytes] = {}
    suspects: dict[str, str] = {}
    for owner in sorted(state.shares):
        try:
            found[owner], wrong = _secret(state, points, owner)
        except AggregationError:
            continue
        names = [name for name, point in points.items() if point in wrong]
        suspects |= dict.fromkeys(names, f"a wrong share of what {owner} gave out")
    failed = sorted(set(state.shares) - set(found))
    return Opened(
        seeds={name: secret for name, secret in found.items() if name in state.added},
        keys={name: secret for name, secret in found.items() if name not in state.added},
        suspects=suspects,
        refusal=_refusal(state, failed, sorted(suspects)) if failed else None,
    )


def masks_of(state: ServerState, opened: Opened) -> Iterator[tuple[bytes, bool]]:
    """Give the keys of all streams that are left on the sum, and whether each is to be subtracted."""
    for seed in opened.seeds.values():
        yield seed, True
    bound = state.roster.digest(state.session)
    for dropped, private in opened.keys.items():
        for name in state.added:
            about = pair_text("mask", bound, *sorted((name, dropped)))
            # The survivor added the stream where its own name comes first, and subtracted it otherwise.
            yield shared_key(private, state.offers[name].masking, about), name < dropped


def _secret(state: ServerState, points: dict[str, int], owner: str) -> tuple[bytes, frozenset[int]]:
    survived = owner in state.added
    shares = {
        points[site]: shamir.from_bytes((said.seeds if survived else said.keys)[owner])
        for site, said in state.revealed.items()
    }
    number, wrong = shamir.join_checked(shares, state.least, lambda found: _is_of(state, owner, found))
    return number.to_bytes(KEY_BYTES, "big"), wrong


def _is_of(state: ServerState, owner: str, number: int) -> bool:
    """Whether a number is the secret that its owner announced: a seed, or a mask key."""
    if number >= 2 ** (8 * KEY_BYTES):
        return False
    secret = number.to_bytes(KEY_BYTES, "big")
    if owner in state.added:
        return commitment_of(state.session.digest, owner, secret) == state.shares[owner].commitment
    return public_of(secret) == state.offers[owner].masking


def _refusal(state: ServerState, owners: list[str], suspects: list[str]) -> AggregationError:
    holders = ", ".join(sorted(state.revealed))
    if len(owners) == 1 and not suspects:
        blame = f"leave out {owners[0]}, which gave out wrong ones, or whichever of {holders} changed one"
    elif suspects:
        blame = f"leave out {', '.join(suspects)}, which sent wrong ones"
    else:
        blame = f"one of {holders} sent wrong ones; leave them out in turn"
    return AggregationError(
        f"{state.place}the shares do not give what {', '.join(owners)} announced; {blame}, "
        "and repeat the sum with new keys"
    )
