"""A site's side of a masked sum: the server learns the sum over the sites, and of one site nothing.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017,
figure 4: to its numbers each site adds a mask of its own and, with each other site, one that the two have in
common and that cancels in the sum. Shares of the secrets behind the masks let the server finish when sites
drop out, and one site's word never gives it both masks of the same site.

Each step takes the state and returns the next. Keep that (``masked_state.keep``) before the answer leaves:
after a crash the same step then gives the same answer, and never another one.
"""

import hashlib
import hmac
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedglioma.errors import ConfigError, PrivacyError, ProtocolError
from fedglioma.privacy import shamir
from fedglioma.privacy.fixed_point import Words
from fedglioma.privacy.key_agreement import (
    derive,
    new_secret,
    public_of,
    seal,
    shared_key,
    sign,
    told,
    unseal,
)
from fedglioma.privacy.mask_stream import add_stream
from fedglioma.privacy.masked_checks import (
    at_stage,
    check_consents,
    check_roster,
    checked_survivors,
    of_session,
    place_of,
)
from fedglioma.privacy.masked_state import Secrets, SiteState
from fedglioma.privacy.masked_wire import (
    FEWEST_SITES,
    Consent,
    Inbox,
    KeyOffer,
    Revealed,
    Roster,
    SealedShares,
    Session,
    Survivors,
    UnmaskRequest,
    commitment_of,
    consent_text,
    pair_text,
)


def begin(
    session: Session,
    site: str,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    peers: Mapping[str, bytes] | None = None,
    least: int | None = None,
    before: SiteState | None = None,
) -> tuple[SiteState, KeyOffer]:
    """Return the first state, with fresh secrets, and the public keys to send.

    Asked again for the session of ``before``, both are as they were.

    Parameters
    ----------
    session : Session
        As the server proposes it. Whether its terms are acceptable, a larger minimum say, is for the
        caller to check first.
    site : str
    key : private key, optional
        The site's node key; with it the offer is signed.
    peers : mapping, optional
        Node keys of the other sites by name (PEM, as ``nodekey.read_public_key`` gives them). With them the
        site takes part only with these, and only on their signatures. Without, it trusts the server to
        pass on the others' keys and not its own inventions.
    least : int, optional
        How many sites the roster must have, this one among them, whatever the server proposes: 3 without
        it, where peers are known two thirds of these and itself.
    before : SiteState, optional
        What this site keeps of the same subject, to be given wherever there is something.

    Raises
    ------
    PrivacyError
        This site already helped to unmask a sum of this subject, or the attempt is not a new one.
    ConfigError
        Peers are known, and the site has no key by which they could know it; or two have one key.
    """
    if before is not None and before.session.subject == session.subject:
        if before.session == session and before.site == site:
            return before, before.offer
        _check_again(before, session)
    if peers is not None and key is None:
        raise ConfigError(
            "secure sum: the other sites' node keys are given and this site has none; give it one, "
            "or the others could not know it"
        )
    if peers is not None and len(set(peers.values())) != len(peers):
        raise ConfigError("secure sum: two sites have one node key in the list; one may be made up")
    secrets = Secrets(sealing=new_secret(), masking=new_secret(), seed=new_secret())
    offer = KeyOffer(
        session=session.digest,
        site=site,
        sealing=public_of(secrets.sealing),
        masking=public_of(secrets.masking),
    )
    if key is not None:
        offer = offer.model_copy(update={"signature": sign(key, offer.signed)})
    known = None if peers is None else {name: pem.decode("ascii", "replace") for name, pem in peers.items()}
    return SiteState(
        session=session,
        site=site,
        offer=offer,
        peers=known,
        least=max(least or FEWEST_SITES, _usual(peers)),
        secrets=secrets,
    ), offer


def share(state: SiteState, roster: Roster) -> tuple[SiteState, SealedShares]:
    """Return the site's secrets in shares, sealed for each other site of the roster.

    Raises
    ------
    PrivacyError
        The roster is not one to trust: too few sites, a site or key twice, another key in this site's
        place, an unknown or unsigned site where the peers are known; or it changed.
    """
    at_stage(state, "offered", "shared")
    if state.roster is not None and state.roster != roster:
        raise PrivacyError(place_of(state) + "the server names other sites than before; it must begin anew")
    check_roster(state, roster)
    state = state.model_copy(update={"roster": roster, "stage": "shared"})
    secrets, offers = state.open_secrets(), roster.by_site
    sealed = {}
    for name, pair in _deal(state).items():
        if name != state.site:
            about = pair_text("share", state.bound, state.site, name)
            sealed[name] = seal(shared_key(secrets.sealing, offers[name].sealing, about), pair, about)
    commitment = commitment_of(state.session.digest, state.site, _self_seed(state))
    return state, SealedShares(
        session=state.session.digest, site=state.site, commitment=commitment, sealed=sealed
    )


def mask(state: SiteState, inbox: Inbox, vector: Words) -> SiteState:
    """Mask a vector of shape (session.length,) in place: after this it may leave, and before it must not.

    It costs one stream of numbers per site whose shares arrived.

    Raises
    ------
    PrivacyError
        Too few shares arrived, one cannot be opened, or the server delivers others than before; or the
        numbers are not those masked before, whose difference the server would see.
    ProtocolError
        The vector has another length or type.
    """
    at_stage(state, "shared", "masked")
    if vector.dtype != np.uint32 or vector.shape != (state.session.length,) or not vector.flags.c_contiguous:
        raise ProtocolError(
            f"{place_of(state)}the vector should be uint32 ({state.session.length},) in one piece, "
            f"found {vector.dtype} {vector.shape}"
        )
    if state.inbox is not None and state.inbox != inbox:
        raise PrivacyError(
            place_of(state) + "the server delivers other shares than before; it must begin anew"
        )
    pairs = _opened(state, inbox)
    secrets = state.open_secrets()
    content = hmac.new(derive(secrets.seed, told("digest")), vector.data, hashlib.sha256).hexdigest()
    if state.vector is not None and state.vector != content:
        raise PrivacyError(
            place_of(state) + "other numbers were masked before; the server could tell their difference, "
            "so the sum must be done with new keys"
        )
    add_stream(vector, _self_seed(state))
    for name in sorted(pairs):
        add_stream(vector, _pair_key(state, name), subtract=state.site > name)
    return state.model_copy(update={"inbox": inbox, "pairs": pairs, "vector": content, "stage": "masked"})


def consent(
    state: SiteState, told_us: Survivors, *, key: ec.EllipticCurvePrivateKey | None = None
) -> tuple[SiteState, Consent]:
    """Return the site's word on who survived; it will stand by no other list.

    Raises
    ------
    PrivacyError
        The list is not one to stand by, or not the one of before.
    """
    at_stage(state, "masked", "agreed")
    survivors = checked_survivors(state, told_us.session, told_us.survivors)
    state = state.model_copy(update={"survivors": survivors, "stage": "agreed"})
    signature = None if key is None else sign(key, consent_text(state.bound, survivors))
    return state, Consent(session=state.session.digest, site=state.site, signature=signature)


def reveal(state: SiteState, request: UnmaskRequest) -> tuple[SiteState, Revealed]:
    """Return the shares that unmask the sum over the survivors; the state left has no secrets any more.

    Of a survivor the share of its own mask's seed, of a site that dropped out the share of its mask key:
    never both. Asked again for the same survivors, the answer is the same.

    Raises
    ------
    PrivacyError
        The list of survivors is not one to stand by, or not the one of before; or, where the peers are
        known, too few of them signed it.
    """
    at_stage(state, "masked", "agreed", "revealed")
    survivors = checked_survivors(state, request.session, request.survivors)
    if state.answer is not None:
        return state, state.answer
    if state.peers is not None:
        check_consents(state, survivors, request)
    pairs = state.pairs | {state.site: _deal(state)[state.site]}
    answer = Revealed(
        session=state.session.digest,
        site=state.site,
        seeds={name: pairs[name][: shamir.SHARE_BYTES] for name in survivors},
        keys={name: pair[shamir.SHARE_BYTES :] for name, pair in pairs.items() if name not in survivors},
    )
    gone: dict[str, object] = {"secrets": None, "pairs": {}, "inbox": None, "vector": None}
    now: dict[str, object] = {"survivors": survivors, "answer": answer, "stage": "revealed"}
    return state.model_copy(update=gone | now), answer


def _usual(peers: Mapping[str, bytes] | None) -> int:
    """Return two thirds of the sites that know each other, rounded up: so many may be away."""
    return FEWEST_SITES if peers is None else max(FEWEST_SITES, -(-2 * (len(peers) + 1) // 3))


def _check_again(before: SiteState, session: Session) -> None:
    """Refuse a second sum of numbers that one was unmasked of: the two could differ by one site."""
    if before.stage == "revealed":
        raise PrivacyError(
            f"secure sum {session.id}: this site has helped to unmask attempt {before.session.attempt}; "
            "a second sum of the same numbers could show a single site's; go on with the next round"
        )
    if session.attempt <= before.session.attempt:
        raise PrivacyError(
            f"secure sum {session.id}: attempt {before.session.attempt} was begun with other terms or names; "
            "a new one needs a higher number"
        )


def _self_seed(state: SiteState) -> bytes:
    return derive(state.open_secrets().seed, told("self mask"))


def _deal(state: SiteState) -> dict[str, bytes]:
    """Return for every site of the roster, this one too, its pair of shares; the same each time."""
    secrets, roster = state.open_secrets(), state.known_roster()
    points = roster.points
    rest = state.session.least(len(points)) - 1
    pairs = dict.fromkeys(points, b"")
    for purpose, secret in (("seed", _self_seed(state)), ("key", secrets.masking)):
        drawn = shamir.coefficients(derive(secrets.seed, told("shares", purpose, state.bound)), rest)
        shares = shamir.split(int.from_bytes(secret, "big"), drawn, tuple(points.values()))
        for name, point in points.items():
            pairs[name] += shamir.to_bytes(shares[point])
    return pairs


def _opened(state: SiteState, inbox: Inbox) -> dict[str, bytes]:
    """Return the pairs of shares in an inbox, opened."""
    of_session(state, inbox.session)
    roster, secrets = state.known_roster(), state.open_secrets()
    offers = roster.by_site
    strange = sorted(set(inbox.sealed) - set(offers) | set(inbox.sealed) & {state.site})
    if strange:
        raise PrivacyError(f"{place_of(state)}shares of {strange[0]}, which is no other site of this sum")
    least = state.session.least(len(offers))
    if len(inbox.sealed) + 1 < least:
        raise PrivacyError(
            f"{place_of(state)}shares of {len(inbox.sealed) + 1} sites arrived, {least} are needed"
        )
    pairs = {}
    for name, sealed in inbox.sealed.items():
        about = pair_text("share", state.bound, name, state.site)
        pair = unseal(shared_key(secrets.sealing, offers[name].sealing, about), sealed, about)
        if pair is None:
            raise PrivacyError(
                f"{place_of(state)}the shares of site {name} were changed, or are not for this site"
            )
        pairs[name] = pair
    return pairs


def _pair_key(state: SiteState, name: str) -> bytes:
    about = pair_text("mask", state.bound, *sorted((state.site, name)))
    other = state.known_roster().by_site[name].masking
    return shared_key(state.open_secrets().masking, other, about)
