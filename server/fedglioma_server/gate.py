"""The one door that hospitals can reach: which requests pass to Flower, and what the others learn.

Flower's application serves its fleet, its control interface and its runtime under one address, the last
two without asking who calls. This gate lets through the fleet's messages of keys that are on the list,
of a bounded size, and answers everything else with an empty 404, as an empty web server would.
"""

import asyncio
import base64
import binascii
import contextvars
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Standing = Literal["member", "revoked", "unknown"]

FLEET = "/v1/fleet/"
HELLO = "/v1/fedglioma/hello"
HEALTH = "/health"
CALLS = frozenset(
    f"{FLEET}{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
HELLO_AGE_S = 300.0
BODY_S = 300.0
"""Seconds that one object of a few megabytes may take to come."""
_OVERHEAD = 64 * 1024
_PIECE = 256 * 1024

CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="")
"""The site whose key a request carries; Flower has verified the signature before a handler reads this."""


class Book(Protocol):
    """Who may come in."""

    def standing(self, public_key: bytes) -> tuple[Standing, str]:
        """Return what a key is here, and whose."""
        ...


class ObjectLane(Protocol):
    """Answers some calls in Flower's place."""

    @property
    def paths(self) -> frozenset[str]:
        """The calls that it answers."""
        ...

    async def answer(
        self, path: str, headers: list[tuple[bytes, bytes]], body: bytearray
    ) -> tuple[int, str, list[bytes]]:
        """Return status, media type and the parts of the body."""
        ...


@dataclass
class Traffic:
    """What went through the gate, by site; read by status and metrics."""

    last_seen: dict[str, float] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    turned_away: dict[str, int] = field(default_factory=dict)


class Gate:
    """An ASGI application in front of Flower's.

    Parameters
    ----------
    app : ASGI application
        Flower's SuperLink.
    book : Book
        The list of keys.
    hello : callable
        What a member is told of the run when it knocks.
    largest_object : int
        Bytes of the largest object that a site may send; requests beyond it are not read.
    lane : ObjectLane, optional
        Answers the calls that carry large objects; without it Flower does.
    """

    def __init__(
        self,
        app: App,
        book: Book,
        hello: Callable[[str], dict[str, object]],
        *,
        largest_object: int,
        lane: ObjectLane | None = None,
    ) -> None:
        self._app = app
        self._book = book
        self._hello = hello
        self._most = largest_object + _OVERHEAD
        self._lane = lane
        self.traffic = Traffic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            return
        path, headers = str(scope["path"]), dict(scope["headers"])
        if scope["method"] == "GET" and path == HEALTH:
            await answer(send, 204)
            return
        standing, site = self._caller(headers)
        if scope["method"] != "POST" or standing == "unknown":
            await self._closed(send, "unknown caller")
            return
        # Flower checks signatures too, but only of a body that it has read: a public key is no secret.
        if not signed_lately(headers):
            await self._closed(send, "bad signature")
            return
        if path == HELLO:
            await self._greet(send, standing, site)
            return
        if path not in CALLS or standing != "member":
            await self._closed(send, standing if standing != "member" else "no such path")
            return
        size = headers.get(b"content-length", b"")
        if not size.isdigit() or int(size) > self._most:
            self._count("too large")
            await answer(send, 413 if size.isdigit() else 411)
            return
        self.traffic.last_seen[site] = time.time()
        self.traffic.received[site] = self.traffic.received.get(site, 0) + int(size)
        CALLER.set(site)
        if self._lane is not None and path in self._lane.paths:
            body = await _body(receive, int(size))
            if body is None:
                self._count("cut off")
                return
            code, media, parts = await self._lane.answer(path, list(scope["headers"]), body)
            await answer(send, code, *parts, media=media)
            return
        await self._app(scope, receive, send)

    def _caller(self, headers: dict[bytes, bytes]) -> tuple[Standing, str]:
        try:
            key = base64.b64decode(
                headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b""), validate=True
            )
        except binascii.Error:
            return "unknown", ""
        return self._book.standing(key)

    async def _greet(self, send: Send, standing: Standing, site: str) -> None:
        told: dict[str, object] = {"site": site, "standing": standing}
        if standing == "member":
            told |= self._hello(site)
        await answer(send, 200, json.dumps(told).encode())

    async def _closed(self, send: Send, why: str) -> None:
        self._count(why)
        await answer(send, 404)

    def _count(self, why: str) -> None:
        self.traffic.turned_away[why] = self.traffic.turned_away.get(why, 0) + 1


def signed_lately(headers: dict[bytes, bytes]) -> bool:
    """Whether the headers carry a valid signature over a time of the last minutes, by the key they name.

    The clocks of the two ends may differ by as much: a hello is how a site finds out that they do.
    """
    try:
        stamp = headers[TIMESTAMP_HEADER.lower().encode()]
        key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()], validate=True)
        signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.lower().encode()], validate=True)
        age = (datetime.now(UTC) - datetime.fromisoformat(stamp.decode("ascii"))).total_seconds()
        return abs(age) < HELLO_AGE_S and verify_signature(bytes_to_public_key(key), stamp, signature)
    except (KeyError, ValueError, TypeError, UnicodeError):
        return False


async def _body(receive: Receive, size: int) -> bytearray | None:
    """Return a request's body of the size that was stated; None where it does not come so, or not in time.

    Filled piece by piece: a list of the pieces and their join would be held twice, for every call at once.
    """
    body = bytearray(size)
    filled = 0
    more = True
    try:
        async with asyncio.timeout(BODY_S):
            while more:
                message = await receive()
                piece = message.get("body", b"")
                if message["type"] == "http.disconnect" or filled + len(piece) > size:
                    return None
                body[filled : filled + len(piece)] = piece
                filled += len(piece)
                more = message.get("more_body", False)
    except TimeoutError:
        return None
    return body if filled == size else None


async def answer(send: Send, status: int, *parts: bytes, media: str = "application/json") -> None:
    """Send a whole answer: status, media type, and the body in parts."""
    headers = [(b"content-length", str(sum(map(len, parts))).encode())]
    if parts:
        headers.append((b"content-type", media.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        # In pieces: what is handed over at once is held a second time, encrypted, until it has gone.
        for start in range(0, len(part), _PIECE):
            piece = part[start : start + _PIECE]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
