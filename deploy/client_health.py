"""Whether a hospital's container is well: the node that serves the server answers, or waits to be started.

The supervisor is the container's main process, so its end is the container's. While the server is away
there is no node, which is no fault of this side. A node that runs must not be stopped or stuck: its
metrics have to answer where ``metrics_port`` is set.
"""

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fedglioma.config.site import load_site_config

NODE = "fedglioma_client.node"
WAIT_S = 10.0
NOT_RUNNING = frozenset("TtZX")
"""States of ``/proc/PID/stat``: stopped, traced, ended."""


def nodes(proc: Path = Path("/proc")) -> Iterator[tuple[str, Path]]:
    """Yield the state of each node process and the settings that it was started with."""
    for folder in proc.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue  # it ended meanwhile
        if NODE in words:
            yield state, Path(words[words.index(NODE) + 1])


def complaint(state: str, settings: Path) -> str:
    """Return what is wrong with a node; nothing, if it is well."""
    if state in NOT_RUNNING:
        return f"the node process is in state {state}"
    port = load_site_config(settings).metrics_port
    if not port:
        return ""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S):
            return ""
    except OSError as error:
        return f"its metrics on port {port} do not answer ({error})"


def main() -> None:
    """End with 1 if a node is not well."""
    wrong = [found for state, settings in nodes() if (found := complaint(state, settings))]
    sys.exit("; ".join(wrong) or None)


if __name__ == "__main__":
    main()
