"""The door that hospitals can reach, called as a server calls it: who passes, and what the others learn."""

import asyncio
import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message

from fedglioma.nodekey import public_bytes
from fedglioma_server.gate import CALLER, CALLS, HEALTH, HELLO, HELLO_AGE_S, Gate, Standing, signed_lately

MEMBER, REVOKED, STRANGER = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
LARGEST = 1_000_000
ROOM = LARGEST + 64 * 1024
PUSH = "/v1/fleet/push-object"

Headers = list[tuple[bytes, bytes]]


class Book:
    def standing(self, public_key: bytes) -> tuple[Standing, str]:
        if public_key == public_bytes(MEMBER):
            return "member", "ningxia"
        return ("revoked", "henan") if public_key == public_bytes(REVOKED) else ("unknown", "")


@dataclass
class Behind:
    """Flower's application, which notes what comes through."""

    came: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.came.append((scope["path"], CALLER.get()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def call(gate: Gate, method: str, path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    """Return what a request gets; its body must not be read by the gate itself."""
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(gate(scope, receive, send))
    start, *rest = said
    return Answer(start["status"], dict(start["headers"]), b"".join(part["body"] for part in rest))


def signed(
    key: ec.EllipticCurvePrivateKey, *, age_s: float = 0, named: ec.EllipticCurvePrivateKey | None = None
) -> Headers:
    stamp = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat().encode()
    return [
        (header.lower().encode(), value)
        for header, value in (
            (FLEET_HTTP_PUBLIC_KEY_HEADER, base64.b64encode(public_bytes(named or key))),
            (FLEET_HTTP_SIGNATURE_HEADER, base64.b64encode(sign_message(key, stamp))),
            (TIMESTAMP_HEADER, stamp),
        )
    ]


def sized(headers: Headers, size: object) -> Headers:
    return [*headers, (b"content-length", str(size).encode())]


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def gate(behind: Behind) -> Gate:
    return Gate(behind, Book(), lambda site: {"run": f"run for {site}"}, largest_object=LARGEST)


def assert_closed(answer: Answer) -> None:
    assert (answer.status, answer.body) == (404, b"")
    assert set(answer.headers) == {b"content-length"}


@pytest.mark.parametrize("path", sorted(CALLS))
def test_member_passes_with_each_of_the_fleets_calls(path, gate, behind):
    assert call(gate, "POST", path, sized(signed(MEMBER), 10)).body == b"inside"
    assert behind.came == [(path, "ningxia")]


@pytest.mark.parametrize("key", [MEMBER, REVOKED, STRANGER])
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/docs",
            "/openapi.json",
            "/v1/fleet/",
            "/v1/fleet/register-node",
            "/v1/fleet/unregister-node",
        ),
        *("/v1/control/list-runs", "/v1/runtime/push-messages", f"{PUSH}/", "/V1/FLEET/push-object"),
    ],
)
def test_no_other_path_is_there_for_anybody(path, key, gate, behind):
    for method in ("GET", "POST"):
        assert_closed(call(gate, method, path, sized(signed(key), 0)))
    assert behind.came == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_posts_pass(method, gate, behind):
    assert_closed(call(gate, method, PUSH, sized(signed(MEMBER), 0)))
    assert behind.came == []


@pytest.mark.parametrize(
    "made",  # when the test runs: minutes after they were collected, signatures are no longer fresh
    [
        list,
        lambda: [(FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b"no base64!")],
        lambda: signed(STRANGER),
        lambda: signed(REVOKED),
        lambda: signed(STRANGER, named=MEMBER),
        lambda: signed(MEMBER, age_s=2 * HELLO_AGE_S),
        lambda: signed(MEMBER, age_s=-2 * HELLO_AGE_S),
        lambda: signed(MEMBER)[:1],
    ],
    ids=["none", "garbled", "unknown", "revoked", "another's", "stale", "early", "unsigned"],
)
def test_caller_without_a_members_fresh_signature_meets_a_closed_door(made, gate, behind):
    assert_closed(call(gate, "POST", PUSH, sized(made(), 10)))
    assert behind.came == []
    assert sum(gate.traffic.turned_away.values()) == 1
    assert gate.traffic.last_seen == {}


@pytest.mark.parametrize(
    ("size", "status"),
    [(ROOM, 200), (ROOM + 1, 413), (1 << 30, 413), (10**30, 413), ("", 411), ("-1", 411), ("1e3", 411)],
)
def test_size_decides_before_anything_is_read(size, status, gate, behind):
    assert call(gate, "POST", PUSH, sized(signed(MEMBER), size)).status == status
    assert len(behind.came) == (status == 200)
    if status != 200:
        assert gate.traffic.turned_away == {"too large": 1}


def test_payload_of_unknown_length_is_refused(gate, behind):
    assert call(gate, "POST", PUSH, [*signed(MEMBER), (b"transfer-encoding", b"chunked")]).status == 411
    assert behind.came == []


def test_health_is_told_to_everybody_and_is_nothing_else(gate):
    answer = call(gate, "GET", HEALTH)
    assert (answer.status, answer.body, answer.headers) == (204, b"", {b"content-length": b"0"})
    assert_closed(call(gate, "POST", HEALTH))


def test_member_that_knocks_learns_about_the_run(gate):
    answer = call(gate, "POST", HELLO, signed(MEMBER))
    assert answer.status == 200
    assert json.loads(answer.body) == {"site": "ningxia", "standing": "member", "run": "run for ningxia"}


def test_revoked_site_that_knocks_learns_that_it_is_and_no_more(gate):
    answer = call(gate, "POST", HELLO, signed(REVOKED))
    assert json.loads(answer.body) == {"site": "henan", "standing": "revoked"}


@pytest.mark.parametrize(
    "made",
    [
        list,
        lambda: signed(STRANGER),
        lambda: signed(STRANGER, named=REVOKED),
        lambda: signed(MEMBER, age_s=2 * HELLO_AGE_S),
    ],
    ids=["none", "unknown", "another's", "stale"],
)
def test_stranger_that_knocks_learns_nothing(made, gate):
    assert_closed(call(gate, "POST", HELLO, made()))


def test_traffic_is_counted_by_site(gate):
    for size in (10, 20):
        call(gate, "POST", PUSH, sized(signed(MEMBER), size))
    assert gate.traffic.received == {"ningxia": 30}
    assert set(gate.traffic.last_seen) == {"ningxia"}


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_get_no_answer(kind, gate, behind):
    async def nothing(*_: object) -> None:
        raise AssertionError("something was said")

    asyncio.run(gate({"type": kind, "path": PUSH, "headers": []}, nothing, nothing))
    assert behind.came == []


def test_signature_counts_within_the_clocks_allowance_only():
    for age in (0.0, HELLO_AGE_S - 5, -HELLO_AGE_S + 5):
        assert signed_lately(dict(signed(MEMBER, age_s=age)))
    stamp = (TIMESTAMP_HEADER.lower().encode(), b"2026-01-01T00:00:00")
    assert not signed_lately(dict([*signed(MEMBER)[:2], stamp])), "a time without a zone"
    other = dict(signed(MEMBER)) | {TIMESTAMP_HEADER.lower().encode(): datetime.now(UTC).isoformat().encode()}
    assert not signed_lately(other), "a time that was not signed"
