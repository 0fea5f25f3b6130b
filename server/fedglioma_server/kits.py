"""Start-up kits: what a hospital needs to join, as a folder and as one file to hand over."""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedglioma.newfile import PRIVATE, new_folder, write_new
from fedglioma.nodekey import (
    PRIVATE_NAME,
    PUBLIC_NAME,
    create_private_key,
    fingerprint,
    public_line,
)
from fedglioma_server.authority import (
    Certificate,
    certificate_fingerprint,
    certificate_pem,
    consortium_name,
)

CA_NAME = "ca.pem"
SUMS_NAME = "SHA256SUMS"
README_NAME = "README.md"


@dataclass(frozen=True)
class Terms:
    """What all kits of a consortium have in common."""

    authority: Certificate
    server: str
    """``host:port`` that hospitals connect to."""
    contact: str
    now: datetime


def write_kit(folder: Path, site: str, terms: Terms, public: bytes | None) -> None:
    """Write a site's kit; without a public key, a key pair is made in it.

    The private key exists in the kit's folder and nowhere else.

    Raises
    ------
    ConfigError
        The folder is there already.
    """
    with new_folder(folder) as part:
        own = public is not None
        if public is None:
            public = create_private_key(part / PRIVATE_NAME)
        host, _, port = terms.server.rpartition(":")
        words = {
            "site": site,
            "server": terms.server,
            "host": host,
            "port": port,
            "own_key": own,
            "consortium": consortium_name(terms.authority),
            "contact": terms.contact,
            "authority_fingerprint": certificate_fingerprint(terms.authority),
            "authority_ends": f"{terms.authority.not_valid_after_utc:%Y-%m-%d}",
            "node_fingerprint": fingerprint(public),
            "made": f"{terms.now:%Y-%m-%d}",
            "version": version("fedglioma"),
        }
        write_new(part / PUBLIC_NAME, public_line(public, site).encode())
        write_new(part / CA_NAME, certificate_pem(terms.authority))
        write_new(part / f"{site}.yaml", render("site.yaml.j2", words))
        write_new(part / README_NAME, render("kit.md.j2", words))
        write_new(part / SUMS_NAME, checksums(part))


def write_archive(kit: Path, archive: Path) -> None:
    """Write a kit as one compressed file of mode 0600, without the names of this computer's users.

    Raises
    ------
    ConfigError
        The file is there already.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for path in (kit, *sorted(kit.iterdir())):
            entry = tar.gettarinfo(path, arcname=path.relative_to(kit.parent).as_posix())
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = int(entry.mtime)
            if entry.isdir():
                tar.addfile(entry)
            else:
                with path.open("rb") as file:
                    tar.addfile(entry, file)
    write_new(archive, buffer.getvalue(), mode=PRIVATE)


def checksums(folder: Path) -> bytes:
    """Return the lines that ``sha256sum -c`` reads, for all files of a folder."""
    lines = [
        f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS_NAME
    ]
    return "".join(lines).encode()


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def render(template: str, words: dict[str, object]) -> bytes:
    """Return a template of this package filled in, as UTF-8."""
    environment = Environment(  # noqa: S701 (text files; nothing here is shown by a browser)
        loader=PackageLoader("fedglioma_server"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(words).encode()
