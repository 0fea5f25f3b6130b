"""Whoever does not belong is turned away, whatever does not fit is left out, and the others go on."""

import base64
import secrets
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedglioma.nodekey import create_private_key, public_bytes, read_private_key
from fedglioma.wire import FINISHED, STATISTICS, Noted, Refusal, reply_to
from fedglioma_server.authority import (
    certificate_pem,
    create_authority,
    issue_server,
    key_pem,
    new_key,
    read_certificate,
    read_key,
)
from fedglioma_server.control import Handle, handle_file
from fedglioma_server.gate import CALLS, HELLO
from fedglioma_server.link import Address, serving
from tests.federation_member import USUAL_STEP, Member, statistics, step, update
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
    with httpx.Client(verify=trust, base_url=f"https://127.0.0.1:{waiting.port}") as client:
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


# --- a scan of the port


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
    with socket.create_connection(("127.0.0.1", waiting.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"HTTP" not in everything(plain)


def test_random_bytes_on_the_port_are_closed_without_a_word(waiting):
    with socket.create_connection(("127.0.0.1", waiting.port), timeout=10) as plain:
        plain.sendall(secrets.token_bytes(4096))
        assert len(everything(plain)) < 16  # at most an alert of TLS, which names nobody


def test_random_bytes_inside_tls_learn_nothing(waiting):
    trust = ssl.create_default_context(cafile=str(waiting.consortium / "ca" / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", waiting.port), timeout=10) as plain,
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
                method, f"http://127.0.0.1:{handle.port}/{call}", headers={"authorization": secret}
            )
            assert (answer.status_code, answer.content) == (404, b"")
            assert "server" not in answer.headers
    assert waiting.status()["stopping"] is False


# --- who may come in


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


@pytest.mark.parametrize("path", sorted(CALLS))
def test_a_gigabyte_is_refused_before_it_is_read(path, caller, waiting):
    headers = signed(waiting.kit("ningxia") / "node.key")
    began = time.monotonic()
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {GIGABYTE}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    trust = ssl.create_default_context(cafile=str(waiting.consortium / "ca" / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", waiting.port), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as inside,
    ):
        inside.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        said = inside.recv(4096)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - began < 5


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
    waiting.ends(client, 7, 60)
    assert "does not know this site's key (SHA256:" in client.said()


def test_client_with_another_sites_key_ends_with_7(waiting, tmp_path):
    shutil.copytree(waiting.kit("henan"), tmp_path / "henan")
    shutil.copy(waiting.kit("ningxia") / "node.key", tmp_path / "henan" / "node.key")
    client = waiting.join("henan", folder=tmp_path / "henan")
    waiting.ends(client, 7, 60)
    assert "knows this key as 'ningxia', the settings say 'henan'" in client.said()


def test_client_with_a_key_that_others_can_read_ends_with_7(waiting, tmp_path):
    shutil.copytree(waiting.kit("henan"), tmp_path / "henan")
    (tmp_path / "henan" / "node.key").chmod(0o644)
    client = waiting.join("henan", folder=tmp_path / "henan")
    waiting.ends(client, 7, 60)
    assert "other users of this computer can use this private key" in client.said()


def test_site_that_is_revoked_is_shut_out_within_seconds_and_ends_with_7(waiting):
    client = waiting.join("zhengzhou", once=False)
    waiting.until(lambda: waiting.audit("site_joined", site="zhengzhou"), "zhengzhou has joined")
    key = waiting.consortium / "sites" / "zhengzhou.pub"
    revoked = waiting.consortium / "sites" / "revoked"
    revoked.mkdir(exist_ok=True)
    key.rename(revoked / key.name)
    took = waiting.until(lambda: "zhengzhou" not in waiting.status()["sites"], "it is shut out", 15)
    assert took < 10
    waiting.ends(client, 7, 60)
    assert "the coordinator has revoked this site's key" in client.said()
    assert waiting.audit("key_revoked", site="zhengzhou")
    late = waiting.join("zhengzhou", once=False)
    waiting.ends(late, 7, 60)


# --- the wrong server


def other_server(folder: Path, fault: str, ground: Ground) -> tuple[Path, Path]:
    """Write a server's certificate and key with something wrong about them."""
    now = datetime.now(UTC)
    authority_key = new_key() if fault == "self-made" else read_key(ground.consortium / "ca" / "ca.key")
    authority = (
        create_authority(authority_key, "fedglioma", days=10, now=now)
        if fault == "self-made"
        else read_certificate(ground.consortium / "ca" / "ca.pem")
    )
    key = new_key()
    hosts = ["other.example"] if fault == "wrong name" else ["127.0.0.1"]
    begin = max(now - timedelta(days=2), authority.not_valid_before_utc) if fault == "expired" else now
    days = 0 if fault == "expired" else 1
    certificate = issue_server(authority, authority_key, key, hosts, days=days, now=begin)
    folder.mkdir()
    (folder / "server.pem").write_bytes(certificate_pem(certificate))
    (folder / "server.key").write_bytes(key_pem(key))
    return folder / "server.pem", folder / "server.key"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("self-made", "certificate"),
        ("expired", "certificate has expired"),
        ("wrong name", "not valid for '127.0.0.1'"),
    ],
)
def test_client_that_meets_a_wrong_certificate_ends_with_7(fault, words, ground, folder):
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("a request came through")

    certificate, key = other_server(folder.parent / "other", fault, ground)
    with federation(ground, folder) as fed, serving(app, Address("127.0.0.1", 0, certificate, key)) as port:
        fed.set_site("henan", server=f"127.0.0.1:{port}")
        client = fed.join("henan")
        fed.ends(client, 7, 60)
        assert "its certificate is not the consortium's" in client.said()
        assert words in client.said()
        assert "Traceback" not in client.said()


def test_client_that_meets_a_server_without_tls_ends_with_7(ground, folder):
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("a request came through")

    with federation(ground, folder) as fed, serving(app, Address("127.0.0.1", 0)) as port:
        fed.set_site("henan", server=f"127.0.0.1:{port}")
        client = fed.join("henan")
        fed.ends(client, 7, 60)
        assert "no TLS there" in client.said()


# --- a foreign bundle


def test_client_of_another_version_ends_with_5_at_the_door(ground, folder):
    with federation(ground, folder, cohorts=[]) as fed:
        fed.serve(meddle="bundle")
        fed.until(lambda: bool(fed.status()), "the server waits")
        client = fed.join("henan")
        fed.ends(client, 5, 60)
        assert "with another bundle than this site's; install the version" in client.said()
        assert not fed.audit("site_joined")


def test_site_refuses_a_run_with_a_foreign_bundle_and_unpacks_nothing(ground, folder):
    with federation(ground, folder, cohorts=[], expected=["henan"], run={"quorum": 1}) as fed:
        server = fed.serve(meddle="run_bundle")
        client = fed.join("henan")
        fed.ends(server, 3)
        (refused,) = fed.audit("site_refused", site="henan")
        assert "PolicyError: bundle " in refused["reason"]
        assert "install the same version at both ends" in refused["reason"]
        assert "refused: bundle " in client.said()
        assert not [path for path in fed.kit("henan").rglob("*") if path.suffix in (".py", ".toml", ".fab")]
        log = next(fed.kit("henan").rglob("audit.jsonl")).read_text()
        assert '"refused"' in log
        assert "bundle" in log


# --- what a member sends


def next_message(fed: Federation, member: Member, group: str) -> Message:
    """Return the message of a round once it is there."""
    found: list[Message] = []

    def there() -> bool:
        message = member.pull()
        if message is not None:
            found.append(message)
        return message is not None

    fed.until(there, f"{member.site} has its message of round {group}")
    assert found[0].metadata.group_id == group
    return found[0]


def spoiled(message: Message, value: float) -> Message:
    """Return an update with one number replaced."""
    packed = step(message)
    packed["trunk"][3] = value
    return update(message, packed, "henan")


def test_bad_updates_are_left_out_with_their_reasons_and_the_run_goes_on(ground, folder):
    settings = {"rounds": 8, "grace_s": 6}
    with ExitStack() as stack:
        fed = stack.enter_context(federation(ground, folder, cohorts=[], run=settings))
        server = fed.serve()
        sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
        fed.until(lambda: bool(fed.status()), "the server waits")
        henan = stack.enter_context(
            Member.joined("henan", fed.port, fed.consortium / "ca" / "ca.pem", fed.kit("henan") / "node.key")
        )
        message = next_message(fed, henan, "0")
        assert message.metadata.message_type == STATISTICS
        henan.push(statistics(message, "henan"))
        first = next_message(fed, henan, "1")
        henan.push(update(first, step(first), "henan"))

        message = next_message(fed, henan, "2")
        henan.push(spoiled(message, np.nan))
        message = next_message(fed, henan, "3")
        henan.push(spoiled(message, np.inf))
        message = next_message(fed, henan, "4")
        packed = step(message)
        packed["trunk"] = packed["trunk"][:-1]
        henan.push(update(message, packed, "henan"))
        message = next_message(fed, henan, "5")
        henan.push(update(message, step(message, 100 * USUAL_STEP), "henan"))
        message = next_message(fed, henan, "6")
        refusal = Refusal(site="henan", error="PolicyError", exit_code=5, reason="policy: no more rounds")
        henan.push(reply_to(message, refusal))

        late = next_message(fed, henan, "7")
        fed.until(fed.complete(7), "round 7 is over without henan", 60)
        assert not henan.push(update(late, step(late), "henan")), "a late reply was taken"
        assert not henan.push(update(first, step(first), "henan")), "an old reply was taken again"

        message = next_message(fed, henan, "8")
        answer = update(message, step(message), "henan")
        forged = update(message, step(message), "ningxia")
        forged.metadata.__dict__["_src_node_id"] = node_of(fed, "ningxia")
        assert not henan.push(forged), "a reply in another's name was taken"
        heavy = ObjectTree(object_id=answer.object_id)
        heavy.children.extend(ObjectTree(object_id=secrets.token_hex(32)) for _ in range(1000))
        assert henan.push_head(answer, heavy)[0] == [], "a reply of a thousand objects was taken"
        assert henan.push(answer)
        assert not henan.push(answer), "a reply was taken twice"

        message = next_message(fed, henan, "end")
        assert message.metadata.message_type == FINISHED
        henan.push(reply_to(message, Noted(site="henan")))
        fed.ends(server, 0)
        for site in sites.values():
            fed.ends(site, 0)
        lines = {line.round: line.sites["henan"] for line in fed.rounds()[1:]}
        found = {number: (line.status, line.code) for number, line in lines.items()}
        assert found == {
            1: ("ok", None),
            2: ("error", "nonfinite"),
            3: ("error", "nonfinite"),
            4: ("error", "shape"),
            5: ("error", "norm"),
            6: ("refused", "policy"),
            7: ("no_reply", "no_reply"),
            8: ("ok", None),
        }
        assert "numbers that are not finite" in lines[2].reason
        assert "100 times as long as the round's median" in lines[5].reason or "times" in lines[5].reason
        assert lines[6].reason == "PolicyError: policy: no more rounds"
        for line in fed.rounds()[1:]:
            assert {line.sites[site].status for site in sites} == {"ok"}
        reasons = [(one["site"], one["reason"]) for one in fed.audit("refused")]
        assert ("henan", "it names ningxia as its sender") in reasons
        assert ("henan", "a reply of 1001 objects is too large") in reasons
        assert sum("late, a duplicate" in reason for _, reason in reasons) == 3
        excluded = {one["round"]: one["reason"].partition(":")[0] for one in fed.audit("excluded")}
        assert excluded == {str(n): line.code for n, line in lines.items() if line.status != "ok"}
        for client in sites.values():
            assert "Traceback" not in client.said()


def node_of(fed: Federation, site: str) -> int:
    """Return Flower's number of a site, which follows from its key."""
    from fedglioma.nodekey import read_public_key
    from fedglioma.seeds import derive_seed

    return derive_seed("node", read_public_key(fed.consortium / "sites" / f"{site}.pub").hex())


def test_site_that_does_not_agree_is_left_out_and_says_why(ground, folder):
    with federation(ground, folder, cohorts=[], run={"rounds": 1}) as fed:
        fed.set_site("henan", policy={"strategies": ["fedprox"]})
        server, sites = fed.serve(), fed.join_all()
        fed.ends(server, 0)
        fed.ends(sites["ningxia"], 0)
        fed.ends(sites["zhengzhou"], 0)
        reasons = {one["reason"] for one in fed.audit("site_refused", site="henan")}
        assert reasons == {"PolicyError: policy: strategy fedavg is not among fedprox"}
        assert "policy: strategy fedavg is not among fedprox" in sites["henan"].said()
        assert "henan" not in fed.rounds()[-1].sites
