"""What a site refuses in a masked sum: lists and messages with which a server could look at one site.

Each function raises ``PrivacyError``, in words that name sites and never numbers, and returns nothing else.
"""

from collections import Counter
from collections.abc import Mapping

from fedglioma.errors import PrivacyError, ProtocolError
from fedglioma.privacy.key_agreement import is_signed
from fedglioma.privacy.masked_state import SiteState, Stage
from fedglioma.privacy.masked_wire import KeyOffer, Roster, UnmaskRequest, consent_text


def place_of(state: SiteState) -> str:
    """Return what a refusal begins with."""
    return f"secure sum {state.session.id}: "


def at_stage(state: SiteState, *stages: Stage) -> None:
    """Refuse a message that comes out of turn."""
    if state.stage not in stages:
        raise PrivacyError(
            f"{place_of(state)}this site is at {state.stage!r}, the message is for one at {stages[0]!r}; "
            "messages came out of turn"
        )


def of_session(state: SiteState, session: str) -> None:
    """Refuse a message of another sum."""
    if session != state.session.digest:
        raise ProtocolError(place_of(state) + "a message belongs to another sum")


def check_roster(state: SiteState, roster: Roster) -> None:
    """Refuse a roster that a server which wants to know one site's numbers could have made."""
    place, offers = place_of(state), roster.offers
    state.session.least(len(offers))
    if len(offers) < state.least:
        raise PrivacyError(
            f"{place}{len(offers)} sites take part, this site wants {state.least} at least: of fewer, "
            "all others could work with the server; wait until more hospitals are connected"
        )
    twice = [name for name, times in Counter(offer.site for offer in offers).items() if times > 1]
    if twice:
        raise PrivacyError(f"{place}site {twice[0]} is listed twice")
    keys = Counter(key for offer in offers for key in (offer.sealing, offer.masking))
    shared = sorted({o.site for o in offers if keys[o.sealing] > 1 or keys[o.masking] > 1})
    if shared:
        raise PrivacyError(f"{place}sites {', '.join(shared)} have a key twice; one may be made up")
    own = roster.by_site.get(state.site)
    if own != state.offer:
        found = "is missing" if own is None else "has other keys than this site sent"
        raise PrivacyError(f"{place}{state.site} {found} in the server's list")
    for offer in offers:
        of_session(state, offer.session)
        if state.peers is not None and offer.site != state.site:
            _check_signed(state, offer, state.peers)


def _check_signed(state: SiteState, offer: KeyOffer, peers: Mapping[str, str]) -> None:
    place = f"{place_of(state)}site {offer.site} "
    if offer.site not in peers:
        raise PrivacyError(place + "is not among the sites whose node keys are known here")
    if offer.signature is None:
        raise PrivacyError(place + "did not sign its keys; its node key is known here, so it must")
    if not is_signed(peers[offer.site], offer.signature, offer.signed):
        raise PrivacyError(place + "has keys that its node key did not sign")


def checked_survivors(state: SiteState, session: str, named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the survivors in order, or refuse a list that would unmask too few or somebody else."""
    of_session(state, session)
    place, survivors = place_of(state), tuple(sorted(named))
    if state.survivors is not None and survivors != state.survivors:
        raise PrivacyError(place + "the server names other survivors than before; it could unmask one site")
    if state.survivors is not None:
        return survivors
    if len(set(survivors)) != len(survivors):
        raise PrivacyError(place + "a survivor is named twice")
    strange = sorted(set(survivors) - set(state.pairs) - {state.site})
    if strange:
        raise PrivacyError(f"{place}{strange[0]} is no site that gave shares, and cannot have survived")
    if state.site not in survivors:
        raise PrivacyError(place + "this site sent its numbers, and the server says that it dropped out")
    least = state.session.least(len(state.known_roster().offers))
    if len(survivors) < least:
        raise PrivacyError(f"{place}only {len(survivors)} sites survived, {least} are needed for a sum")
    return survivors


def check_consents(state: SiteState, survivors: tuple[str, ...], request: UnmaskRequest) -> None:
    """Refuse to unmask where too few sites were told the same; a word that is not theirs does not count."""
    if state.stage != "agreed":
        raise PrivacyError(place_of(state) + "asked to unmask before it was asked who survived")
    peers, text = state.peers or {}, consent_text(state.bound, survivors)
    signers = {state.site} | {
        word.site
        for word in request.consents
        if word.site in survivors and word.site in peers and word.signature is not None
        and is_signed(peers[word.site], word.signature, text)
    }  # fmt: skip
    least = state.session.least(len(state.known_roster().offers))
    if len(signers) < least:
        raise PrivacyError(
            f"{place_of(state)}{len(signers)} sites signed this list of survivors, {least} are needed"
        )
