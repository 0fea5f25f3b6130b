"""The way out through a hospital's proxy: HTTPS_PROXY, one CONNECT, TLS end to end inside it."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from fedglioma.bundle import build_bundle
from fedglioma.config.site import SiteConfig
from fedglioma_client.reach import Door, knock
from fedglioma_server.gate import Gate
from fedglioma_server.link import Address, serving
from fedglioma_server.members import Members
from fedglioma_server.provision_request import Request
from fedglioma_server.run_provision import provision
from tests.ports import free_port

pytestmark = pytest.mark.flower


class Proxy:
    """A proxy that knows CONNECT only, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            method, target, _ = head.split(b"\r\n")[0].split(b" ")
            self.asked.append((method.decode(), target.decode()))
            host, _, port = target.decode().rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join()

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):  # a side that is gone ends both ways
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def consortium(tmp_path):
    """An authority and a server certificate for loopback, as provision makes them."""
    out = tmp_path / "consortium"
    provision(Request(out=out, hosts=("127.0.0.1",), sites=("ningxia",)))
    return out


def settings(consortium: Path, port: int) -> SiteConfig:
    kit = consortium / "kits" / "ningxia"
    return SiteConfig(
        site="ningxia", data=kit, server=f"127.0.0.1:{port}", ca=kit / "ca.pem", key=kit / "node.key"
    )


async def nothing(_scope, _receive, _send):
    """Flower's place behind the gate; a knock never gets there."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the listener's end of the closed tunnel
def test_a_knock_goes_through_the_proxy_and_tls_stays_whole(consortium, monkeypatch):
    told = {"run": "r", "version": "0", "bundle": build_bundle().digest}
    gate = Gate(nothing, Members(consortium / "sites"), lambda _site: told, largest_object=1)
    address = Address(
        "127.0.0.1", 0, consortium / "server" / "server.pem", consortium / "server" / "server.key"
    )
    proxy = Proxy()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(os.environ, "HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    try:
        with serving(gate, address) as port:
            found = knock(settings(consortium, port))
            assert found.door is Door.OPEN, found.detail
            assert proxy.asked == [("CONNECT", f"127.0.0.1:{port}")]
    finally:
        proxy.close()


def test_a_proxy_that_is_not_there_is_named(consortium, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(os.environ, "HTTPS_PROXY", f"http://localhost:{free_port()}")
    found = knock(settings(consortium, 1))
    assert found.door is Door.AWAY
    assert "does not answer through the proxy localhost" in found.detail
    assert "HTTPS_PROXY" in found.remedy
