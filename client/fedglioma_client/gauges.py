"""Every Prometheus name of the client: what a hospital's own monitoring shows of it.

Labels are ``site``, ``phase`` and ``direction``; no patient, no path, no free text.
"""

import math
import sys
from typing import Literal

from prometheus_client import Gauge, Histogram

from fedglioma.scrape import SECONDS, new_registry

Phase = Literal["wait", "download", "train", "upload"]


class ClientGauges:
    """What a site shows of itself.

    Parameters
    ----------
    site : str
        The site's name.
    """

    def __init__(self, site: str) -> None:
        self.site = site
        self.registry = new_registry()
        self._round = self._gauge("round", "The round that the site works on or did last.")
        self._seconds = Histogram(
            "fedglioma_round_duration_seconds",
            "Seconds of a round by phase: wait, download, train, upload.",
            ["site", "phase"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._bytes = self._gauge(
            "update_bytes", "Bytes of the last round: down from the server, up to it.", "direction"
        )
        self._gauge("gpu_memory_bytes", "GPU memory that this process holds; 0 without one.").labels(
            site
        ).set_function(gpu_bytes)
        self._connected = self._gauge("server_connected", "1 while the server can be reached, else 0.")
        self._contact = self._gauge(
            "server_last_contact_timestamp_seconds", "When the server last answered; NaN before it has."
        )
        self._connected.labels(site).set(0)
        self._contact.labels(site).set(math.nan)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"fedglioma_{name}", meaning, ["site", *labels], registry=self.registry)

    def round_started(self, number: int) -> None:
        """Show the round that the site works on."""
        self._round.labels(self.site).set(number)

    def phase_finished(self, phase: Phase, seconds: float) -> None:
        """Count the seconds of a phase."""
        self._seconds.labels(self.site, phase).observe(seconds)

    def received(self, size: int) -> None:
        """Show the bytes that came with the round's request."""
        self._bytes.labels(self.site, "down").set(size)

    def sent(self, size: int) -> None:
        """Show the bytes that went with the round's answer."""
        self._bytes.labels(self.site, "up").set(size)

    def connected(self, yes: bool) -> None:
        """Show whether the server can be reached."""
        self._connected.labels(self.site).set(yes)

    def contact(self, timestamp: float) -> None:
        """Show when the server last answered, in seconds since 1970; it can be reached then."""
        self._contact.labels(self.site).set(timestamp)
        self.connected(True)


def gpu_bytes() -> float:
    """Return the bytes that PyTorch holds on all GPUs for this process.

    0 where PyTorch was not loaded or uses no GPU: looking must neither load it nor wake a GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    return float(sum(torch.cuda.memory_reserved(n) for n in range(torch.cuda.device_count())))
