"""A site's part in a masked sum: the short exchanges around it, and the masks themselves.

Where the site stands in a session lies in ``state/secure/<session>.json``, readable by its owner alone, so
that a site which was restarted between two messages goes on. A new session of a run ends the one before.
"""

from collections.abc import Mapping
from pathlib import Path

from fedglioma.chain import DIGEST
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, PrivacyError, ProtocolError
from fedglioma.masked_update import (
    by_group,
    coded_statistics,
    coded_update,
    statistics_parts,
    update_parts,
)
from fedglioma.nodekey import read_private_key, read_public_key
from fedglioma.pooled import Numbers
from fedglioma.privacy import masked_site
from fedglioma.privacy.masked_state import SiteState, forget, keep, kept
from fedglioma.privacy.masked_wire import KeyOffer
from fedglioma.training.learner import layout_of
from fedglioma.weights import FlatArrays, Packed
from fedglioma.wire import Masking, SecureReply, SecureRequest

FOLDER = "secure"


def exchange(request: SecureRequest, config: SiteConfig) -> SecureReply:
    """Return the site's answer to one of the exchanges; where it stands is on disk before it leaves.

    Raises
    ------
    PrivacyError
        What the server asks would let it read single sites' numbers, or the session is not known here.
    ProtocolError
        The request asks nothing, or for a sum of something else than the run's.
    """
    site = config.site
    if request.begin:
        return SecureReply(site=site, offer=_begin(request, config))
    path = _path(config, request.session.digest)
    state = _loaded(path)
    key = None if config.key is None else read_private_key(config.key)
    if request.roster is not None:
        state, shares = masked_site.share(state, request.roster)
        keep(path, state)
        return SecureReply(site=site, shares=shares)
    if request.survivors is not None:
        state, consent = masked_site.consent(state, request.survivors, key=key)
        keep(path, state)
        return SecureReply(site=site, consent=consent)
    if request.unmask is not None:
        state, revealed = masked_site.reveal(state, request.unmask)
        keep(path, state)
        return SecureReply(site=site, revealed=revealed)
    raise ProtocolError("secure sum: the server asked for nothing; do both ends run the same version?")


def mask_update(
    config: SiteConfig,
    settings: RunConfig,
    masking: Masking,
    expected: str,
    *,
    local: FlatArrays,
    received: FlatArrays,
    weights: Mapping[str, float],
) -> Packed:
    """Return the site's update under the masks of a session, as it travels.

    Parameters
    ----------
    expected : str
        What the session must be about.
    local, received : arrays
        Weights after and before training.
    weights : mapping
        The site's aggregation weights.

    Raises
    ------
    PrivacyError
        The session is not known here, is about something else, or would be masked twice.
    ProtocolError
        A number is outside the agreed range.
    """
    path, state = _for(config, masking, expected)
    parts = update_parts(layout_of(settings).sizes, settings.secure_range)
    vector = coded_update(local, received, weights, masking.totals, parts, state.session.sites)
    keep(path, masked_site.mask(state, masking.inbox, vector))
    return by_group(vector, parts)


def mask_statistics(config: SiteConfig, masking: Masking, expected: str, numbers: Numbers) -> bytes:
    """Return the site's counts and landmarks under the masks of a session, as they travel.

    Raises
    ------
    PrivacyError, ProtocolError
        As ``mask_update``.
    """
    path, state = _for(config, masking, expected)
    vector = coded_statistics(numbers, state.session.sites)
    keep(path, masked_site.mask(state, masking.inbox, vector))
    return vector.astype("<u4").tobytes()


def _begin(request: SecureRequest, config: SiteConfig) -> KeyOffer:
    session, settings = request.session, request.settings
    parts = (
        update_parts(layout_of(settings).sizes, settings.secure_range)
        if request.purpose == "train"
        else statistics_parts()
    )
    if session.parts != parts:
        raise ProtocolError("secure sum: the server would add up other numbers than this site's version has")
    folder = config.state / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _path(config, session.digest)
    state = kept(path)
    if state is not None:  # asked again: the same keys, or one session would have two of them
        return state.offer
    for other in folder.glob("*.json"):
        forget(other)
    key = None if config.key is None else read_private_key(config.key)
    state, offer = masked_site.begin(session, config.site, key=key, peers=_peers(config))
    keep(path, state)
    return offer


def _peers(config: SiteConfig) -> dict[str, bytes] | None:
    """Return the node keys of the other sites, by name, where the settings name a folder of them."""
    if config.peers is None:
        return None
    found = {path.stem: read_public_key(path) for path in sorted(config.peers.glob("*.pub"))}
    if not found:
        raise ConfigError(f"{config.peers}: holds no SITE.pub; put the other hospitals' public keys there")
    return {name: key for name, key in found.items() if name != config.site}


def _for(config: SiteConfig, masking: Masking, expected: str) -> tuple[Path, SiteState]:
    path = _path(config, masking.inbox.session)
    state = _loaded(path)
    if state.session.about != expected:
        raise PrivacyError("secure sum: the session was begun for another round or other settings")
    return path, state


def _loaded(path: Path) -> SiteState:
    state = kept(path)
    if state is None:
        raise PrivacyError(
            "secure sum: this site knows nothing of the session, its state was lost or is over; the server "
            "begins another one"
        )
    return state


def _path(config: SiteConfig, digest: str) -> Path:
    if not DIGEST.fullmatch(digest):
        raise ProtocolError("secure sum: a session without its digest")
    return config.state / FOLDER / f"{digest[:32]}.json"
