"""A hospital's client by hand: it has its key and Flower's own calls, and answers as a test wants it to."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedglioma.case import GENES
from fedglioma.nodekey import public_bytes, read_private_key
from fedglioma.training.learner import layout_of
from fedglioma.weights import GROUPS, Packed, digest_of
from fedglioma.wire import (
    STATISTICS,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
    body_of,
    reply_to,
    weights_of,
)

HEARTBEAT_S = 1000.0
"""So long that nobody needs to send one within a test."""
USUAL_STEP = 0.05
"""Length of an update of the tiny network of these tests, about."""


@dataclass
class Member:
    """One connection of a hospital."""

    site: str
    client: FleetHttpClient
    public: bytes
    node: Node

    @classmethod
    @contextmanager
    def joined(cls, site: str, port: int, ca: Path, key: Path) -> Iterator[Self]:
        """Give the connection of a hospital that has just come online."""
        private = read_private_key(key)
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ]
        public = public_bytes(private)
        with FleetHttpClient.from_server_address(
            f"127.0.0.1:{port}", False, ca.read_bytes(), interceptors=interceptors
        ) as client:
            told = client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_S))
            yield cls(site, client, public, Node(node_id=told.node_id))

    def pull(self) -> Message | None:
        """Return the next message with its content; None where nothing waits."""
        told = self.client.PullMessages(PullMessagesRequest(node=self.node))
        if not told.messages_list:
            return None
        head, tree = message_from_proto(told.messages_list[0]), told.message_object_trees[0]
        TaskIdentity.run_id, TaskIdentity.task_id = head.metadata.run_id, 1
        TaskIdentity.node_id = self.node.node_id
        contents = {
            item.object_id: self._object(head.metadata.run_id, item.object_id)
            for item in iterate_object_tree(tree)
        }
        message = inflate_object_from_contents(head.metadata.message_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = head.metadata.message_id
        return message

    def _object(self, run: int, number: str) -> bytes:
        return self.client.PullObject(
            PullObjectRequest(node=self.node, run_id=run, object_id=number)
        ).object_content

    def push_head(self, reply: Message, tree: ObjectTree | None = None) -> tuple[list[str], str]:
        """Send a reply's head, and return which of its objects the server wants, and the session."""
        TaskIdentity.run_id, TaskIdentity.node_id = reply.metadata.run_id, self.node.node_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        told = self.client.PushMessages(
            PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree or get_object_tree(reply)],
                clientapp_runtime_list=[0.1],
            )
        )
        return list(told.objects_to_push), told.session_id

    def push(self, reply: Message) -> bool:
        """Send a reply with all that belongs to it; whether the server took any of it."""
        objects = get_all_nested_objects(reply)
        wanted, session = self.push_head(reply)
        for number in wanted:
            request = PushObjectRequest(
                node=self.node,
                run_id=reply.metadata.run_id,
                session_id=session,
                object_id=number,
                object_content=objects[number].deflate(),
            )
            assert self.client.PushObject(request).stored
        return bool(wanted)


def statistics(message: Message, site: str) -> Message:
    """Return what a site with ten cases, all of whose labels are known, says of itself."""
    assert message.metadata.message_type == STATISTICS
    settings = body_of(message.content, StatisticsRequest).settings
    said = StatisticsReply(
        site=site,
        version="0",
        layout=layout_of(settings).digest,
        cases=10,
        labels=dict.fromkeys(GENES, (5, 5, 0)),
        modalities={},
        weights=dict.fromkeys(GROUPS, 10.0),
        small_cell_limit=1,
        synthetic=True,
    )
    return reply_to(message, said)


def received(message: Message) -> Packed:
    """Return copies of the weights that came with a message."""
    return {group: array.copy() for group, array in weights_of(message.content).items()}


def step(message: Message, length: float = USUAL_STEP) -> Packed:
    """Return weights that are a step of a length away from those that came."""
    rng = np.random.default_rng(7)
    sent = received(message)
    moves = {group: rng.normal(size=array.shape) for group, array in sent.items()}
    norm = np.sqrt(sum(float((move**2).sum()) for move in moves.values()))
    return {group: (sent[group] + length / norm * move).astype(np.float32) for group, move in moves.items()}


def update(message: Message, packed: Packed, site: str, groups: Iterable[str] = GROUPS) -> Message:
    """Return a report that is right in itself, with the update given."""
    request = body_of(message.content, TrainRequest)
    said = TrainReply(
        site=site,
        round=request.round,
        layout=request.layout,
        payload=request.settings.payload,
        digest=digest_of(packed),
        weights=dict.fromkeys(groups, 10.0),
        steps=1,
        loss=1.0,
        loss_by_task=dict.fromkeys(GENES, 1.0),
        seconds={"train": 0.1},
    )
    return reply_to(message, said, packed)
