"""What a site's audit log says of its ledger: the head as last noted, and what left unprotected."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedglioma.audit import Event
from fedglioma.chain import DIGEST

FIELD: Final = "ledger"
"""The field of an audit log's line ``sent`` that has the ledger's head as it was when the answer left."""
TRAINING: Final = "train"


@dataclass(frozen=True)
class Audited:
    """What an audit log says of the ledger."""

    head: str | None = None
    """The ledger's last head that was noted; None where none was."""
    unprotected: int = 0
    """Training answers that left and have no line in the ledger: without differential privacy."""


def read_audited(audit: Path) -> Audited:
    """Return what an audit log says of the ledger; its own chain is ``verification.verify``'s business.

    Raises
    ------
    OSError
        The log is there and cannot be read.
    """
    head, unprotected = None, 0
    refused: tuple[Any, Any] | None = None
    try:
        with audit.open("rb") as file:
            for raw in file:
                event, data = _line(raw)
                asked = (data.get("kind"), data.get("round"))
                if event == Event.SENT:
                    noted = data.get(FIELD)
                    if isinstance(noted, str) and DIGEST.fullmatch(noted):
                        head = noted
                    elif str(asked[0]).partition(".")[0] == TRAINING and asked != refused:
                        unprotected += 1
                # A refusal is noted, and then travels as an answer of the same kind.
                refused = asked if event == Event.REFUSED else None
    except FileNotFoundError:
        return Audited()
    return Audited(head, unprotected)


def _line(raw: bytes) -> tuple[str, dict[str, Any]]:
    """Return a line's event and data; nothing of a line that has other events, or that is none."""
    if b'"event":"sent"' not in raw and b'"event":"refused"' not in raw:
        return "", {}
    try:
        table = json.loads(raw)
        event, data = table["event"], table["data"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return "", {}
    return (event, data) if isinstance(data, dict) else ("", {})
