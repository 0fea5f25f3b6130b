"""The site's node: Flower's SuperNode and our worker in one process that listens on nothing.

Started by the supervisor as ``python -m fedglioma_client.node SETTINGS``. Flower's SuperNode talks to
the server; what it takes is answered by the worker in a thread beside it. The process ends when either
of them does, when its supervisor is gone, or, with ``--once``, when the run has finished.
"""

import argparse
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedglioma import log
from fedglioma.console import human, prepare_environment

prepare_environment()

from flwr.clientapp import ClientApp  # noqa: E402
from flwr.supercore import heartbeat  # noqa: E402
from flwr.supercore.object_store import ObjectStoreFactory  # noqa: E402
from flwr.supernode import fleet_http_connection, start_client_internal  # noqa: E402
from flwr.supernode.nodestate import NodeStateFactory  # noqa: E402

from fedglioma.audit import AuditLog, BrokenLog  # noqa: E402
from fedglioma.chain import AUDIT_FILE  # noqa: E402
from fedglioma.config.site import SiteConfig, load_site_config  # noqa: E402
from fedglioma.errors import FedGliomaError  # noqa: E402
from fedglioma.machine import return_freed_memory  # noqa: E402
from fedglioma.scrape import serve  # noqa: E402
from fedglioma_client.ends import BROKEN, FAILED, FINISHED  # noqa: E402
from fedglioma_client.gauges import ClientGauges  # noqa: E402
from fedglioma_client.instruments import Instruments  # noqa: E402
from fedglioma_client.nodestate import SiteNodeState  # noqa: E402
from fedglioma_client.reach import require_joinable  # noqa: E402
from fedglioma_client.site import SITE_CONFIG_KEY  # noqa: E402
from fedglioma_client.worker import Worker  # noqa: E402

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.25
REPLY_POLL_S = 0.02
HEARTBEAT_S = 10
"""Flower's shortest; the server counts a site as away after twice as long."""
_ORPHAN_S = 1.0
_LAST_REPLY_S = 10.0
_FLOWER_IDLE_S = 3.0


def main() -> None:
    """Run the node until it ends, and exit with what it ended with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--once", action="store_true")
    asked = parser.parse_args()
    log.configure(asked.log_level, console=human())
    return_freed_memory()
    if asked.log_level != "DEBUG":
        logging.getLogger("flwr").setLevel(logging.ERROR)  # the supervisor says the same in words
    try:
        config = load_site_config(asked.settings)
        code = run_node(config, asked.settings, parent=asked.parent, once=asked.once)
    except FedGliomaError as error:
        code = _told(error)
    except SystemExit as end:  # Flower's way to end
        code = end.code if isinstance(end.code, int) else FAILED
    logging.shutdown()
    os._exit(code)  # Flower's threads would keep a process alive that does nothing


def run_node(config: SiteConfig, settings: Path, *, parent: int, once: bool) -> int:
    """Serve until the SuperNode ends, and return the exit code.

    Raises
    ------
    ConfigError, IdentityError
        As ``require_joinable``.
    FedGliomaError
        The audit log is broken or cannot be written.
    """
    threading.Thread(target=_end_with, args=(parent,), name="orphan", daemon=True).start()
    hasten()
    if config.insecure:
        connect_plainly()
    os.environ["FLWR_HOME"] = str(config.state / "flower")
    way = require_joinable(config)
    gauges = ClientGauges(config.site)
    serve(gauges.registry, port=config.metrics_port)
    instruments = Instruments(gauges)
    instruments.listen()
    record = AuditLog(config.state / AUDIT_FILE)

    def journal(event: str, **facts: Any) -> None:
        record.note(event, **facts)
        instruments.step(event, **facts)

    factory = NodeStateFactory(ObjectStoreFactory())
    factory.state_instance = SiteNodeState(factory.objectstore_factory.store())
    worker = Worker(
        state=factory.state(),
        store=factory.objectstore_factory.store(),
        app=installed_app(),
        node_config={SITE_CONFIG_KEY: str(settings.resolve())},
        site=config.site,
        journal=journal,
        phase=instruments.phase,
    )
    threading.Thread(target=_serve, args=(worker,), name="worker", daemon=True).start()
    if once:
        threading.Thread(target=_end_when_finished, args=(worker,), name="once", daemon=True).start()
    try:
        start_client_internal.start_client_internal(
            state_factory=factory,
            server_address=way.server,
            node_config={},
            root_certificates=way.authority,
            insecure=False,
            authentication_keys=(way.key, way.key.public_key()),
            isolation="process",
            runtime_dependency_install=False,
        )
    except SystemExit:
        if not (once and worker.finished.is_set()):
            raise
    return FINISHED if once and worker.finished.is_set() else FAILED


def hasten() -> None:
    """Shorten Flower's pauses: it asks for work every three seconds, the floor of every round."""

    def sleep(seconds: float) -> None:
        time.sleep(IDLE_POLL_S if seconds >= _FLOWER_IDLE_S else min(seconds, REPLY_POLL_S))

    start_client_internal.time = SimpleNamespace(sleep=sleep)  # type: ignore[assignment,attr-defined]
    for module in (fleet_http_connection, heartbeat):
        module.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT_S  # type: ignore[attr-defined]


def connect_plainly() -> None:
    """Connect without TLS, and still sign what is sent: Flower's node would do the one or the other."""
    connect = start_client_internal._init_connection

    def plain(**given: Any) -> Any:
        return connect(**given | {"insecure": True})

    start_client_internal._init_connection = plain  # type: ignore[assignment]


def installed_app() -> ClientApp:
    """Return the app that this site installed."""
    from fedglioma_client.app import app

    return app


def _serve(worker: Worker) -> None:
    code = FAILED
    try:
        worker.serve()
    except FedGliomaError as error:  # the app answers for its own; this is the audit log
        code = _told(error)
    except BaseException:
        logger.exception("the worker ended")
    finally:
        os._exit(code)


def _told(error: FedGliomaError) -> int:
    """Say what ends the node, and return its exit code."""
    logger.error("%s", error)
    return BROKEN if isinstance(error, BrokenLog) else error.exit_code


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_S)
    os._exit(FAILED)


def _end_when_finished(worker: Worker) -> None:
    worker.finished.wait()
    end = time.monotonic() + _LAST_REPLY_S
    while worker.last_reply in worker.store and time.monotonic() < end:
        time.sleep(REPLY_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
