"""A hospital's side of the benchmark: the real supervisor and the real node, whose app adds one.

    python benchmarks/adding_site.py SETTINGS

joins as ``fedglioma-client --once`` does. Node key, TLS, transport, policy, audit log and the app's door are
those of every site; the node that the supervisor starts is this script again, so that only the training is
replaced.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from fedglioma import log
from fedglioma.config.site import load_site_config
from fedglioma.console import human, prepare_environment

_NODE = ("-m", "fedglioma_client.node")


class AddingNode(subprocess.Popen[bytes]):
    """The supervisor's node, started by this script instead of as its module."""

    def __init__(self, command: list[str], **options: Any) -> None:
        interpreter, *rest = command
        if tuple(rest[:2]) != _NODE:
            raise RuntimeError(f"the supervisor starts {' '.join(rest[:2])}, not {' '.join(_NODE)}")
        super().__init__([interpreter, __file__, "--node", *rest[2:]], **options)


def join(settings: Path) -> None:
    """Run the supervisor until the run has finished."""
    from fedglioma_client import supervise

    setattr(subprocess, "Popen", AddingNode)  # noqa: B010 (an assignment to a class is none for mypy)
    supervise.join(load_site_config(settings), settings, once=True)


def serve() -> None:
    """Run the node with the arguments that the supervisor gave."""
    from adding import add_instead_of_training

    from fedglioma_client import node

    add_instead_of_training()
    sys.argv.remove("--node")
    node.main()


def main() -> None:
    """Be the supervisor, or the node that it started."""
    prepare_environment()
    if "--node" in sys.argv:
        serve()
        return
    log.configure("INFO", console=human())
    join(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
