"""A site's part in a masked sum: the short exchanges around it, and the masks themselves.

Where the site stands in the sum of a subject (a run's round) lies in ``state/secure/<subject>.json``,
readable by its owner alone, so that a site which was restarted between two messages goes on. Whose sum it
helped to unmask stays in ``<subject>.done``: a server that lost the sum may ask for it again, but never over
other sites, as two such sums would differ by a single site's numbers. That it sent masked numbers stays known
by ``<subject>.masked``, whatever becomes of the sum: the same numbers never leave as they are.

What a site trains follows from the run's seed, its name, the round and the weights that it was sent, so that
two runs can have the same numbers. Over whom a sum of steps from some weights was unmasked is therefore kept
by these weights, too, in ``<digest>.weights``, whatever the server calls the run.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, PrivacyError, ProtocolError
from fedglioma.masked_update import (
    by_group,
    coded_statistics,
    coded_update,
    shares,
    statistics_parts,
    subject,
    update_parts,
)
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.nodekey import read_private_key, read_public_key
from fedglioma.pooled import Numbers
from fedglioma.privacy import masked_site
from fedglioma.privacy.masked_state import SiteState, forget, keep, kept
from fedglioma.privacy.masked_wire import KeyOffer
from fedglioma.training.learner import layout_of
from fedglioma.weights import FlatArrays, Packed, digest_of
from fedglioma.wire import Masking, SecureReply, SecureRequest, StatisticsRequest, TrainRequest

logger = logging.getLogger(__name__)

FOLDER = "secure"
DONE = ".done"
MASKED = ".masked"
WEIGHTS = ".weights"


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
    path = _path(config, request.session.subject)
    state = _loaded(path)
    if state.session != request.session:
        raise PrivacyError("secure sum: the server goes on with another sum than it began here")
    key = None if config.key is None else read_private_key(config.key)
    if request.roster is not None:
        state, shares = masked_site.share(state, request.roster)
        keep(path, state)
        return SecureReply(site=site, shares=shares)
    if request.survivors is not None:
        _require_same(path, request.survivors.survivors)
        state, consent = masked_site.consent(state, request.survivors, key=key)
        keep(path, state)
        return SecureReply(site=site, consent=consent)
    if request.unmask is not None:
        _require_same(path, request.unmask.survivors)
        state, revealed = masked_site.reveal(state, request.unmask)
        _remember(path, request.unmask.survivors)
        keep(path, state)
        return SecureReply(site=site, revealed=revealed)
    raise ProtocolError("secure sum: the server asked for nothing; do both ends run the same version?")


def mask_update(
    config: SiteConfig,
    asked: TrainRequest,
    masking: Masking,
    *,
    local: FlatArrays,
    received: FlatArrays,
    weights: Mapping[str, float],
) -> Packed:
    """Return the site's update under the masks of a session, as it travels.

    Parameters
    ----------
    asked : TrainRequest
        The round that the sum must be of.
    local, received : arrays
        Weights after and before training.
    weights : mapping
        The site's aggregation weights.

    Raises
    ------
    PrivacyError
        The session is not known here, is about something else, or would be masked twice; or the sum would
        be nearly this site's step.
    ProtocolError
        A number is outside the agreed range.
    """
    if masking.subject != subject("train", asked.run, asked.round):
        raise PrivacyError("secure sum: the server would add this round's update up as another round's")
    path, state = _for(config, masking, asked.agreed(digest_of(received), masking.totals))
    parts = update_parts(layout_of(asked.settings).sizes, asked.settings.secure_range)
    vector = coded_update(local, received, weights, masking.totals, parts, state.session.sites)
    with replacing(path.with_suffix(MASKED), mode=PRIVATE) as file:
        file.write(digest_of(received).encode("ascii"))
    keep(path, masked_site.mask(state, masking.inbox, vector))
    return by_group(vector, parts)


def mask_statistics(
    config: SiteConfig, masking: Masking, asked: StatisticsRequest, numbers: Numbers
) -> bytes:
    """Return the site's counts and landmarks under the masks of a session, as they travel.

    Raises
    ------
    PrivacyError, ProtocolError
        As ``mask_update``.
    """
    if not masking.subject.startswith("statistics:"):
        raise PrivacyError("secure sum: the server would add counts up as something else")
    path, state = _for(config, masking, asked.agreed())
    vector = coded_statistics(numbers, state.session.sites)
    keep(path, masked_site.mask(state, masking.inbox, vector))
    return vector.astype("<u4").tobytes()


def require_unmasked_before(config: SiteConfig, asked: TrainRequest) -> None:
    """Refuse to send a round as it is that was begun under masks: its sum would then hide nothing.

    Raises
    ------
    PrivacyError
        It was.
    """
    path = _path(config, subject("train", asked.run, asked.round))
    if any(trace.exists() for trace in (path, path.with_suffix(DONE), path.with_suffix(MASKED))):
        raise PrivacyError("secure sum: this round was begun under masks and does not leave without them")


def require_company(masking: Masking, weights: Mapping[str, float]) -> None:
    """Refuse a sum that would be nearly this site's step; log the heads to which it will add nothing.

    Raises
    ------
    PrivacyError
        By the server's totals it would be.
    """
    found = shares(weights, masking.totals)
    silent = [group for group, share in found.items() if not share and weights.get(group)]
    if silent:
        logger.warning(
            "masked update: nothing added to %s: too few hospitals teach it, and their sum could show the "
            "step of one of them",
            ", ".join(silent),
        )


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
    path = _path(config, session.subject)
    forget_sums(config, but=path)
    before = kept(path)
    if before is not None and before.stage == "revealed":
        before = None  # another sum of the same sites may follow; ``_require_same`` sees to it
    key = None if config.key is None else read_private_key(config.key)
    state, offer = masked_site.begin(
        session, config.site, key=key, peers=_peers(config), least=config.least_masked, before=before
    )
    keep(path, state)
    return offer


def forget_sums(config: SiteConfig, *, but: Path | None = None) -> None:
    """Remove the secrets of sums that are over, or were given up; what is remembered without them stays."""
    for path in (config.state / FOLDER).glob("*.json"):
        if path != but:
            forget(path)


def _require_same(path: Path, survivors: Sequence[str]) -> None:
    """Refuse to unmask a sum of a subject, or of steps from some weights, over other sites than before."""
    if _before(path.with_suffix(DONE)) not in (None, sorted(survivors)):
        raise PrivacyError(
            "secure sum: this site helped to unmask the same round over other sites before; the difference "
            "would be a single site's update"
        )
    trained = _trained_from(path)
    if trained is not None and _before(trained) not in (None, sorted(survivors)):
        raise PrivacyError(
            "secure sum: this site helped to unmask a sum of steps from the same weights over other sites "
            "before, in another run perhaps; the difference would be a single site's update. The run must "
            "begin with other weights: another seed, or another model where it starts from one"
        )


def _remember(path: Path, survivors: Sequence[str]) -> None:
    for place in (_trained_from(path), path.with_suffix(DONE)):
        if place is not None:
            with replacing(place, mode=PRIVATE) as file:
                file.write(json.dumps(sorted(survivors)).encode("ascii"))


def _trained_from(path: Path) -> Path | None:
    """Return where stands over whom sums of steps from a round's weights were unmasked; None for counts."""
    try:
        digest = path.with_suffix(MASKED).read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise _unreadable(path.with_suffix(MASKED)) from None
    return path.with_name(f"{digest[:32]}{WEIGHTS}") if digest else None


def _before(place: Path) -> object:
    """Return the sites in a file of this module; None where there is no file."""
    try:
        return json.loads(place.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise _unreadable(place) from None


def _unreadable(place: Path) -> PrivacyError:
    return PrivacyError(f"{place}: cannot be read; this site does not unmask the sum again")


def _peers(config: SiteConfig) -> dict[str, bytes] | None:
    """Return the node keys of the other sites, by name, where the settings name a folder of them."""
    if config.peers is None:
        return None
    found = {path.stem: read_public_key(path) for path in sorted(config.peers.glob("*.pub"))}
    if not found:
        raise ConfigError(f"{config.peers}: holds no SITE.pub; put the other hospitals' public keys there")
    return {name: key for name, key in found.items() if name != config.site}


def _for(config: SiteConfig, masking: Masking, expected: str) -> tuple[Path, SiteState]:
    path = _path(config, masking.subject)
    state = _loaded(path)
    if state.session.digest != masking.inbox.session or state.session.subject != masking.subject:
        raise PrivacyError("secure sum: the server goes on with another sum than it began here")
    if state.session.about != expected:
        raise PrivacyError("secure sum: the sum was begun for another round, other terms or other weights")
    return path, state


def _loaded(path: Path) -> SiteState:
    state = kept(path)
    if state is None:
        raise PrivacyError(
            "secure sum: this site knows nothing of the sum, what it had of it was lost; the server begins "
            "anew"
        )
    return state


def _path(config: SiteConfig, subject: str) -> Path:
    return config.state / FOLDER / f"{hashlib.sha256(subject.encode()).hexdigest()[:32]}.json"
