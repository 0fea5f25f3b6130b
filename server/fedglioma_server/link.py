"""The SuperLink inside the server's process: one public port, and nothing else that listens for hospitals.

Flower's control interface and its runtime have no listener at all: what they would be called for, the
server does in its own process.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import uvicorn
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.fab import Fab
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedglioma.bundle import build_bundle
from fedglioma.errors import ConfigError, FedGliomaError, IdentityError
from fedglioma_server.gate import App, Book, Gate
from fedglioma_server.lane import Lane
from fedglioma_server.linkstate import Refused, SiteLinkState
from fedglioma_server.objects import SpoolStore

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 512
"""A site has a few. Requests on further ones are answered with 503 until others are closed."""
HEADERS_S = 15.0
"""Seconds for a request's headers; a connection that does not bring them is closed, for it counts too."""
_START_S = 30.0
_KEEP_ALIVE_S = 75
_SLACK_OBJECTS = 64


@dataclass(frozen=True)
class Address:
    """Where the hospitals' port is, and with which identity; no certificate is no TLS."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None


class _Hurried(HttpToolsProtocol):
    """A connection that is closed where no request comes, which uvicorn itself would wait for."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hurry(True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._hurry(not self.cycle or self.cycle.response_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hurry(False)
        super().connection_lost(exc)

    def _hurry(self, waiting: bool) -> None:
        """Start the clock where a request's headers are awaited and it does not run yet, else stop it."""
        if waiting and self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_S, self.transport.abort)
        elif not waiting and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves the signals to the command that runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Link:
    """Flower's SuperLink behind the gate.

    Parameters
    ----------
    book : Book
        The list of keys.
    spool : Path
        Folder of large objects on their way.
    payload_bytes : int
        Bytes of the largest update that a site may send.
    hello : callable
        What a member is told of the run when it knocks.
    refused : callable
        Told of every reply that is not taken.
    """

    def __init__(
        self,
        book: Book,
        spool: Path,
        *,
        payload_bytes: int,
        hello: Callable[[str], dict[str, object]],
        refused: Refused,
    ) -> None:
        os.environ.setdefault("FLWR_HOME", str(spool.parent / "flower"))
        app = create_app(_superlink_settings(), SuperLinkLifespan)
        factory = app.state.linkstate_factory
        store = SpoolStore(spool)
        most = payload_bytes // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + _SLACK_OBJECTS
        self.state = SiteLinkState(
            store,
            most_objects=most,
            refused=refused,
            federation_manager=factory.federation_manager,
        )
        factory.objectstore_factory.store_instance = store
        factory.state_instance = self.state
        self.gate = Gate(
            app,
            book,
            hello,
            largest_object=FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE,
            lane=Lane(app, self.state),
        )

    def begin_run(self) -> int:
        """Return Flower's number of the run, which carries the one bundle that sites accept."""
        bundle = build_bundle()
        self.state.store_fab(Fab(bundle.digest, bundle.content, {}))
        return self.state.begin_run(bundle.digest, version("fedglioma"))

    @contextlib.contextmanager
    def listening(self, address: Address) -> Iterator[int]:
        """Serve the gate at an address until the block ends, and give the port."""
        try:
            with serving(self.gate, address) as port:
                yield port
        finally:
            self.state.close()


@contextlib.contextmanager
def serving(app: App, address: Address) -> Iterator[int]:
    """Serve an ASGI application in a thread until the block ends, and give its port.

    Raises
    ------
    ConfigError
        The address is not this machine's, or the port is taken.
    IdentityError
        Certificate and key cannot be used together.
    """
    _require_pair(address)
    listener = _Listener(
        uvicorn.Config(
            app,
            http=_Hurried,
            log_level="warning",
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=3,
            limit_concurrency=MOST_CONNECTIONS,
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
        )
    )
    bound = _bind(address)
    thread = threading.Thread(
        target=asyncio.run, args=(listener.serve(sockets=[bound]),), name="listener", daemon=True
    )
    thread.start()
    try:
        _wait_started(listener, thread)
        yield int(bound.getsockname()[1])
    finally:
        listener.should_exit = True
        thread.join(timeout=10)
        bound.close()


def _wait_started(listener: _Listener, thread: threading.Thread) -> None:
    waited = threading.Event()
    for _ in range(int(_START_S / 0.02)):
        if listener.started:
            return
        if not thread.is_alive():
            break
        waited.wait(0.02)
    raise FedGliomaError("the listener did not start; see the log above")


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
    except (OSError, OverflowError) as error:
        bound.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"{address.host}:{address.port}: cannot listen there ({why}); set address and port"
        ) from None
    return bound


def require_usable(address: Address) -> None:
    """Raise for what would keep a server from listening, before anything is opened or made.

    Raises
    ------
    ConfigError
        The address is not this machine's, or the port is taken.
    IdentityError
        Certificate and key cannot be used together.
    """
    _require_pair(address)
    _bind(address).close()


def _require_pair(address: Address) -> None:
    if address.certificate is None or address.key is None:
        return
    for path in (address.certificate, address.key):
        if not path.is_file():
            raise IdentityError(f"{path}: not there; fedglioma-server provision makes certificate and key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(address.certificate, address.key)
    except (ssl.SSLError, OSError) as error:
        raise IdentityError(
            f"{address.certificate}: cannot be used with {address.key} ({error.strerror or error})"
        ) from None


def _superlink_settings() -> SuperLinkLifespanConfig:
    """Return a SuperLink without listeners, executor, log-in, telemetry or installation of its own."""
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=os.urandom(32),
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
    )
