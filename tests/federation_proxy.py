"""A road between a site and its server that a test can close: a TCP relay on loopback."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.ports import free_port

_CHUNK = 64 * 1024


class Proxy:
    """Carries connections to a port of this computer until it is told not to.

    ``refuse`` is a dead router: what is open is reset, what comes is refused. ``swallow`` is a firewall
    that forgot: everything is taken and nothing arrives, and after ``restore`` what was open stays dead.
    """

    def __init__(self, goal: int) -> None:
        self._goal = goal
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._swallowing = False
        self._listener: socket.socket | None = None
        self.port = free_port()  # which nobody takes while it is refused

    def __enter__(self) -> Self:
        self.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.refuse()

    def refuse(self) -> None:
        """Reset all connections and take no more."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._drop()

    def swallow(self) -> None:
        """Take everything and carry nothing on."""
        self._swallowing = True

    def restore(self) -> None:
        """Carry again; connections of before are gone."""
        if self._swallowing:
            self._drop()
            self._swallowing = False
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen()
            self._listener = listener
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _drop(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._goal))
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._listener is not listener:  # cut meanwhile
                    near.close()
                    far.close()
                    return
                self._pairs.append((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(_CHUNK):
                if not self._swallowing:
                    other.sendall(content)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
