"""Patients who seem to be at two hospitals: tags that came from both, counted as carefully as they can be.

The server has no key, so it sees that two tags are the same and not what they stand for. How many patients
stand behind equal tags it can only bound from below: each gives one tag of a person and up to four of images.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Final

from fedglioma.errors import ProtocolError
from fedglioma.linkage import IMAGE, IMAGES_PER_CASE, PERSON
from fedglioma.wire import StatisticsReply
from fedglioma_server.records import Linkage, SharedPatients

_PER_CASE: Final = {PERSON: 1, IMAGE: IMAGES_PER_CASE}


def check_tags(reply: StatisticsReply) -> None:
    """Raise ``ProtocolError`` where a site sends more tags than so many cases can have, or one twice."""
    if len(set(reply.linkage)) < len(reply.linkage):
        raise ProtocolError("it sends a linkage tag twice")
    for kind, each in _PER_CASE.items():
        count = sum(tag.startswith(kind) for tag in reply.linkage)
        if count > each * reply.cases:
            raise ProtocolError(f"it sends {count} linkage tags {kind} of {reply.cases} cases")


def shared_tags(replies: Iterable[StatisticsReply]) -> dict[str, tuple[str, ...]]:
    """Return, for each site that has any, those of its own tags that came from another site too."""
    holders: dict[str, list[str]] = {}
    for reply in replies:
        for tag in set(reply.linkage):
            holders.setdefault(tag, []).append(reply.site)
    found: dict[str, list[str]] = {}
    for tag, sites in sorted(holders.items()):
        if len(sites) > 1:
            for site in sites:
                found.setdefault(site, []).append(tag)
    return {site: tuple(tags) for site, tags in sorted(found.items())}


def linkage_record(
    replies: Iterable[StatisticsReply],
    shared: Mapping[str, tuple[str, ...]],
    before: Linkage | None = None,
) -> Linkage:
    """Return which sites were compared, and by how many patients at least each two of them overlap.

    A count below the larger small-cell limit of the two is None, a larger one rounded down to a multiple of
    it. Pairs found ``before`` stay: a site that left the run held the patients all the same.
    """
    limits = {reply.site: reply.small_cell_limit for reply in replies if reply.linkage}
    pairs = {pair.sites: pair for pair in (before.pairs if before is not None else [])}
    for one, other in combinations(sorted(limits), 2):
        both = set(shared.get(one, ())) & set(shared.get(other, ()))
        if both:
            limit = max(limits[one], limits[other])
            least = _patients(both)
            told = least // limit * limit or None
            pairs[one, other] = SharedPatients(sites=(one, other), at_least=told, small_cell_limit=limit)
    compared = {*limits, *(before.compared if before is not None else [])}
    return Linkage(compared=sorted(compared), pairs=[pairs[sites] for sites in sorted(pairs)])


def words_of(pair: SharedPatients) -> str:
    """Return what is known of two sites' shared patients, as in ``at least 10 patients``."""
    if pair.at_least is not None:
        return f"at least {pair.at_least} patient{'' if pair.at_least == 1 else 's'}"
    return f"at least 1 patient (fewer than {pair.small_cell_limit} by what can be counted)"


def _patients(tags: Iterable[str]) -> int:
    """Return how many patients stand behind tags at least."""
    each = {kind: sum(tag.startswith(kind) for tag in tags) for kind in _PER_CASE}
    return max(-(-count // _PER_CASE[kind]) for kind, count in each.items())
