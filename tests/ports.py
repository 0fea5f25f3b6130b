"""Ports for servers that tests start."""

import os
import secrets
import socket
from pathlib import Path

_LOWEST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port of this computer that nobody listens on.

    It is none of those that the system hands out by itself: what another worker's tests open between this
    call and the server's start, or while a killed server is started again, cannot be on it. Nor does another
    worker of this test run choose it.
    """
    first_of_the_system = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 0
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = range(_LOWEST + worker, first_of_the_system, workers)
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", secrets.choice(ours) if ours else 0))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
