"""The server's own control: status and stop, on loopback, behind a secret that only its owner can read."""

import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedglioma.newfile import PRIVATE, replacing
from fedglioma_server.gate import Receive, Scope, Send, answer
from fedglioma_server.handle import LOOPBACK, Handle, handle_file
from fedglioma_server.link import Address, serving
from fedglioma_server.runfolder import RunFolder


class Control:
    """An ASGI application with two calls: GET /status and POST /stop."""

    def __init__(self, status: Callable[[], dict[str, Any]], stop: Callable[[], None]) -> None:
        self.secret = secrets.token_urlsafe(32)
        self._status = status
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call that brings the secret; all others get 404."""
        if scope["type"] != "http":
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        code, parts = 404, []
        if hmac.compare_digest(given, f"Bearer {self.secret}".encode()):
            call = (scope["method"], scope["path"])
            if call == ("GET", "/status"):
                code, parts = 200, [json.dumps(self._status(), allow_nan=False).encode()]
            elif call == ("POST", "/stop"):
                self._stop()
                code, parts = 200, [b"{}"]
        await answer(send, code, *parts)

    @contextmanager
    def listening(self, folder: RunFolder) -> Iterator[int]:
        """Answer on a free loopback port until the block ends, and say in the run folder where."""
        path = handle_file(folder)
        with serving(self, Address(LOOPBACK, 0)) as port:
            handle = Handle(port=port, secret=self.secret, pid=os.getpid())
            _write_secret(path, handle.model_dump_json())
            try:
                yield port
            finally:
                path.unlink(missing_ok=True)


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=PRIVATE) as file:
        file.write(text.encode())
