"""The recipes of deploy/nginx in front of the real programs, on loopback."""

import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.control_pb2 import RegisterNodeRequest, RegisterNodeResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedglioma.nodekey import public_bytes
from fedglioma_server.runfolder import RunFolder
from tests.cli_fixture import plain_environment
from tests.ports import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
WAIT_S = 300.0
MODULES = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

pytestmark = [
    pytest.mark.flower,
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("nginx") or not MODULES.exists(),
        reason="nginx with its stream module is not installed (Debian: nginx libnginx-mod-stream)",
    ),
]


def until(seen: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if found := seen():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {WAIT_S:.0f} s")


def done(folder: Path, *words: Any) -> str:
    """Return what a program said, once it ended well."""
    ended = subprocess.run(  # noqa: S603 (our own commands)
        words, capture_output=True, text=True, check=False, env=environment(folder)
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def environment(folder: Path) -> dict[str, str]:
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "NO_PROXY": "*", "no_proxy": "*"}
    flower = {
        "PATH": f"{BIN}:/usr/sbin:/usr/bin:/bin",  # SuperLink starts a program of its own by name
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(folder / "flwr"),
    }
    return plain_environment() | quiet | flower


def provision(folder: Path, port: int, *hosts: str) -> Path:
    consortium = folder / "consortium"
    words = ["--out", consortium, "--port", str(port), "--site", "ningxia"]
    words += [word for host in hosts for word in ("--host", host)]
    done(folder, BIN / "fedglioma-server", "provision", *words)
    return consortium


@contextmanager
def running(words: list[Any], log: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 (our own commands)
            words, stdout=file, stderr=subprocess.STDOUT, env=environment(folder)
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def nginx(recipe: str, folder: Path, port: int, changes: dict[str, str]) -> Iterator[None]:
    """Run a recipe as it is shipped, but for its ports and places."""
    text = (DEPLOY / "nginx" / recipe).read_text()
    places = {"listen 443": f"listen {HOST}:{port}", "/run/nginx.pid": f"{folder}/nginx.pid"}
    for shipped, here in (places | {"/var/log/nginx/": f"{folder}/"} | changes).items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    conf = folder / "nginx.conf"
    conf.write_text(text)
    done(folder, "nginx", "-t", "-c", conf)
    with running(["nginx", "-c", conf, "-g", "daemon off;"], folder / "nginx.out", folder):
        until(lambda: answers(port), "nginx")
        yield


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((HOST, port)) == 0


# 1. TLS pass-through in front of our server


def test_site_joins_and_finishes_a_run_through_the_pass_through(tmp_path: Path) -> None:
    outside, inside = free_port(), free_port()
    consortium = provision(tmp_path, outside, HOST)
    made = ("--patients", "12", "--size", "16")
    done(tmp_path, BIN / "fedglioma-server", "synthesize", tmp_path / "data", *made)
    kit = consortium / "kits" / "ningxia"
    settings = (kit / "ningxia.yaml").read_text()
    (kit / "ningxia.yaml").write_text(
        re.sub(r"^data: .*", f"data: {tmp_path}/data", settings, flags=re.MULTILINE)
    )
    start = [BIN / "fedglioma-server", "start", "--config", consortium / "server.yaml"]
    start += ["--address", HOST, "--port", str(inside), "--out", tmp_path / "run"]
    start += ["--rounds", "2", "--width", "1", "--crop", "16", "--spacing-mm", "8", "--batch-size", "4"]
    start += ["--quorum", "1", "--selection", "0", "--report", "0", "--bootstrap", "100"]
    start += ["--no-bias-correction"]
    join = [BIN / "fedglioma-client", "--site", "ningxia", "--config-dir", kit, "--once"]
    shipped = {"server 127.0.0.1:8443 ": f"server {HOST}:{inside} "}
    with ExitStack() as open_things:
        open_things.enter_context(nginx("passthrough.conf", tmp_path, outside, shipped))
        server = open_things.enter_context(running(start, tmp_path / "server.log", tmp_path))
        until(lambda: answers(inside), "server")
        client = open_things.enter_context(running(join, tmp_path / "client.log", tmp_path))
        assert server.wait(WAIT_S) == 0, (tmp_path / "server.log").read_text()
        assert client.wait(WAIT_S) == 0, (tmp_path / "client.log").read_text()
        lines = RunFolder(tmp_path / "run").rounds()
        assert [line.round for line in lines] == [0, 1, 2]
        assert [line.sites["ningxia"].status for line in lines[1:]] == ["ok", "ok"]
        up = sum(line.sites["ningxia"].bytes_up for line in lines[1:])
        until(lambda: carried(tmp_path / "fedglioma.log") > up, "all of it went through nginx")


def carried(log: Path) -> int:
    """Return the bytes that went in by connections that are closed."""
    return sum(map(int, re.findall(r" 200 received=(\d+)", log.read_text())))


# 2. Flower's stock SuperLink behind a filter of paths


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("superlink")
    outside, inside = free_port(), free_port()
    consortium = provision(folder, outside, "localhost", HOST)
    ca, server = consortium / "ca" / "ca.pem", consortium / "server"
    link = [BIN / "flower-superlink", "--host", HOST, "--port", str(inside), "--enable-supernode-auth"]
    link += ["--ssl-ca-certfile", ca, "--ssl-certfile", server / "server.pem"]
    link += ["--ssl-keyfile", server / "server.key", "--disable-runtime-dependency-installation"]
    shipped = {
        "server 127.0.0.1:8000 ": f"server {HOST}:{inside} ",
        "/etc/fedglioma/server.": f"{server}/server.",
        "/etc/fedglioma/ca.pem": str(ca),
    }
    with running(link, folder / "superlink.log", folder), nginx("superlink.conf", folder, outside, shipped):
        until(lambda: answers(inside), "superlink")
        yield {"outside": f"{HOST}:{outside}", "inside": f"{HOST}:{inside}", "ca": ca, "folder": folder}


def trust(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


@contextmanager
def caller(superlink: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> Iterator[FleetHttpClient]:
    """Give Flower's own caller of the fleet interface, as a SuperNode has it."""
    fleet = FleetHttpClient(
        f"https://{superlink['outside']}",
        interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        verify=trust(superlink["ca"]),
    )
    with closing(fleet):
        yield fleet


def register(superlink: Mapping[str, Any], key: ec.EllipticCurvePrivateKey, *, address: str) -> int:
    """Return the node that SuperLink's control interface makes of a key."""
    with closing(ProtobufClient(f"https://{superlink[address]}", verify=trust(superlink["ca"]))) as client:
        answer = client._unary_unary(
            path="/v1/control/register-node",
            rpc_method="/flwr.proto.Control/RegisterNode",
            request=RegisterNodeRequest(public_key=public_bytes(key)),
            response_type=RegisterNodeResponse,
        )
    return int(answer.node_id)


def test_registered_node_is_activated_and_asks_for_work_through_the_filter(
    superlink: dict[str, Any],
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    node_id = register(superlink, key, address="inside")
    with caller(superlink, key) as fleet:
        assert fleet.ActivateNode(activation(key)).node_id == node_id
        assert not fleet.PullMessages(PullMessagesRequest(node=Node(node_id=node_id))).messages_list


def test_node_without_a_registered_key_is_refused_behind_the_filter(superlink: dict[str, Any]) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with caller(superlink, key) as fleet, pytest.raises(httpx.HTTPStatusError) as refused:
        fleet.ActivateNode(activation(key))
    assert refused.value.response.status_code == 412
    assert refused.value.response.content  # SuperLink's own words: the call went through


def test_object_of_flowers_largest_size_passes_without_touching_the_disk(superlink: dict[str, Any]) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    node_id = register(superlink, key, address="inside")
    largest = PushObjectRequest(
        node=Node(node_id=node_id),
        run_id=1,
        object_id="0" * 64,
        object_content=bytes(FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 64 * 1024),
    )
    with caller(superlink, key) as fleet:
        fleet.ActivateNode(activation(key))
        with pytest.raises(httpx.HTTPStatusError) as refused:  # no such run: the body has arrived for that
            fleet.PushObject(largest)
    assert refused.value.response.status_code not in {413, 502, 504}
    assert "temporary file" not in (superlink["folder"] / "error.log").read_text()


def activation(key: ec.EllipticCurvePrivateKey) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=public_bytes(key), heartbeat_interval=30)


CLOSED = (
    "/",
    "/docs",
    "/openapi.json",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages%0a",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/pull-messages/../../control/list-nodes",
    "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2flist-nodes",
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/v1/control/list-runs",
    "/v1/runtime/acquire-task",
    "//v1/control/list-nodes",
    "/V1/control/list-nodes",
)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", CLOSED)
def test_path_outside_the_filter_gets_an_empty_404(superlink: dict[str, Any], path: str, method: str) -> None:
    status, body = raw(superlink, f"{method} {path} HTTP/1.1")
    assert (status, body) == (404, b"")


def test_control_interface_that_answers_on_loopback_is_not_there_outside(superlink: dict[str, Any]) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    assert register(superlink, key, address="inside")
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        register(superlink, ec.generate_private_key(ec.SECP384R1()), address="outside")


def test_health_is_all_that_a_stranger_can_ask(superlink: dict[str, Any]) -> None:
    assert raw(superlink, "GET /health HTTP/1.1")[0] == 200
    assert raw(superlink, "POST /health HTTP/1.1") == (404, b"")
    assert raw(superlink, "GET /v1/fleet/pull-messages HTTP/1.1") == (404, b"")
    assert raw(superlink, "nonsense") == (404, b"")


def test_plain_http_is_answered_by_a_closed_door(superlink: dict[str, Any]) -> None:
    answer = httpx.get(f"http://{superlink['outside']}/health", trust_env=False, timeout=60)
    assert (answer.status_code, answer.content) == (404, b"")


def raw(superlink: Mapping[str, Any], line: str) -> tuple[int, bytes]:
    """Return status and body of a request whose path no library has tidied."""
    host, _, port = superlink["outside"].partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        trust(superlink["ca"]).wrap_socket(plain, server_hostname=host) as tls,
    ):
        tls.sendall(f"{line}\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
