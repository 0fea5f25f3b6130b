"""The Prometheus endpoint, and what both programs show there of themselves.

Each program has a registry of its own; nothing is registered globally, so two of them fit into one process.
"""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from fedglioma.errors import ConfigError

LOOPBACK = "127.0.0.1"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
"""Histogram limits: from a round of the tests to one of a large cohort on a processor."""

Closer = Callable[[], None]


def new_registry() -> CollectorRegistry:
    """Return a registry with the program's version and memory."""
    registry = CollectorRegistry()
    Gauge(
        "fedglioma_build_info",
        "Always 1; the label has the installed version.",
        ["version"],
        registry=registry,
    ).labels(version("fedglioma")).set(1)
    Gauge(
        "fedglioma_process_resident_memory_bytes",
        "Memory of this process that is in use now.",
        registry=registry,
    ).set_function(resident_bytes)
    return registry


def resident_bytes() -> float:
    """Return the memory of this process in bytes, as Linux counts it; NaN elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return float("nan")
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def serve(registry: CollectorRegistry, host: str = LOOPBACK, port: int = 0) -> Closer:
    """Show a registry over HTTP under ``/metrics`` and return what ends that; port 0 shows nothing.

    Raises
    ------
    ConfigError
        The address or port cannot be had.
    """
    if port == 0:
        return lambda: None
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"metrics_port {port} on {host}: cannot be opened ({words}); choose another port, or 0 for none"
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
