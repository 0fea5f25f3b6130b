"""The only code of a hospital that answers messages: the installed app, in the SuperNode's own process.

The bundle that a server ships is never unpacked. Its digest must be that of the bundle which this
version builds, its run may override nothing, and only the known kinds of message are answered. What is
refused is answered with a refusal, so that the coordinator reads the reason.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeState

from fedglioma.bundle import build_bundle
from fedglioma.errors import PolicyError, ProtocolError
from fedglioma.noise import DELTA
from fedglioma.privacy.ledger_heads import FIELD as LEDGER
from fedglioma.wire import (
    FINISHED,
    SECURE,
    STATISTICS,
    TRAIN,
    Refusal,
    StatisticsReply,
    TrainReply,
    TrainRequest,
    body_of,
    is_refusal,
    payload_bytes,
    reply_to,
)
from fedglioma_client.gauges import Phase

logger = logging.getLogger(__name__)

KINDS = frozenset({STATISTICS, SECURE, TRAIN, FINISHED})
POLL_S = 0.02

Journal = Callable[..., None]
"""Told of every step: event, then facts; the site's audit log listens."""


@dataclass
class Worker:
    """Answers the messages that the SuperNode of this process takes, one at a time.

    Parameters
    ----------
    state, store
        The SuperNode's memory, shared with this worker.
    app : ClientApp
        The installed app.
    node_config : dict
        What the app learns of this node: where the site's settings lie.
    site : str
        The site's name, for refusals.
    journal : callable
        Told of what was offered, accepted, refused and sent.
    phase : callable
        Told of what the worker does.
    """

    state: NodeState
    store: ObjectStore
    app: ClientApp
    node_config: dict[str, str]
    site: str
    journal: Journal
    phase: Callable[[Phase], None] = lambda _name: None
    finished: threading.Event = field(default_factory=threading.Event)
    last_reply: str = ""

    def serve(self) -> None:
        """Answer messages for ever."""
        while True:
            waiting = self.state.get_messages_legacy(is_reply=False, limit=1)
            if not waiting:
                time.sleep(POLL_S)
                continue
            self.phase("download")
            message = self._whole(waiting[0])
            if message is not None:
                self._answer(message)
            self.phase("wait")

    def _whole(self, head: Message) -> Message | None:
        """Return a message with its content once the SuperNode has fetched it; None if it gave up."""
        number = head.metadata.message_id
        while True:
            try:
                digests = [tree.object_id for tree in iterate_object_tree(self.store.get_object_tree(number))]
            except NoObjectInStoreError:
                return None
            contents = {digest: self.store.get(digest) for digest in digests}
            if all(contents.values()):
                break
            time.sleep(POLL_S)
        message = inflate_object_from_contents(number, {d: bytes(c) for d, c in contents.items() if c})
        del contents
        self.store.delete(number)
        if not isinstance(message, Message):
            return None
        message.metadata.__dict__["_message_id"] = number
        return message

    def _answer(self, message: Message) -> None:
        asked = message.metadata
        run = self.state.get_run(asked.run_id)
        TaskIdentity.run_id, TaskIdentity.task_id = asked.run_id, 1
        TaskIdentity.node_id = self.state.get_node_id()
        size = payload_bytes(message.content) if message.has_content() else 0
        what = {"kind": asked.message_type, "round": asked.group_id}
        self.journal("offered", **what, digests=[asked.message_id], bytes=size, **_head_of(message))
        self.state.record_message_processing_start(asked.message_id)
        self.phase("train")
        reply = self._reply(message, run)
        if reply.has_content() and is_refusal(reply.content):
            self.journal("refused", **what, reason=body_of(reply.content, Refusal).reason)
        self.state.record_message_processing_end(asked.message_id)
        self._finish_tasks(asked.run_id)
        self.phase("upload")
        number, size = self._send(reply)
        if number is None:
            logger.warning(
                "round %s: the server asks something else by now, the answer is dropped", asked.group_id
            )
            self.journal("refused", **what, reason="given up: the server asked something else meanwhile")
            return
        self.journal("sent", **what, digests=[number], bytes=size, **_spent_by(reply))
        if asked.message_type == FINISHED and reply.has_content() and not is_refusal(reply.content):
            self.finished.set()

    def _reply(self, message: Message, run: Run | None) -> Message:
        asked = message.metadata
        try:
            self._require_ours(message, run)
        except PolicyError as error:
            logger.error("refused: %s", error)
            refusal = Refusal(
                site=self.site, error="PolicyError", exit_code=error.exit_code, reason=str(error)
            )
            return reply_to(message, refusal)
        context = Context(
            run_id=asked.run_id,
            node_id=self.state.get_node_id(),
            node_config=dict(self.node_config),
            state=RecordDict(),
            run_config={},
        )
        try:
            return self.app(message, context)
        except Exception as error:  # the app answers for its errors itself; this is a defect in it
            logger.exception("the app failed")
            reason = type(error).__name__  # the words of an unknown error could name a path
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def _require_ours(self, message: Message, run: Run | None) -> None:
        """Raise ``PolicyError`` unless the run carries this version's bundle and asks a known thing."""
        fab = None if run is None else self.state.get_fab(run.fab_hash)
        content = b"" if fab is None else fab.content
        digest = hashlib.sha256(content).hexdigest()
        if digest != build_bundle().digest:
            raise PolicyError(
                f"bundle {digest[:12]} is not the one that this site's fedglioma builds "
                f"({build_bundle().digest[:12]}); install the same version at both ends"
            )
        if run is not None and run.override_config:
            raise PolicyError(f"the run overrides settings of its bundle: {', '.join(run.override_config)}")
        if message.metadata.message_type not in KINDS:
            raise PolicyError(f"message of kind {message.metadata.message_type!r}: answered by no site")

    def _finish_tasks(self, run_id: int) -> None:
        """Mark the SuperNode's task records of a run as done: this worker answers without claiming them."""
        for task in self.state.get_tasks(run_ids=[run_id]):
            self.state.finish_task(task.task_id, SubStatus.STOPPED, "answered")

    def _send(self, reply: Message) -> tuple[str | None, int]:
        """Hand a reply to the SuperNode, and return its digest and its size in bytes.

        None where the SuperNode gave the question up meanwhile.
        """
        size = payload_bytes(reply.content) if reply.has_content() else 0
        with no_object_id_recompute():
            number = reply.object_id
            reply.metadata.__dict__["_message_id"] = number
            self.store.preregister(reply.metadata.run_id, get_object_tree(reply))
            for digest, item in get_all_nested_objects(reply).items():
                self.store.put(digest, item.deflate())
            self.last_reply = number
            return self.state.store_message(reply), size


def _head_of(message: Message) -> dict[str, str]:
    """Return the head of the server's audit log that came with a round, for this site's own log."""
    if message.metadata.message_type != TRAIN or not message.has_content():
        return {}
    try:
        head = body_of(message.content, TrainRequest).audit_head
    except ProtocolError:  # answered, and refused, by the app
        return {}
    return {"server_head": head} if head else {}


def _spent_by(reply: Message) -> dict[str, float | str]:
    """Return what an answer spends of its patients' privacy, for this site's own log.

    ``landmarks`` is the digest of the sums: lines with the same one told the same thing and spend once.
    ``ledger`` is the head of the privacy ledger when a private update left, so that the one log vouches for
    the other.
    """
    if not reply.has_content():
        return {}
    try:
        if reply.metadata.message_type == TRAIN:
            head = body_of(reply.content, TrainReply).ledger_head
            return {LEDGER: head} if head else {}
        if reply.metadata.message_type != STATISTICS:
            return {}
        told = body_of(reply.content, StatisticsReply)
    except ProtocolError:  # a refusal
        return {}
    noted: dict[str, float | str] = {LEDGER: told.ledger_head} if told.ledger_head else {}
    if told.landmark_epsilon is None:
        return noted
    sums = "".join(told.landmarks[modality].model_dump_json() for modality in sorted(told.landmarks))
    digest = hashlib.sha256(sums.encode()).hexdigest()
    return {
        **noted,
        "landmark_epsilon": told.landmark_epsilon,
        "landmark_delta": DELTA,
        "landmarks": digest,
    }
