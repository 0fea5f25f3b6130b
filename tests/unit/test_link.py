"""The one public port: when it opens, with which identity, and what it says where it cannot."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedglioma.errors import ConfigError, IdentityError
from fedglioma_server import link
from fedglioma_server.authority import certificate_pem, create_authority, issue_server, key_pem, new_key
from fedglioma_server.gate import Standing
from fedglioma_server.link import Address, Link, serving

NOW = datetime.now(UTC)


async def closed(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def identity(folder: Path, name: str = "server") -> tuple[Path, Path, Path]:
    """Write a certificate for this computer; return it, its key and its authority."""
    authority_key, key = new_key(), new_key()
    authority = create_authority(authority_key, "test", days=2, now=NOW)
    issued = issue_server(authority, authority_key, key, ["127.0.0.1"], days=1, now=NOW)
    paths = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem"
    for path, content in zip(
        paths, (certificate_pem(issued), key_pem(key), certificate_pem(authority)), strict=True
    ):
        path.write_bytes(content)
    return paths


def test_port_answers_over_tls_with_the_certificate_given_and_closes_with_the_block(tmp_path):
    certificate, key, ca = identity(tmp_path)
    trust = ssl.create_default_context(cafile=str(ca))
    with serving(closed, Address("127.0.0.1", 0, certificate, key)) as port:
        answer = httpx.get(f"https://127.0.0.1:{port}/", verify=trust, timeout=60)
        assert answer.status_code == 404
        assert "server" not in answer.headers
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)


def test_old_versions_of_tls_are_refused(tmp_path):
    certificate, key, ca = identity(tmp_path)
    with serving(closed, Address("127.0.0.1", 0, certificate, key)) as port:
        old = ssl.create_default_context(cafile=str(ca))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_port_that_is_taken_is_told_with_its_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                ConfigError, match=rf"127\.0\.0\.1:{port}: cannot listen there .*set address and port"
            ),
            serving(closed, Address("127.0.0.1", port)),
        ):
            pass


def test_address_of_another_computer_is_told():
    with pytest.raises(ConfigError, match="cannot listen there"), serving(closed, Address("192.0.2.1", 0)):
        pass


@pytest.mark.parametrize("missing", ["server.pem", "server.key"])
def test_identity_that_is_not_there_is_told_before_anything_opens(missing, tmp_path):
    certificate, key, _ = identity(tmp_path)
    (tmp_path / missing).unlink()
    with (
        pytest.raises(IdentityError, match=rf"{missing}: not there; fedglioma-server provision"),
        serving(closed, Address("127.0.0.1", 0, certificate, key)),
    ):
        pass


def test_key_of_another_certificate_is_told(tmp_path):
    certificate, _, _ = identity(tmp_path)
    _, other, _ = identity(tmp_path, "other")
    with (
        pytest.raises(IdentityError, match=r"server\.pem: cannot be used with .*other\.key"),
        serving(closed, Address("127.0.0.1", 0, certificate, other)),
    ):
        pass


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection, within the test's patience."""
    connection.settimeout(60)
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


def answered(port: int, opened: ExitStack) -> socket.socket:
    """Return a connection on which a request was answered; a slow computer brings not every one in time."""
    for _ in range(20):
        connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        with suppress(ConnectionError):
            connection.sendall(REQUEST)
            if connection.recv(1000).startswith(b"HTTP/1.1 404"):
                return connection
    raise AssertionError("no request was answered")


REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def test_connection_that_brings_no_whole_request_is_closed(monkeypatch):
    monkeypatch.setattr(link, "HEADERS_S", 1.5)
    with serving(closed, Address("127.0.0.1", 0)) as port, ExitStack() as opened:
        silent, half = (
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(2)
        )
        second = answered(port, opened)
        for connection in (half, second):
            with suppress(ConnectionError):  # closed already
                connection.sendall(REQUEST[:20])
        assert all(ended(connection) for connection in (silent, half, second))


def test_request_that_takes_its_time_is_answered(monkeypatch):
    monkeypatch.setattr(link, "HEADERS_S", 0.5)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.6)
        await closed(scope, receive, send)

    def body() -> Iterator[bytes]:
        for _ in range(4):
            time.sleep(0.2)
            yield b"part"

    def codes(port: int) -> list[int]:
        with httpx.Client(timeout=60) as client:
            return [client.post(f"http://127.0.0.1:{port}/", content=body()).status_code for _ in range(2)]

    with serving(slow, Address("127.0.0.1", 0)) as port:
        for _ in range(10):
            with suppress(httpx.TransportError):  # a slow computer did not bring the headers in time
                assert codes(port) == [404, 404]
                return
    raise AssertionError("no request was answered")


class Nobody:
    def standing(self, public_key: bytes) -> tuple[Standing, str]:
        return "unknown", ""


def test_superlink_of_this_process_has_our_state_and_begins_a_run(tmp_path, monkeypatch):
    monkeypatch.delenv("FLWR_HOME", raising=False)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    made = Link(
        Nobody(),
        tmp_path / "spool",
        payload_bytes=10_000_000,
        hello=lambda _site: {},
        refused=lambda *_: None,
    )
    run = made.begin_run()
    assert made.state.running()
    assert made.state.get_run_info(run_ids=[run])[0].fab_version
    assert made.state.object_store is made.state.spool
    assert made.state.most_objects < 100
    made.state.close()
