"""Which hospitals may connect: the folder of public keys, read again while the server runs.

``sites/<site>.pub`` lets a hospital in; moving the file to ``sites/revoked/`` shuts it out within
seconds, without a restart.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from fedglioma.errors import ConfigError, FedGliomaError, IdentityError
from fedglioma_server.consortium import allowed_keys, revoked_keys
from fedglioma_server.gate import Standing

logger = logging.getLogger(__name__)

LOOK_S = 2.0


class Members:
    """The book of keys.

    Parameters
    ----------
    folder : Path
        Holds ``<site>.pub`` files, and ``revoked/`` with those that no longer count.

    Raises
    ------
    ConfigError
        The folder is not there, or holds no key.
    IdentityError
        A file is not named as a site, a key cannot be read or stands under two names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._members: dict[bytes, str] = {}
        self._revoked: dict[bytes, str] = {}
        self._closing = threading.Event()
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder of public keys; fedglioma-server provision makes it")
        self._members, self._revoked = self._read()
        if not self._members:
            raise ConfigError(f"{folder}: holds no SITE.pub, so no hospital could join")

    @property
    def sites(self) -> dict[str, bytes]:
        """The hospitals that may connect, and their keys."""
        with self._lock:
            return {site: key for key, site in sorted(self._members.items(), key=lambda item: item[1])}

    def standing(self, public_key: bytes) -> tuple[Standing, str]:
        """Return what a key is here, and whose."""
        with self._lock:
            if public_key in self._members:
                return "member", self._members[public_key]
            if public_key in self._revoked:
                return "revoked", self._revoked[public_key]
            return "unknown", ""

    def watch(self, admit: Callable[[str, bytes], object], expel: Callable[[str, bytes], object]) -> None:
        """Look at the folder every few seconds, in a thread, and tell who came and who has to go."""
        threading.Thread(target=self._watch, args=(admit, expel), name="members", daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closing.set()

    def _watch(self, admit: Callable[[str, bytes], object], expel: Callable[[str, bytes], object]) -> None:
        while not self._closing.wait(LOOK_S):
            try:
                members, revoked = self._read()
            except (FedGliomaError, OSError) as error:
                logger.warning("public keys are not read again: %s", error)
                continue
            with self._lock:
                gone = {key: site for key, site in self._members.items() if members.get(key) != site}
                new = {key: site for key, site in members.items() if self._members.get(key) != site}
                self._members, self._revoked = members, revoked
            for key, site in gone.items():
                logger.warning("%s: its key no longer counts, it is shut out", site)
                _tell(expel, site, key)
            for key, site in new.items():
                logger.info("%s: may join", site)
                _tell(admit, site, key)

    def _read(self) -> tuple[dict[bytes, str], dict[bytes, str]]:
        members: dict[bytes, str] = {}
        for site, key in allowed_keys(self.folder).items():
            if key in members:
                raise IdentityError(
                    f"{self.folder / site}.pub: holds the same key as {members[key]}.pub; "
                    "each site has its own"
                )
            members[key] = site
        revoked = revoked_keys(self.folder)
        return {key: site for key, site in members.items() if key not in revoked}, revoked


def _tell(whom: Callable[[str, bytes], object], site: str, key: bytes) -> None:
    try:
        whom(site, key)
    except (FedGliomaError, OSError, ValueError) as error:  # the next change must be seen all the same
        logger.error("%s: %s", site, error)
