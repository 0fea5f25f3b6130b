"""Flower's Grid over the SuperLink of this very process: rounds that end, whatever the sites do.

A message waits for a site that is away, is sent again to one that lost it, and is withdrawn at the
round's deadline or once the quorum has answered and the grace is over. Exactly one answer is given for
every site: its reply, or an error that says why there is none.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import NodeStatus
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedglioma.errors import FedGliomaError, ProtocolError
from fedglioma.wire import SECURE, STATISTICS, TRAIN
from fedglioma_server.assemble import assemble
from fedglioma_server.grid import OwnGrid
from fedglioma_server.linkstate import SiteLinkState
from fedglioma_server.runstatus import Stopped
from fedglioma_server.sitewords import site_words

logger = logging.getLogger(__name__)

POLL_S = 0.05
BEFORE_ROUNDS = "0"
MOST_SENDINGS = 5
"""Times that one message is sent to one site in one round before the site is given up for it."""
RETRIED = frozenset({ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED})
_TTL_SLACK_S = 60.0
_FOREVER_S = 10 * 365 * 86400.0


@dataclass
class Terms:
    """When a round ends before its deadline: a quorum of usable updates is here and the grace is over."""

    quorum: int = 0
    grace_s: float | None = None


@dataclass
class _Asked:
    """One site's question of a round, and how far it has come."""

    message: Message
    content: RecordDict
    node: int
    site: str
    number: str | None = None
    sendings: int = 0


@dataclass
class Watch:
    """What the grid tells while it waits; read by ``status``."""

    round: str = ""
    phases: dict[str, str] = field(default_factory=dict)


class LinkGrid(OwnGrid):
    """A grid whose nodes are the hospitals' SuperNodes.

    Parameters
    ----------
    state : SiteLinkState
        The SuperLink's state in this process.
    run_id : int
        Flower's number of the running run.
    terms : Terms
        When a round ends early.
    sent, answered : callable, optional
        Told of every message sent (site, round, digest, again) and every answer taken (site, round,
        digest); the audit log listens.
    stopping : callable, optional
        Once true, waiting for sites to join ends with ``Stopped``.
    """

    def __init__(
        self,
        state: SiteLinkState,
        run_id: int,
        terms: Terms,
        *,
        sent: Callable[[str, str, str, bool], None] = lambda _site, _round, _digest, _again: None,
        answered: Callable[[str, str, str], None] = lambda _site, _round, _digest: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.state = state
        self.terms = terms
        self.watch = Watch()
        self.stopping = stopping
        self._run_id = run_id
        self._sent = sent
        self._answered = answered
        self._usable: set[str] = set()
        # Flower lets a message be made only inside a task; this process is the server app's.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Replace the run that messages belong to."""
        self._run_id = run.run_id

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self.state.get_run_info(run_ids=[self._run_id])[0]

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the sites that are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected sites as Flower describes them."""
        return list(self.state.get_node_info(statuses=[NodeStatus.ONLINE]))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their numbers; one by one, so that no site spoils another's."""
        with no_object_id_recompute():
            return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are here, each once."""
        replies = []
        for number in message_ids:
            reply = self._take(number)
            if reply is not None:
                replies.append(reply)
        return replies

    def usable(self, site: str) -> None:
        """Count a site whose update of this round can be used; the strategy says so from its own thread."""
        self._usable.add(site)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield one answer per message as they come in; at the latest when ``timeout`` seconds are over.

        Sites that are away are waited for. A yielded error has code ``NODE_UNAVAILABLE`` where the site
        was away and ``REPLY_MESSAGE_UNAVAILABLE`` where it did not answer in time.
        """
        waiting = [
            _Asked(message, message.content, message.metadata.dst_node_id, self._site(message))
            for message in messages
        ]
        if not waiting:
            return
        deadline = time.monotonic() + (_FOREVER_S if timeout is None else timeout)
        self.watch = Watch(round=waiting[0].message.metadata.group_id)
        kind = waiting[0].message.metadata.message_type
        training = kind == TRAIN
        joining = kind == STATISTICS or (kind == SECURE and self.watch.round == BEFORE_ROUNDS)
        self._usable = set()
        enough_since = None
        while waiting:
            self._require_life()
            now = time.monotonic()
            if joining and self.stopping():
                raise Stopped
            if training and enough_since is None and 0 < self.terms.quorum <= len(self._usable):
                enough_since = now
            grace_over = (
                enough_since is not None
                and self.terms.grace_s is not None
                and now - enough_since >= self.terms.grace_s
            )
            if now >= deadline or grace_over:
                what = "the grace after the quorum" if grace_over else "the deadline"
                yield from self._give_up(waiting, what)
                return
            given_up = self._send_all(waiting, deadline - now)
            arrived = False
            for asked in list(waiting):
                answer = given_up.get(asked.node) or self._answer(asked)
                if answer is None:
                    continue
                waiting.remove(asked)
                arrived = True
                yield answer
                del answer
            if not arrived:
                self._pause()

    def _pause(self) -> None:
        """Let time pass while no site has anything to say."""
        time.sleep(POLL_S)

    def _require_life(self) -> None:
        if self.state.spool.failure is not None:
            error = self.state.spool.failure
            raise FedGliomaError(
                f"{self.state.spool.folder}: {error.strerror or error}; free some space and start again"
            )
        if not self.state.running():
            raise FedGliomaError("Flower ended the run; start the server again, it continues")

    def _site(self, message: Message) -> str:
        return self.state.site_of(message.metadata.dst_node_id)

    def _send_all(self, waiting: list[_Asked], left_s: float) -> dict[int, Message]:
        """Send what is not on its way to the sites that are there; return the errors of those given up."""
        unsent = [asked for asked in waiting if asked.number is None]
        if not unsent:
            return {}
        online = set(self.get_node_ids())
        errors = {}
        with no_object_id_recompute():  # all messages of a round share the weights: hashed once
            for asked in unsent:
                if not self.state.belongs(asked.node):
                    errors[asked.node] = self._error(asked, ErrorCode.NODE_UNAVAILABLE, "its key was revoked")
                elif asked.node not in online:
                    self.watch.phases[asked.site] = "away"
                elif asked.sendings >= MOST_SENDINGS:
                    errors[asked.node] = self._lost_too_often(asked)
                else:
                    self._send(asked, left_s)
        return errors

    def _answer(self, asked: _Asked) -> Message | None:
        """Return a question's answer once it is here; a question that was lost is taken back."""
        if asked.number is None:
            return None
        self.watch.phases[asked.site] = self.state.phase(asked.number)
        reply = self._take(asked.number)
        if reply is None:
            if self.state.lost(asked.number):
                self._withdraw(asked)
            return None
        if reply.has_error() and reply.error.code in RETRIED and asked.sendings < MOST_SENDINGS:
            self._withdraw(asked)
            return None
        self.watch.phases[asked.site] = "done"
        self._answered(asked.site, asked.message.metadata.group_id, reply.metadata.message_id)
        return reply

    def _lost_too_often(self, asked: _Asked) -> Message:
        return self._error(
            asked,
            ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
            f"lost the message {asked.sendings} times; its client or its connection keeps failing",
        )

    def _send(self, asked: _Asked, left_s: float) -> None:
        again = asked.sendings > 0
        sent = asked.message.metadata
        message = Message(
            asked.content, asked.node, sent.message_type, ttl=left_s + _TTL_SLACK_S, group_id=sent.group_id
        )
        try:
            asked.number = self._push(message)
        except FedGliomaError:
            if self.state.belongs(asked.node):
                raise
            return  # it was revoked this very moment; the next look says so
        asked.sendings += 1
        if again:
            logger.warning("round %s: %s lost the message, it is sent again", sent.group_id, asked.site)
        self._sent(asked.site, sent.group_id, asked.number, again)

    def _withdraw(self, asked: _Asked) -> None:
        if asked.number is not None:
            self.state.withdraw([asked.number])
        asked.number = None

    def _give_up(self, waiting: list[_Asked], what: str) -> Iterator[Message]:
        for asked in waiting:
            phase = "away" if asked.number is None else self.state.phase(asked.number)
            self._withdraw(asked)
            self.watch.phases[asked.site] = "missed"
            if phase in ("away", "waiting"):
                yield self._error(asked, ErrorCode.NODE_UNAVAILABLE, "not connected")
            else:
                yield self._error(
                    asked, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"no reply before {what} (phase: {phase})"
                )

    def _error(self, asked: _Asked, code: int, reason: str) -> Message:
        question = asked.message.metadata
        metadata = remove_content_from_message(asked.message).metadata
        answer = make_message(metadata=metadata, error=Error(code, reason))
        answer.metadata.__dict__["_src_node_id"] = asked.node
        answer.metadata.__dict__["_dst_node_id"] = question.src_node_id
        return answer

    def _push(self, message: Message) -> str:
        """Put a message and what it consists of into the SuperLink; it becomes visible when all is there."""
        number = message.object_id
        message.metadata.__dict__["_message_id"] = number
        tree = get_object_tree(message)
        objects: dict[str, InflatableObject] = get_all_nested_objects(message)
        session = self.state.start_session(self._run_id)
        try:
            for missing in self.state.preregister_object_tree(tree, session):
                if not self.state.store_object(self._run_id, session, missing, objects[missing].deflate()):
                    self._require_life()
                    raise FedGliomaError("a message could not be stored for sending; see the log above")
            if self.state.store_message_ins(remove_content_from_message(message)) is None:
                raise FedGliomaError("Flower refused to send a message; see the log above")
        except FedGliomaError:
            self.state.withdraw([number])
            raise
        return number

    def _take(self, number: str) -> Message | None:
        """Return the whole reply to a message and remove both from the SuperLink; None until it is here."""
        found = self.state.complete_reply(number)
        if found is None:
            return None
        sent = found.metadata
        try:
            reply = assemble(self.state.spool, sent.message_id, most_bytes=self.state.most_bytes)
            if reply.metadata.src_node_id != sent.src_node_id:
                raise ProtocolError("a reply names another sender inside than outside")
        except ProtocolError as error:
            site, group = self.state.site_of(sent.src_node_id), site_words(sent.group_id)
            logger.warning("round %s: %s: %s", group, site, error)
            reply = make_message(metadata=sent, error=Error(ErrorCode.UNKNOWN, str(error)))
        finally:
            self.state.withdraw([number])
        reply.metadata.__dict__["_message_id"] = sent.message_id
        return reply
