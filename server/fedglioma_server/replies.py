"""What a site answered, judged: an update that may be combined, or a reason in a word and in a sentence.

The words are those of ``SiteRound.code``; docs/ml-engineer.md has a line for each.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedglioma.config.run import Payload
from fedglioma.errors import AggregationError, ProtocolError
from fedglioma.payload import forms
from fedglioma.weights import FlatArrays, Layout, Packed, digest_of
from fedglioma.wire import (
    Refusal,
    StatisticsReply,
    TrainReply,
    body_of,
    is_refusal,
    payload_bytes,
    weights_of,
)
from fedglioma_server.aggregation import Update, update_norm
from fedglioma_server.records import SiteRound
from fedglioma_server.updates import Spool

_ABSENT = {
    ErrorCode.NODE_UNAVAILABLE: ("not_connected", "not connected"),
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: ("no_reply", "no reply within the round's time"),
}
_REFUSALS = {"PolicyError": "policy", "DataError": "data", "IdentityError": "identity"}
_LONGEST_REASON = 300


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


def judge(
    message: Message, site: StatisticsReply, terms: Terms, spool: Spool
) -> tuple[SiteRound, Update | None]:
    """Return a site's line for the record, and its update where it can be used; it then lies on disk."""
    if message.has_error():
        return _unanswered(message.error), None
    try:
        if is_refusal(message.content):
            return _refused(body_of(message.content, Refusal)), None
        reply = _report(message, site.site, terms)
        packed = _update(message, terms)
        with ThreadPoolExecutor(1) as beside:  # hashing takes a core's time, and leaves Python's lock
            hashing = beside.submit(digest_of, packed)
            norm = _norm(site.site, packed, terms)
            digest = hashing.result()
        if reply.digest != digest:
            raise Unusable("digest", "the update is not the one that the site sent: its digest differs")
    except Unusable as error:
        return SiteRound(status="error", code=error.code, reason=str(error)), None
    except ProtocolError as error:
        return SiteRound(status="error", code="message", reason=str(error)), None
    stored = spool.put(site.site, packed, _metadata(reply, digest))
    line = SiteRound(
        status="ok",
        weights=site.weights,
        steps=reply.steps,
        loss=reply.loss,
        loss_by_gene=reply.loss_by_gene,
        seconds=reply.seconds,
        bytes_up=payload_bytes(message.content),
        update_norm=norm,
        digest=digest,
    )
    return line, Update(site.site, site.weights, terms.payload, stored)


def _unanswered(error: Error) -> SiteRound:
    if error.code in _ABSENT:
        code, words = _ABSENT[error.code]
        reason = " ".join(str(error.reason or words).split())[:_LONGEST_REASON]
        return SiteRound(status="no_reply", code=code, reason=reason)
    return SiteRound(
        status="error", code="error", reason=f"the site's app failed (Flower error {error.code})"
    )


def _refused(refusal: Refusal) -> SiteRound:
    return SiteRound(
        status="refused",
        code=_REFUSALS.get(refusal.error, "refused"),
        reason=f"{refusal.error}: {refusal.reason}"[:_LONGEST_REASON],
    )


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
