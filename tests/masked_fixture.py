"""A masked sum among made-up sites, with sites that drop out and processes that start again."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray
from pydantic import BaseModel

from fedglioma.nodekey import public_bytes
from fedglioma.privacy import masked_site
from fedglioma.privacy.fixed_point import Part, Words
from fedglioma.privacy.masked_server import MaskedSum
from fedglioma.privacy.masked_state import SiteState, keep, kept
from fedglioma.privacy.masked_wire import Session

T = TypeVar("T", bound=BaseModel)


def session_of(sites: int, length: int = 40, **terms: Any) -> Session:
    """Return a session for up to so many sites."""
    return Session(
        subject="run-1/7/update", parts=(Part(name="all", size=length, range=1.0),), sites=sites, **terms
    )


def words(sites: int, length: int = 40, seed: int = 0) -> dict[str, Words]:
    """Return a vector per site, of any 32-bit numbers."""
    rng = np.random.default_rng(seed)
    return {f"site{i}": rng.integers(0, 2**32, length, dtype=np.uint32) for i in range(sites)}


def exact_sum(vectors: Mapping[str, Words], names: Collection[str]) -> list[int]:
    """Return the sum modulo 2^32 in Python's integers."""
    length = len(next(iter(vectors.values())))
    return [sum(int(vectors[name][i]) for name in names) % 2**32 for i in range(length)]


def node_keys(vectors: Mapping[str, Any]) -> dict[str, ec.EllipticCurvePrivateKey]:
    """Return a node key per site."""
    return {name: ec.generate_private_key(ec.SECP384R1()) for name in vectors}


class Federation:
    """All sites and the server. What the server gets to see is in ``seen``; bodies go through JSON.

    ``resumed``: the state of every site goes through JSON between any two steps.
    ``folder``: the sites' states are written to files there and read again.
    """

    def __init__(
        self,
        session: Session,
        vectors: Mapping[str, Words],
        *,
        resumed: bool = False,
        folder: Path | None = None,
        keys: Mapping[str, ec.EllipticCurvePrivateKey] | None = None,
    ) -> None:
        self.session, self.vectors, self.folder, self.keys = session, vectors, folder, keys
        self.resumed = resumed
        self.server = MaskedSum(session)
        self.states: dict[str, SiteState] = {}
        self.seen: list[Any] = []

    def travel(self, body: T) -> T:
        """Return a body as it arrives."""
        self.seen.append(body)
        return type(body).model_validate_json(body.model_dump_json())

    def put(self, name: str, state: SiteState) -> None:
        if self.folder is not None:
            keep(self.folder / name, state)
            again = kept(self.folder / name)
            assert again == state
            state = again
        if self.resumed:
            state = SiteState.model_validate_json(state.model_dump_json())
        self.states[name] = state

    def offer(self, name: str) -> None:
        key = self.keys[name] if self.keys else None
        peers = {who: public_bytes(k) for who, k in self.keys.items() if who != name} if self.keys else None
        state, offer = masked_site.begin(self.session, name, key=key, peers=peers)
        self.put(name, state)
        self.server.add_offer(self.travel(offer))

    def share(self, name: str) -> None:
        state, shares = masked_site.share(self.states[name], self.travel(self.server.roster()))
        self.put(name, state)
        self.server.add_shares(self.travel(shares))

    def mask(self, name: str) -> None:
        vector = self.vectors[name].copy()
        self.put(name, masked_site.mask(self.states[name], self.travel(self.server.inbox(name)), vector))
        self.seen.append((name, vector))
        self.server.add_vector(name, vector)

    def consent(self, name: str) -> None:
        key = self.keys[name] if self.keys else None
        state, word = masked_site.consent(self.states[name], self.travel(self.server.survivors()), key=key)
        self.put(name, state)
        self.server.add_consent(self.travel(word))

    def reveal(self, name: str) -> None:
        state, answer = masked_site.reveal(self.states[name], self.travel(self.server.request()))
        self.put(name, state)
        self.server.add_revealed(self.travel(answer))

    @property
    def steps(self) -> tuple[Callable[[str], None], ...]:
        consents = (self.consent,) if self.keys else ()
        return (self.offer, self.share, self.mask, *consents, self.reveal)

    def until(self, last: str, gone: Mapping[str, str] | None = None) -> "Federation":
        """Go through the steps to ``last``, done too; a site in ``gone`` takes no part from its step on."""
        present = list(self.vectors)
        for step in self.steps:
            present = [name for name in present if (gone or {}).get(name) != step.__name__]
            for name in present:
                step(name)
            if step.__name__ == last:
                break
        return self


def numbers(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Return numbers between -1 and 1."""
    return np.random.default_rng(seed).uniform(-1, 1, count)
