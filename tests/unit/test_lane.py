"""The lane for large objects, called as the gate calls it: what Flower's handlers would say, and no less."""

import asyncio
import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.superlink.servicer.fleet import fleet_handlers

from fedglioma.nodekey import public_bytes
from fedglioma_server.lane import PULL, PUSH, Lane
from fedglioma_server.objects import IN_MEMORY_BYTES
from tests.link_fixture import LARGE, FakeNode, Link, content, link, messages

HENAN, NINGXIA = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
KEYS = {"henan": HENAN, "ningxia": NINGXIA}


@dataclass
class Ground:
    """A link whose sites have real keys, and its lane."""

    link: Link
    lane: Lane

    def call(
        self, path: str, request: Any, key: ec.EllipticCurvePrivateKey = HENAN
    ) -> tuple[int, str, bytes]:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        code, media, parts = asyncio.run(self.lane.answer(path, signed(key), bytearray(body)))
        return code, media, b"".join(parts)

    def node(self, site: str = "henan") -> Node:
        return Node(node_id=self.link.nodes[site])

    def pull(self, number: str, **more: Any) -> PullObjectRequest:
        return PullObjectRequest(**{"node": self.node(), "run_id": self.link.run, "object_id": number} | more)


def signed(key: ec.EllipticCurvePrivateKey) -> list[tuple[bytes, bytes]]:
    stamp = datetime.now(UTC).isoformat().encode()
    return [
        (FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), base64.b64encode(public_bytes(key))),
        (FLEET_HTTP_SIGNATURE_HEADER.lower().encode(), base64.b64encode(sign_message(key, stamp))),
        (TIMESTAMP_HEADER.lower().encode(), stamp),
    ]


@pytest.fixture
def ground(tmp_path) -> Ground:
    made = link(tmp_path, sites=())
    for site, key in KEYS.items():
        made.nodes[site] = made.state.admit(site, public_bytes(key))
        FakeNode(made, site).connect()
    app: Any = SimpleNamespace(
        state=SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: made.state))
    )
    return Ground(made, Lane(app, made.state))


@pytest.fixture
def waiting(ground) -> dict[str, bytes]:
    """The objects of a message that waits for henan: small ones in memory, a large one in a file."""
    ground.link.grid().push_messages(messages(ground.link, ["henan"]))
    spool = ground.link.state.spool
    return {number: spool.get(number) or b"" for number in spool.store}


def test_object_that_is_here_is_pulled_whole_and_counted(ground, waiting):
    assert max(map(len, waiting.values())) > IN_MEMORY_BYTES
    for number, whole in waiting.items():
        code, media, body = ground.call(PULL, ground.pull(number))
        assert (code, media) == (200, "application/protobuf")
        answer = PullObjectResponse.FromString(body)
        assert (answer.object_found, answer.object_available, answer.object_content) == (True, True, whole)
        assert answer == fleet_handlers.pull_object(request=ground.pull(number), state=ground.link.state)
    sent = ground.link.state.run_ids[ground.link.run].run.bytes_sent
    assert sent == 2 * sum(map(len, waiting.values())), "once by the lane, once by Flower's handler"


def test_object_that_nobody_announced_is_not_found(ground):
    _, _, body = ground.call(PULL, ground.pull("0" * 64))
    assert PullObjectResponse.FromString(body) == PullObjectResponse()


def announced(ground: Ground) -> tuple[dict[str, bytes], str]:
    """Let henan announce a large reply; return its objects, none of which has come yet, and the upload."""
    henan = FakeNode(ground.link, "henan")
    ground.link.grid().push_messages(messages(ground.link, ["henan"]))
    reply = henan.reply(henan.take(), content("henan", size=LARGE))
    told = henan.announce(reply)
    assert told is not None
    missing, session = told
    objects = get_all_nested_objects(reply)
    return {number: objects[number].deflate() for number in missing}, session


def test_object_that_is_announced_is_found_and_not_available_until_it_is_pushed(ground):
    objects, session = announced(ground)
    for number, whole in objects.items():
        _, _, body = ground.call(PULL, ground.pull(number))
        assert PullObjectResponse.FromString(body) == PullObjectResponse(object_found=True)
        facts = {"node": ground.node(), "run_id": ground.link.run, "session_id": session}
        push = PushObjectRequest(**facts, object_id=number, object_content=whole)
        code, _, body = ground.call(PUSH, push)
        assert (code, PushObjectResponse.FromString(body).stored) == (200, True)
        _, _, body = ground.call(PULL, ground.pull(number))
        assert PullObjectResponse.FromString(body).object_content == whole


def test_object_that_goes_while_it_is_looked_for_is_not_there(ground, waiting, monkeypatch):
    monkeypatch.setattr(ground.link.state, "get_object", lambda _run, _number: None)
    for number in waiting:
        _, _, body = ground.call(PULL, ground.pull(number))
        assert PullObjectResponse.FromString(body) == PullObjectResponse()


def test_content_that_is_not_what_was_announced_is_not_stored(ground):
    objects, session = announced(ground)
    facts = {"node": ground.node(), "run_id": ground.link.run, "session_id": session}
    first, second, *_ = objects
    for number in (first, "0" * 64):
        push = PushObjectRequest(**facts, object_id=number, object_content=objects[second])
        code, _, body = ground.call(PUSH, push)
        assert (code, PushObjectResponse.FromString(body).stored) == (200, False)
    assert not ground.link.state.spool.has_all([first])


def test_caller_who_names_another_node_is_turned_away(ground, waiting):
    for number in waiting:
        code, media, body = ground.call(PULL, ground.pull(number), NINGXIA)
        assert (code, media, json.loads(body)) == (401, "application/json", {})


def test_run_of_an_earlier_start_is_answered_as_flower_does_in_json(ground, waiting):
    number = next(iter(waiting))
    for path, request in (
        (PULL, ground.pull(number, run_id=7)),
        (PUSH, PushObjectRequest(node=ground.node(), run_id=7, object_id=number)),
    ):
        code, media, body = ground.call(path, request)
        assert (code, media) == (403, "application/json")
        told = json.loads(body)
        assert told["extra"] == f"Object_id: {number}"
        assert isinstance(told["code"], int)


def test_body_that_is_no_message_is_refused(ground):
    assert ground.call(PULL, b"\xff")[0] == 400
