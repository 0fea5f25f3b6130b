"""The server's side of a masked sum: it adds masked vectors as they come, and takes the masks off the sum.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017,
figure 4. One vector is held, the running sum, however many sites there are. What comes out is the exact sum
modulo 2^32 over the survivors, or an error: every secret that is put together is compared with what its
owner announced before anything is subtracted.
"""

from collections.abc import Container

import numpy as np

from fedglioma.errors import ProtocolError, QuorumError
from fedglioma.privacy import shamir
from fedglioma.privacy.fixed_point import Words
from fedglioma.privacy.key_agreement import is_usable
from fedglioma.privacy.mask_stream import add_stream
from fedglioma.privacy.masked_unmask import Phase, ServerState, masks_of, put_together
from fedglioma.privacy.masked_wire import (
    Consent,
    Inbox,
    KeyOffer,
    Revealed,
    Roster,
    SealedShares,
    Session,
    Survivors,
    UnmaskRequest,
)


class MaskedSum:
    """One masked sum, from the sites' keys to their total.

    The phases follow each other: ``add_offer`` until ``roster`` is called, ``add_shares`` until ``inbox``,
    ``add_vector`` until ``survivors``, then ``add_consent``, ``request``, ``add_revealed`` and ``total``.
    Whoever is missing when a phase ends is left out, and the sum goes on as long as there are enough.
    It lives as long as its process: a run that is resumed begins the round's sum anew, with new keys.
    """

    def __init__(self, session: Session) -> None:
        self.state = ServerState(session=session)
        self.sum: Words = np.zeros(session.length, np.uint32)

    def add_offer(self, offer: KeyOffer) -> None:
        """Take a site's keys.

        Raises
        ------
        ProtocolError
            It comes late, twice, is of another sum, or one site too many; the site is left out.
        """
        self._take(offer.site, offer.session, "keys", self.state.offers)
        most = self.state.session.sites
        if len(self.state.offers) >= most:
            raise ProtocolError(f"{self.state.place}{offer.site} is one more than the {most} sites agreed on")
        if not (is_usable(offer.sealing) and is_usable(offer.masking)):
            raise ProtocolError(f"{self.state.place}{offer.site} sent a key that is none, and is left out")
        self._now(offers=self.state.offers | {offer.site: offer})

    def roster(self) -> Roster:
        """Return everybody's keys, for all sites alike; no more are taken.

        Raises
        ------
        QuorumError
            There are too few sites.
        """
        if self.state.phase == "keys":
            self._enough(len(self.state.offers), self.state.session.minimum, "sent keys")
            self._now(phase="shares")
        return self.state.roster

    def add_shares(self, shares: SealedShares) -> None:
        """Take a site's sealed shares.

        Raises
        ------
        ProtocolError
            They come late, twice, of a site that is not in the roster, or not for exactly the others.
        """
        self._take(shares.site, shares.session, "shares", self.state.shares)
        if set(shares.sealed) | {shares.site} != set(self.state.offers) or shares.site in shares.sealed:
            raise ProtocolError(f"{self.state.place}{shares.site} did not send a share for each other site")
        self._now(shares=self.state.shares | {shares.site: shares})

    def inbox(self, site: str) -> Inbox:
        """Return what was sealed for one site, by all who sent shares; no more are taken.

        Raises
        ------
        QuorumError
            There are too few sites.
        ProtocolError
            The site itself sent no shares: it is out.
        """
        if self.state.phase == "shares":
            self._enough(len(self.state.shares), self.state.least, "sent shares")
            self._now(phase="vectors")
        if site not in self.state.shares:
            raise ProtocolError(f"{self.state.place}{site} sent no shares, and is left out")
        sealed = {name: own.sealed[site] for name, own in self.state.shares.items() if name != site}
        return Inbox(session=self.state.session.digest, sealed=sealed)

    def add_vector(self, site: str, vector: Words) -> None:
        """Add a site's masked vector, shape (length,), to the running sum; the vector is not kept.

        Raises
        ------
        ProtocolError
            It comes late, twice, of a site that sent no shares, or has another length or type.
        """
        self._take(site, self.state.session.digest, "vectors", self.state.added)
        if site not in self.state.shares:
            raise ProtocolError(f"{self.state.place}{site} sent no shares, and is left out")
        if vector.dtype != np.uint32 or vector.shape != self.sum.shape:
            raise ProtocolError(
                f"{self.state.place}the vector of {site} should be uint32 {self.sum.shape}, "
                f"found {vector.dtype} {vector.shape}"
            )
        self.sum += vector
        self._now(added=(*self.state.added, site))

    def survivors(self) -> Survivors:
        """Return whose vectors are in the sum, for all of them alike; no more are taken.

        Raises
        ------
        QuorumError
            There are too few: nobody would unmask their sum.
        """
        if self.state.phase == "vectors":
            self._enough(len(self.state.added), self.state.least, "sent masked numbers")
            self._now(phase="unmasking")
        return Survivors(session=self.state.session.digest, survivors=tuple(sorted(self.state.added)))

    def add_consent(self, consent: Consent) -> None:
        """Take a survivor's word on the list of survivors.

        Raises
        ------
        ProtocolError
            It comes out of turn, twice, or of no survivor.
        """
        self._take(consent.site, consent.session, "unmasking", self.state.consents)
        self._survived(consent.site)
        self._now(consents=self.state.consents | {consent.site: consent})

    def request(self) -> UnmaskRequest:
        """Return what all survivors are asked, with the words that came in."""
        told = self.survivors()
        return UnmaskRequest(
            session=told.session,
            survivors=told.survivors,
            consents=tuple(self.state.consents[name] for name in sorted(self.state.consents)),
        )

    def add_revealed(self, revealed: Revealed) -> None:
        """Take a survivor's shares.

        Raises
        ------
        ProtocolError
            They come out of turn, twice, of no survivor, or are not those that were asked for.
        """
        self._take(revealed.site, revealed.session, "unmasking", self.state.revealed)
        self._survived(revealed.site)
        if set(revealed.seeds) != set(self.state.added) or set(revealed.keys) != set(self.state.dropped):
            raise ProtocolError(
                f"{self.state.place}{revealed.site} did not send exactly the shares that were asked for"
            )
        for content in (*revealed.seeds.values(), *revealed.keys.values()):
            shamir.from_bytes(content)
        self._now(revealed=self.state.revealed | {revealed.site: revealed})

    def total(self) -> Words:
        """Return the sum over the survivors, modulo 2^32; the second time the same.

        Raises
        ------
        QuorumError
            Too few sites sent shares; more may still come.
        AggregationError
            The shares do not give what the sites announced; names the sites to leave out.
        """
        if self.state.phase == "done":
            return self.sum
        if self.state.phase != "unmasking":
            raise ProtocolError(
                f"{self.state.place}the masks cannot be taken off while {self.state.phase} come in"
            )
        self._enough(len(self.state.revealed), self.state.least, "sent the shares that unmask the sum")
        opened = put_together(self.state)
        self._now(suspects=self.state.suspects | opened.suspects)
        if opened.refusal is not None:
            raise opened.refusal
        for key, subtract in list(masks_of(self.state, opened)):  # all of them, or none
            add_stream(self.sum, key, subtract=subtract)
        self._now(phase="done")
        return self.sum

    def _now(self, **changed: object) -> None:
        self.state = self.state.model_copy(update=changed)

    def _take(self, site: str, session: str, phase: Phase, had: Container[str]) -> None:
        """Refuse what is of another sum, out of turn, or here already."""
        place = self.state.place
        if session != self.state.session.digest:
            raise ProtocolError(f"{place}a message of {site} belongs to another sum")
        if self.state.phase != phase:
            raise ProtocolError(
                f"{place}a message of {site} came while {self.state.phase} are due, not {phase}"
            )
        if site in had:
            raise ProtocolError(f"{place}{site} sent its {phase} twice; the first stay")

    def _survived(self, site: str) -> None:
        if site not in self.state.added:
            raise ProtocolError(f"{self.state.place}{site} is not in the sum, and is not asked")

    def _enough(self, found: int, needed: int, what: str) -> None:
        if found < needed:
            raise QuorumError(f"{self.state.place}{found} sites {what}, {needed} are needed")
