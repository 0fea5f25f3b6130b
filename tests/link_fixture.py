"""A SuperLink without a network: sites are played by the calls that Flower's handlers make on its state."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedglioma.wire import TRAIN, Body, request_record
from fedglioma_server import linkgrid
from fedglioma_server.linkgrid import LinkGrid, Terms
from fedglioma_server.linkstate import SiteLinkState
from fedglioma_server.objects import SpoolStore

HEARTBEAT_S = 60.0
LARGE = 20_000
"""Numbers of an array that is spooled to disk."""


def content(*words: str, size: int = 4) -> RecordDict:
    """Return a message's content: an array and some words."""
    weights = ArrayRecord({"trunk": Array(np.arange(size, dtype=np.float32))})
    return RecordDict({"weights": weights, "words": ConfigRecord({"said": list(words)})})


def numbers_of(message: Message) -> np.ndarray:
    """Return the array in a message, whatever buffer holds it."""
    return np.frombuffer(bytes(message.content["weights"]["trunk"].data)[-16:], np.float32)


@dataclass
class Link:
    """A state with admitted sites and a running run, and what its listeners were told."""

    state: SiteLinkState
    run: int
    nodes: dict[str, int]
    keys: dict[str, bytes]
    refused: list[tuple[str, str, str]]

    def grid(
        self, *steps: Callable[[], object], quorum: int = 0, grace_s: float | None = None, **listeners: Any
    ) -> LinkGrid:
        """Return a grid over the sites, which take these steps while it waits."""
        return PlayedGrid(self.state, self.run, Terms(quorum, grace_s), steps=steps, **listeners)


def link(folder: Path, sites: Iterable[str] = ("henan", "ningxia", "zhengzhou"), most: int = 64) -> Link:
    """Return a link on which a run was begun."""
    refused: list[tuple[str, str, str]] = []
    state = SiteLinkState(
        SpoolStore(folder / "spool"), most_objects=most, refused=lambda *told: refused.append(told)
    )
    keys = {site: f"key of {site}".encode() for site in sites}
    nodes = {site: state.admit(site, key) for site, key in keys.items()}
    return Link(state, state.begin_run("0" * 64, "0.1.0"), nodes, keys, refused)


@dataclass
class FakeNode:
    """A site's SuperNode, by hand."""

    link: Link
    site: str

    @property
    def number(self) -> int:
        return self.link.nodes[self.site]

    def connect(self) -> None:
        assert self.link.state.activate_node(self.number, HEARTBEAT_S)

    def leave(self) -> None:
        assert self.link.state.deactivate_node(self.number)

    def ask(self) -> Message | None:
        """Take the head of the next message."""
        taken = self.link.state.get_message_ins(self.number, 1)
        return taken[0] if taken else None

    def read(self, head: Message) -> Message:
        """Fetch what a message consists of, as a SuperNode does."""
        store = self.link.state.spool
        number = head.metadata.message_id
        tree, contents = store.get_object_tree(number), {}
        waiting = [tree]
        while waiting:
            item = waiting.pop()
            contents[item.object_id] = store.get(item.object_id) or b""
            waiting.extend(item.children)
        message = inflate_object_from_contents(number, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = number
        return message

    def received(self, head: Message) -> None:
        """Say that the message was received whole."""
        self.link.state.spool.delete(head.metadata.message_id)

    def reply(self, head: Message, said: RecordDict | None = None, *, sender: int | None = None) -> Message:
        """Return an answer to a message, in whose name it may be."""
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = self.link.run, 1, self.number
        message = Message(said or content(self.site), reply_to=head)
        message.metadata.__dict__["_src_node_id"] = self.number if sender is None else sender
        message.metadata.__dict__["_message_id"] = message.object_id
        return message

    def announce(self, reply: Message, *, sender: int | None = None) -> tuple[list[str], str] | None:
        """Send an answer's head, in whose name it may be; None where it is refused."""
        state = self.link.state
        session = state.start_session(self.link.run)
        head = message_from_proto(message_to_proto(remove_content_from_message(reply)))
        head.metadata.__dict__["_src_node_id"] = sender or reply.metadata.src_node_id
        stored, missing = state.store_message_and_object_tree(head, get_object_tree(reply), session)
        return (missing, session) if stored else None

    def push(self, reply: Message, *, sender: int | None = None) -> bool:
        """Send an answer; whether it was taken."""
        announced = self.announce(reply, sender=sender)
        if announced is None:
            return False
        missing, session = announced
        objects = get_all_nested_objects(reply)
        return all(
            self.link.state.store_object(self.link.run, session, number, objects[number].deflate())
            for number in missing
        )

    def take(self) -> Message:
        """Take the next message whole."""
        head = self.ask()
        assert head is not None, f"{self.site} was not asked"
        message = self.read(head)
        self.received(head)
        return message

    def work(self) -> None:
        """Answer the next message."""
        assert self.push(self.reply(self.take()))


def nodes(made: Link) -> list[FakeNode]:
    """Return all sites' nodes, none of them connected yet."""
    return [FakeNode(made, site) for site in made.nodes]


def messages(made: Link, sites: Sequence[str] | None = None, kind: str = TRAIN) -> list[Message]:
    """Return a round's messages, which share their content."""
    shared = request_record(Body())
    shared["weights"] = ArrayRecord({"trunk": Array(np.arange(LARGE, dtype=np.float32))})
    return [
        Message(shared, dst_node_id=made.nodes[site], message_type=kind, group_id="7")
        for site in sites or made.nodes
    ]


class Clock:
    """A clock for the grid's module that goes on only while the grid waits, however slow the computer is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class PlayedGrid(LinkGrid):
    """A grid whose sites take a step, in the grid's own thread, each time it has nothing to do."""

    def __init__(self, *given: Any, steps: Iterable[Callable[[], object]], **listeners: Any) -> None:
        super().__init__(*given, **listeners)
        self.steps = list(steps)

    def _pause(self) -> None:
        """Take the next step; when all are taken, let the time pass."""
        if self.steps:
            self.steps.pop(0)()
            # The sites' messages were made under their names; from here on it is the server again.
            TaskIdentity.task_id, TaskIdentity.node_id = 1, SUPERLINK_NODE_ID
        else:
            linkgrid.time.sleep(linkgrid.POLL_S)
