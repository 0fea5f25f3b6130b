"""Where a running server can be asked: a file that only its owner can read, and the way to ask.

``status`` and ``stop`` need this and nothing of what a server is made of, so that they answer at once.
"""

from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma_server.runfolder import RunFolder

LOOPBACK = "127.0.0.1"
FILE = "control.json"
_WAIT_S = 10.0


class Handle(BaseModel):
    """Where a running server can be asked, and the secret; ``work/control.json``, mode 0600."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int = Field(ge=1, le=65535)
    secret: str
    pid: int


def handle_file(folder: RunFolder) -> Path:
    """Return where a run's handle lies."""
    return folder.work / FILE


def ask(folder: RunFolder, method: str, call: str) -> dict[str, Any] | None:
    """Return a running server's answer; None where no server runs on this folder.

    Raises
    ------
    ConfigError
        The handle is damaged or may not be read.
    FedGliomaError
        A server runs there but does not answer, or failed to do what was asked.
    """
    path = handle_file(folder)
    try:
        handle = Handle.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); are you its owner?") from None
    try:
        answer = httpx.request(
            method,
            f"http://{LOOPBACK}:{handle.port}/{call}",
            headers={"authorization": f"Bearer {handle.secret}"},
            timeout=_WAIT_S,
            trust_env=False,
        )
    except httpx.ConnectError:
        return None  # it was killed and could not take its handle away
    except httpx.HTTPError as error:
        raise FedGliomaError(
            f"the server (process {handle.pid}) does not answer ({type(error).__name__})"
        ) from None
    if answer.is_server_error:
        raise FedGliomaError(
            f"the server (process {handle.pid}) failed to answer {call} ({answer.status_code}); see its log"
        )
    try:
        return dict(answer.json()) if answer.is_success else None
    except (ValueError, TypeError):
        return None  # as with any other code: the port now belongs to another program
