"""Logging as the doors set it up: one event a line on stderr, quiet libraries, no patient data."""

import logging

from rich.console import Console
from rich.logging import RichHandler

NOISY = (
    "flwr",
    "matplotlib",
    "ray",
    "fontTools",
    "alembic",
    "sqlalchemy",
    "httpx",
    "httpcore",
    "uvicorn",
)


def configure(level: str = "INFO", *, console: Console | None = None) -> None:
    """Send this program's log lines to stderr.

    Called by commands only, never on import. Libraries that chat at INFO are lowered to WARNING
    unless ``level`` is DEBUG.
    """
    target = console or Console(stderr=True)
    handler: logging.Handler
    if target.is_terminal:
        handler = RichHandler(console=target, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%H:%M:%S"))
    else:
        handler = logging.StreamHandler(target.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)
    flower = logging.getLogger("flwr")
    flower.addFilter(_of_interest)
    # Flower prints its own lines; passed on, each would stand twice.
    logging.getLogger("flwr").propagate = False


def _of_interest(record: logging.LogRecord) -> bool:
    """Whether a line of Flower says something: that a site ended in mid-call is told elsewhere."""
    return "ClientDisconnect" not in record.getMessage()
