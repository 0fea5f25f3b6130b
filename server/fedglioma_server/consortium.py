"""The consortium folder: authority, server certificate, hospitals' public keys, kits, and who may write.

``sites/<site>.pub`` is the allow-list: a hospital whose key lies there may join. Everything below is
made so that a kill at any instant leaves a folder with which the same command goes on.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedglioma.config.reading import read_yaml
from fedglioma.config.server import PORT
from fedglioma.config.site import SITE_NAME
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.newfile import PART, new_folder, sweep, sync, write_new
from fedglioma.nodekey import read_public_key, short_fingerprint

REVOKED = "revoked"
FINGERPRINTED = re.compile(rf"({SITE_NAME.pattern})-[0-9a-f]{{8}}")
PENDING = ".next-"


def allowed_keys(folder: Path) -> dict[str, bytes]:
    """Return the public key of each site in a folder of ``<site>.pub``, sites in order of name.

    Raises
    ------
    IdentityError
        A file of the folder is no P-384 public key, or not named as a site.
    """
    keys = {}
    for path in _public_files(folder):
        if not SITE_NAME.fullmatch(path.stem):
            raise IdentityError(f"{path}: {path.stem!r} is no site's name; rename or remove the file")
        keys[path.stem] = read_public_key(path)
    return keys


def revoked_keys(folder: Path) -> dict[bytes, str]:
    """Return the site of each public key in ``revoked/`` below such a folder.

    Files there are ``<site>-<fingerprint>.pub``, or as somebody named them who moved them by hand.
    """
    found = {path: FINGERPRINTED.fullmatch(path.stem) for path in _public_files(folder / REVOKED)}
    return {read_public_key(path): match[1] if match else path.stem for path, match in found.items()}


def _public_files(folder: Path) -> list[Path]:
    """Return a folder's key files; what begins with a dot is another program's, or half written."""
    return sorted(folder.glob("[!.]*.pub"))


@dataclass(frozen=True)
class Consortium:
    """Paths inside the folder, and what its allow-list says."""

    path: Path

    @property
    def ca_certificate(self) -> Path:
        """The authority's certificate; every kit has a copy."""
        return self.path / "ca" / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The authority's private key; needed only to sign a server's certificate."""
        return self.path / "ca" / "ca.key"

    @property
    def server(self) -> Path:
        """Folder of the server's certificate and key."""
        return self.path / "server"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate."""
        return self.server / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.server / "server.key"

    @property
    def sites(self) -> Path:
        """Folder of the public keys of hospitals that may join."""
        return self.path / "sites"

    @property
    def revoked(self) -> Path:
        """Folder of the public keys that may not join any more."""
        return self.sites / REVOKED

    @property
    def kits(self) -> Path:
        """Folder of the start-up kits."""
        return self.path / "kits"

    @property
    def settings(self) -> Path:
        """The server's settings file."""
        return self.path / "server.yaml"

    def public_key(self, site: str) -> Path:
        """Return where the public key of a site that may join lies."""
        return self.sites / f"{site}.pub"

    def kit(self, site: str) -> Path:
        """Return where a site's kit lies."""
        return self.kits / site

    def archive(self, site: str) -> Path:
        """Return where a site's kit lies as one file."""
        return self.kits / f"{site}.tar.gz"

    def exists(self) -> bool:
        """Whether a consortium was begun here."""
        return self.ca_certificate.exists()

    def keys(self) -> dict[str, bytes]:
        """Return the public key of each site that may join, sites in order of name.

        Raises
        ------
        IdentityError
            A file of the folder is no P-384 public key, or not named as a site.
        """
        return allowed_keys(self.sites)

    def revoked_keys(self) -> dict[bytes, str]:
        """Return the site of each public key that may not join any more."""
        return revoked_keys(self.sites)

    def port(self) -> int:
        """Return the port in the server's settings, where there is one, else the usual."""
        if not self.settings.exists():
            return PORT
        port = read_yaml(self.settings).get("port")
        return port if isinstance(port, int) and 0 < port < 65536 else PORT

    def bar(self, site: str, public: bytes) -> None:
        """Move a site's public key to the revoked ones: one rename, so it is in one place or the other."""
        self.public_key(site).rename(self.revoked / f"{site}-{short_fingerprint(public)}.pub")
        sync(self.revoked)
        sync(self.sites)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, keep other processes out, and finish what a killed one had begun.

        Raises
        ------
        ConfigError
            The folder is a file, holds something else, or another process is writing in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out {self.path}: is a file; name a folder")
        made = not self.path.exists()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.path}: another provision is at work here; wait for it") from None
            self._require_ours()
            self._tidy()
            yield
        finally:
            os.close(handle)
            if made and not any(self.path.iterdir()):
                self.path.rmdir()

    def replace_server(self, files: Mapping[str, tuple[bytes, int]], serial: int) -> None:
        """Put new files beside the server's old ones, which stay as ``<name>.old-<serial>``.

        Two files cannot be renamed at once. So the new ones are laid ready in one folder first; a kill
        after that is finished by the next command.

        Parameters
        ----------
        files : mapping
            Content and mode for each name.
        serial : int
            Of the certificate that goes.
        """
        with new_folder(self.server / f"{PENDING}{serial:x}") as part:
            for name, (content, mode) in files.items():
                write_new(part / name, content, mode=mode)
        self._finish_replacing()

    def _finish_replacing(self) -> None:
        for pending in sorted(self.server.glob(f"{PENDING}*")):
            serial = pending.name.removeprefix(PENDING)
            for new in sorted(pending.iterdir()):
                current = self.server / new.name
                old = self.server / f"{new.name}.old-{serial}"
                if current.exists() and not old.exists():
                    os.link(current, old)
                new.replace(current)
            sync(self.server)
            pending.rmdir()

    def _require_ours(self) -> None:
        if self.exists():
            return
        others = [entry.name for entry in self.path.iterdir() if not entry.match(PART)]
        if others:
            raise ConfigError(
                f"--out {self.path}: holds {min(others)} but no ca/ca.pem; "
                "name the consortium's folder or a new one"
            )

    def _tidy(self) -> None:
        for folder in (self.path, self.server, self.sites, self.kits):
            if folder.is_dir():
                sweep(folder)
        self._finish_replacing()
