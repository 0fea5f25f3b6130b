"""The one port that is open: whoever does not belong learns nothing there, and is turned away in words."""

import base64
import secrets
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedglioma.nodekey import create_private_key, public_bytes, read_private_key
from fedglioma_server.gate import CALLS, HELLO
from fedglioma_server.handle import Handle, handle_file
from tests.federation_processes import Federation, Ground, federation

pytestmark = [pytest.mark.flower, pytest.mark.slow]

GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def waiting(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that waits for its hospitals."""
    folder = tmp_path_factory.mktemp("waiting") / "federation"
    with federation(ground, folder, cohorts=[]) as made:
        made.serve()
        made.until(lambda: bool(made.status()), "the server waits")
        yield made


@pytest.fixture
def caller(waiting: Federation) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=str(waiting.consortium / "ca" / "ca.pem"))
    with httpx.Client(verify=trust, base_url=f"https://127.0.0.1:{waiting.port}", timeout=60) as client:
        yield client


def signed(key: Path, at: datetime | None = None) -> dict[str, str]:
    """Return the headers by which a site proves who it is."""
    private = read_private_key(key)
    stamp = (at or datetime.now(UTC)).isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_bytes(private)).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(private, stamp.encode())).decode(),
        TIMESTAMP_HEADER: stamp,
    }


def public_of(key: Path) -> str:
    """Return the header by which the owner of a key names it."""
    return signed(key)[FLEET_HTTP_PUBLIC_KEY_HEADER]


def assert_closed(answer: httpx.Response, code: int = 404) -> None:
    """What came back says nothing: no words, no name of a program, no kind of content."""
    assert answer.status_code == code
    assert answer.content == b""
    assert set(answer.headers) <= {"content-length", "date"}


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/redoc", "/status", "/stop", "/metrics", "/v1/fedglioma/hello"),
        *("/v1/control/list-runs", "/v1/runtime/pull-messages", "/v1/fleet/register-node"),
        *("/v1/fleet/pull-messages", "/v1/fleet/../control/list-runs", "/health/x"),
    ],
)
def test_stranger_learns_nothing_on_any_path(method, path, caller):
    assert_closed(caller.request(method, path))


def test_health_says_only_that_somebody_is_there(caller):
    assert_closed(caller.get("/health"), 204)


def test_member_gets_no_further_than_the_fleets_calls(caller, waiting):
    for path in ("/v1/control/list-runs", "/v1/runtime/pull-messages", "/v1/fleet/register-node", "/docs"):
        assert_closed(caller.post(path, headers=signed(waiting.kit("ningxia") / "node.key")))


def test_plain_http_on_the_port_is_closed_without_a_word(waiting):
    with socket.create_connection(("127.0.0.1", waiting.port), timeout=60) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"HTTP" not in everything(plain)


def test_random_bytes_on_the_port_are_closed_without_a_word(waiting):
    with socket.create_connection(("127.0.0.1", waiting.port), timeout=60) as plain:
        plain.sendall(secrets.token_bytes(4096))
        assert len(everything(plain)) < 16  # at most an alert of TLS, which names nobody


def test_random_bytes_inside_tls_learn_nothing(waiting):
    trust = ssl.create_default_context(cafile=str(waiting.consortium / "ca" / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", waiting.port), timeout=60) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as inside,
    ):
        inside.sendall(b"\x00\xff" * 2048 + b"\r\n\r\n")
        said = everything(inside).lower()
    assert b"server:" not in said
    assert b"uvicorn" not in said
    assert b"flower" not in said


def everything(end: socket.socket) -> bytes:
    """Return all that the other end says until it hangs up."""
    said = b""
    try:
        while content := end.recv(4096):
            said += content
    except OSError:
        pass
    return said


def test_servers_control_answers_only_whoever_can_read_its_secret(waiting):
    path = handle_file(waiting.run)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    handle = Handle.model_validate_json(path.read_text())
    for secret in ("", "Bearer", f"Bearer {handle.secret[:-1]}", handle.secret):
        for method, call in (("GET", "status"), ("POST", "stop")):
            answer = httpx.request(
                method,
                f"http://127.0.0.1:{handle.port}/{call}",
                headers={"authorization": secret},
                timeout=60,
            )
            assert (answer.status_code, answer.content) == (404, b"")
            assert "server" not in answer.headers
    assert waiting.status()["stopping"] is False


def test_caller_without_a_key_with_a_foreign_or_a_stale_one_is_turned_away(caller, waiting, tmp_path):
    create_private_key(tmp_path / "node.key")
    kit = waiting.kit("ningxia") / "node.key"
    mixed = signed(kit) | {
        FLEET_HTTP_SIGNATURE_HEADER: signed(tmp_path / "node.key")[FLEET_HTTP_SIGNATURE_HEADER]
    }
    stale = signed(kit, datetime.now(UTC) - timedelta(minutes=6))
    for headers in ({}, {FLEET_HTTP_PUBLIC_KEY_HEADER: "?"}, signed(tmp_path / "node.key"), mixed, stale):
        assert_closed(caller.post(HELLO, headers=headers))
    told = caller.post(HELLO, headers=signed(kit))
    assert told.json()["standing"] == "member"


def test_flowers_calls_need_a_fresh_signature_of_the_key_that_they_name(caller, waiting, tmp_path):
    create_private_key(tmp_path / "node.key")
    kit = waiting.kit("ningxia") / "node.key"
    mixed = signed(kit) | {
        FLEET_HTTP_SIGNATURE_HEADER: signed(tmp_path / "node.key")[FLEET_HTTP_SIGNATURE_HEADER]
    }
    stale = signed(kit, datetime.now(UTC) - timedelta(minutes=6))
    early = signed(kit, datetime.now(UTC) + timedelta(minutes=6))
    for path in sorted(CALLS):
        assert_closed(caller.post(path, headers=signed(tmp_path / "node.key")))
        for headers in (mixed, stale, early):
            assert_closed(caller.post(path, headers=headers | {"content-type": PROTOBUF_MEDIA_TYPE}))


def test_member_cannot_call_in_the_name_of_another(caller, waiting):
    other = Node(node_id=waiting.node("henan"))
    key = read_private_key(waiting.kit("henan") / "node.key")
    for path, request in (
        ("activate-node", ActivateNodeRequest(public_key=public_bytes(key), heartbeat_interval=30)),
        ("deactivate-node", DeactivateNodeRequest(node_id=other.node_id)),
        ("send-node-heartbeat", SendNodeHeartbeatRequest(node=other, heartbeat_interval=30)),
        ("pull-messages", PullMessagesRequest(node=other)),
        ("push-messages", PushMessagesRequest(node=other)),
        ("push-object", PushObjectRequest(node=other, object_id="0" * 64, object_content=b"x")),
        ("pull-object", PullObjectRequest(node=other, object_id="0" * 64)),
    ):
        told = caller.post(
            f"/v1/fleet/{path}",
            headers=signed(waiting.kit("ningxia") / "node.key") | {"content-type": PROTOBUF_MEDIA_TYPE},
            content=request.SerializeToString(),
        )
        assert told.status_code == 401, (path, told.status_code, told.text)
    assert waiting.status()["sites"]["henan"]["online"] is False


@pytest.mark.parametrize("path", sorted(CALLS))
def test_a_gigabyte_is_refused_before_it_is_read(path, caller, waiting):
    headers = signed(waiting.kit("ningxia") / "node.key")
    began = time.monotonic()
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {GIGABYTE}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    trust = ssl.create_default_context(cafile=str(waiting.consortium / "ca" / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", waiting.port), timeout=60) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as inside,
    ):
        inside.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        said = inside.recv(4096)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - began < 60  # for the body it would wait for five minutes


def test_payload_without_a_length_is_refused(caller, waiting):
    def endless() -> Iterator[bytes]:
        yield bytes(1024)

    headers = signed(waiting.kit("ningxia") / "node.key")
    assert_closed(caller.post("/v1/fleet/push-object", headers=headers, content=endless()), 411)


def test_client_with_a_key_that_nobody_knows_ends_with_7(waiting, tmp_path):
    shutil.copytree(waiting.kit("henan"), tmp_path / "henan")
    (tmp_path / "henan" / "node.key").unlink()
    create_private_key(tmp_path / "henan" / "node.key")
    client = waiting.join("henan", folder=tmp_path / "henan")
    waiting.ends(client, 7)
    assert "does not know this site's key (SHA256:" in client.said()


def test_client_with_another_sites_key_ends_with_7(waiting, tmp_path):
    shutil.copytree(waiting.kit("henan"), tmp_path / "henan")
    shutil.copy(waiting.kit("ningxia") / "node.key", tmp_path / "henan" / "node.key")
    client = waiting.join("henan", folder=tmp_path / "henan")
    waiting.ends(client, 7)
    assert "knows this key as 'ningxia', the settings say 'henan'" in client.said()


def test_client_with_a_key_that_others_can_read_ends_with_7(waiting, tmp_path):
    shutil.copytree(waiting.kit("henan"), tmp_path / "henan")
    (tmp_path / "henan" / "node.key").chmod(0o644)
    client = waiting.join("henan", folder=tmp_path / "henan")
    waiting.ends(client, 7)
    assert "other users of this computer can use this private key" in client.said()


def test_site_that_is_revoked_is_shut_out_within_seconds_and_ends_with_7(waiting):
    client = waiting.join("zhengzhou", once=False)
    waiting.until(lambda: waiting.audit("site_joined", site="zhengzhou"), "zhengzhou has joined")
    key = waiting.consortium / "sites" / "zhengzhou.pub"
    revoked = waiting.consortium / "sites" / "revoked"
    revoked.mkdir(exist_ok=True)
    key.rename(revoked / key.name)
    waiting.until(lambda: "zhengzhou" not in waiting.status()["sites"], "it is shut out", 60)
    waiting.ends(client, 7)
    assert "the coordinator has revoked this site's key" in client.said()
    assert waiting.audit("key_revoked", site="zhengzhou")
    late = waiting.join("zhengzhou", once=False)
    waiting.ends(late, 7)
