"""What a site answered, judged: an update that may be combined, or a reason in a word and in a sentence.

The words are those of ``SiteRound.code``; docs/ml-engineer.md has a line for each.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedglioma.case import GENES, SUBSETS
from fedglioma.config.run import Payload
from fedglioma.counts import task_weights
from fedglioma.errors import AggregationError, ProtocolError
from fedglioma.payload import Sliceable, forms
from fedglioma.weights import TRUNK, FlatArrays, Layout, Packed, digest_of
from fedglioma.wire import (
    PHASES,
    Refusal,
    StatisticsReply,
    TrainReply,
    body_of,
    is_refusal,
    payload_bytes,
    weights_of,
)
from fedglioma_server.aggregation import Update, update_norm
from fedglioma_server.linkage import check_tags
from fedglioma_server.records import SiteRound
from fedglioma_server.sitewords import site_words

_ABSENT = {
    ErrorCode.NODE_UNAVAILABLE: ("not_connected", "not connected"),
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: ("no_reply", "no reply within the round's time"),
}
_REFUSALS = {
    "BudgetExhausted": "budget",
    "PrivacyError": "privacy",
    "PolicyError": "policy",
    "DataError": "data",
    "ScaleError": "scale",
    "IdentityError": "identity",
}
_MOST_CASES = 10**6
_LONGEST_PHASE_S = 1e7


class Sink(Protocol):
    """Where the update of a site goes once it was judged: to disk, or into a masked sum."""

    def put(self, site: str, packed: Packed, metadata: Mapping[str, str]) -> Mapping[str, Sliceable]:
        """Take an update, and return it as arrays that are read in parts.

        Raises
        ------
        ProtocolError
            The update cannot be taken.
        """
        ...


class Unusable(AggregationError):
    """A reply that is left out, for a reason that ``code`` gives in a word."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Terms:
    """What a reply must be to count in a round."""

    round: int
    layout: Layout
    payload: Payload
    sent: FlatArrays


def believed(reply: StatisticsReply) -> StatisticsReply:
    """Return what a site says of itself with the genes' weights that follow from its counts.

    Raises
    ------
    ProtocolError
        No site can have such counts.
    """
    if set(reply.labels) != set(GENES):
        raise ProtocolError(f"it counts labels of {len(reply.labels)} genes, {len(GENES)} are expected")
    if not set(reply.modalities) <= set(SUBSETS):
        raise ProtocolError("it counts cases of unknown sequences")
    if max(reply.cases, reply.small_cell_limit) > _MOST_CASES:
        raise ProtocolError(f"its cases or its small-cell limit are above {_MOST_CASES}")
    cells = [*chain.from_iterable(reply.labels.values()), *reply.modalities.values(), reply.masks]
    if not all(cell is None or 0 <= cell <= reply.cases for cell in cells):
        raise ProtocolError(f"a count of it is not between 0 and its {reply.cases} cases")
    if any(sums.cases > reply.cases for sums in reply.landmarks.values()):
        raise ProtocolError(f"it sums landmarks of more than its {reply.cases} cases")
    check_tags(reply)
    trunk = reply.weights.get(TRUNK)
    if trunk is None or trunk > reply.cases:
        raise ProtocolError(f"its weight of the trunk is not between 0 and its {reply.cases} cases")
    weights = {TRUNK: trunk} | task_weights(reply.labels, reply.masks, reply.small_cell_limit)
    return reply.model_copy(update={"weights": weights})


def hidden(reply: StatisticsReply) -> StatisticsReply:
    """Return what a site says of itself beside masked numbers: whether it has anything to train on.

    Raises
    ------
    ProtocolError
        It says more, which was not asked, or less.
    """
    cells = [*chain.from_iterable(reply.labels.values()), *reply.modalities.values(), reply.masks]
    if reply.cases or reply.landmarks or reply.linkage or any(cell is not None for cell in cells):
        raise ProtocolError("it told counts that were to be masked")
    if set(reply.weights) != {TRUNK} or reply.weights[TRUNK] not in (0.0, 1.0):
        raise ProtocolError("it does not say whether it has anything to train on")
    if reply.small_cell_limit > _MOST_CASES:
        raise ProtocolError(f"its small-cell limit is above {_MOST_CASES}")
    return reply


def judge(
    message: Message, site: StatisticsReply, terms: Terms, sink: Sink
) -> tuple[SiteRound, Update | None]:
    """Return a site's line for the record, and its update where it can be used; the sink has it then."""
    if message.has_error():
        return _unanswered(message.error), None
    try:
        if is_refusal(message.content):
            return _refused(body_of(message.content, Refusal)), None
        reply = _report(message, site.site, terms)
        packed = _update(message, terms)
        with ThreadPoolExecutor(1) as beside:  # hashing takes a core's time, and leaves Python's lock
            hashing = beside.submit(digest_of, packed)
            norm = None if terms.payload == "masked" else _norm(site.site, packed, terms)
            digest = hashing.result()
        if reply.digest != digest:
            raise Unusable("digest", "the update is not the one that the site sent: its digest differs")
        stored = sink.put(site.site, packed, _metadata(reply, digest))
    except Unusable as error:
        return _left_out("error", error.code, str(error)), None
    except ProtocolError as error:
        return _left_out("error", "message", str(error)), None
    line = SiteRound(
        status="ok",
        weights=site.weights,
        steps=reply.steps,
        loss=reply.loss,
        loss_by_task=reply.loss_by_task,
        seconds={
            phase: reply.seconds[phase]
            for phase in PHASES
            if 0 <= reply.seconds.get(phase, -1.0) <= _LONGEST_PHASE_S
        },
        bytes_up=payload_bytes(message.content),
        update_norm=norm,
        digest=digest,
        ledger_head=reply.ledger_head or None,
    )
    return line, Update(site.site, site.weights, terms.payload, stored)


def _unanswered(error: Error) -> SiteRound:
    if error.code in _ABSENT:
        code, words = _ABSENT[error.code]
        return _left_out("no_reply", code, str(error.reason or words))
    return _left_out("error", "error", f"the site's app failed (Flower error {error.code})")


def _refused(refusal: Refusal) -> SiteRound:
    code = _REFUSALS.get(refusal.error, "refused")
    return _left_out("refused", code, f"{refusal.error}: {refusal.reason}")


def _left_out(status: Literal["error", "no_reply", "refused"], code: str, reason: str) -> SiteRound:
    return SiteRound(status=status, code=code, reason=site_words(reason))


def _report(message: Message, site: str, terms: Terms) -> TrainReply:
    reply = body_of(message.content, TrainReply)
    belongs = f"reply of {reply.site} for round {reply.round} does not belong here"
    if reply.site != site:
        raise Unusable("site", belongs)
    if reply.round != terms.round:
        raise Unusable("round", belongs)
    if reply.layout != terms.layout.digest:
        raise Unusable("layout", f"{belongs}: the update is of another network")
    if reply.payload != terms.payload:
        raise Unusable("payload", f"the update is {reply.payload}, {terms.payload} was agreed on")
    return reply


def _update(message: Message, terms: Terms) -> Packed:
    if len(message.content) != 2:
        raise Unusable("message", f"the reply carries {len(message.content)} records, 2 were agreed on")
    try:
        return weights_of(message.content, forms(terms.payload, terms.layout.sizes))
    except ProtocolError as error:
        raise Unusable("shape", str(error)) from None


def _norm(site: str, packed: Packed, terms: Terms) -> float:
    norm = update_norm(Update(site, {}, terms.payload, packed), terms.sent)
    if norm != norm or norm == float("inf"):
        raise Unusable("nonfinite", "the update holds numbers that are not finite")
    return norm


def _metadata(reply: TrainReply, digest: str) -> Mapping[str, str]:
    return {
        "site": reply.site,
        "round": str(reply.round),
        "payload": reply.payload,
        "layout": reply.layout,
        "digest": digest,
    }
