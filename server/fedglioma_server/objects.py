"""Flower's object store with large objects on disk: the server's memory does not grow with its sites.

Messages travel as objects of a few megabytes. Kept in memory, the updates of all sites that answer at
the same time would add up; here they wait in files until the strategy takes them, one site at a time.
"""

import errno
import hashlib
from pathlib import Path

from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What does not pass by itself; a site that sent an object meets the others too, and is asked again."""

IN_MEMORY_BYTES = 64 * 1024
"""Objects up to this size are records and short texts; a file each would cost more than it saves."""


class SpoolStore(InMemoryObjectStore):
    """An in-memory store whose large objects lie in files named by their digests.

    Parameters
    ----------
    folder : Path
        Emptied on creation: what an earlier process left there belongs to messages that are gone.

    Attributes
    ----------
    failure : OSError or None
        Why an object could not be written (a full disk); Flower only reports that it was not stored.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.failure: OSError | None = None
        self._spooled: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.iterdir():
            left.unlink()

    def put(self, object_id: str, object_content: bytes) -> None:
        """Store an object under its digest.

        Raises
        ------
        ValueError
            The content does not match the digest or is no object.
        NoObjectInStoreError
            Nobody announced such an object.
        OSError
            It could not be written.
        """
        if len(object_content) <= IN_MEMORY_BYTES:
            super().put(object_id, object_content)
            return
        if hashlib.sha256(object_content).hexdigest() != object_id:
            raise ValueError(f"Object ID {object_id} does not match content hash")
        validate_object_content(object_content)
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                raise NoObjectInStoreError(f"Object with ID '{object_id}' was not pre-registered.")
            if entry.is_available:
                return
            try:
                self._path(object_id).write_bytes(object_content)
            except OSError as error:
                self._path(object_id).unlink(missing_ok=True)
                if error.errno in _FATAL:
                    self.failure = error
                raise
            self._spooled.add(object_id)
            entry.is_available = True

    def get(self, object_id: str) -> bytes | None:
        """Return an object's content; empty where it is announced but not here yet, None if unknown."""
        with self.lock_store:
            if object_id in self._spooled:
                return self._path(object_id).read_bytes()
            return super().get(object_id)

    def body_size(self, object_id: str) -> int:
        """Return the bytes of an object's content after its head.

        Raises
        ------
        ValueError
            The object is not here.
        """
        with self.lock_store:
            if object_id in self._spooled:
                with self._path(object_id).open("rb") as file:
                    head = file.read(IN_MEMORY_BYTES).partition(HEAD_BODY_DIVIDER)
                    return self._path(object_id).stat().st_size - len(head[0]) - len(head[1])
            content = super().get(object_id)
        if not content:
            raise ValueError("an object is missing")
        return len(content.partition(HEAD_BODY_DIVIDER)[2])

    def delete(self, object_id: str) -> None:
        """Delete an object and whatever only it referred to."""
        with self.lock_store:
            super().delete(object_id)
            if object_id in self._spooled and object_id not in self.store:
                self._spooled.discard(object_id)
                self._path(object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything."""
        with self.lock_store:
            super().clear()
            for object_id in self._spooled:
                self._path(object_id).unlink(missing_ok=True)
            self._spooled.clear()

    def has_all(self, object_ids: list[str]) -> bool:
        """Whether the contents of all these objects are here."""
        with self.lock_store:
            entries = [self.store.get(object_id) for object_id in object_ids]
            return all(entry is not None and entry.is_available for entry in entries)

    def _path(self, object_id: str) -> Path:
        return self.folder / object_id
