"""The ``keygen`` command: a site's key pair, made where it stays."""

from pathlib import Path
from typing import Any

from fedglioma.errors import IdentityError
from fedglioma.newfile import write_new
from fedglioma.nodekey import (
    PRIVATE_NAME,
    PUBLIC_NAME,
    create_private_key,
    fingerprint,
    public_bytes,
    public_line,
    read_private_key,
    read_public_key,
)


def make_keys(site: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Return a site's public key as data and as text; a key that lies in the folder already is kept.

    Raises
    ------
    ConfigError
        Something else has the name of one of the files.
    IdentityError
        The key that is there cannot be used, or the two files there do not belong together.
    """
    private, public = folder / PRIVATE_NAME, folder / PUBLIC_NAME
    new = not private.exists()
    if new and public.exists():
        raise IdentityError(f"{public}: is there without {PRIVATE_NAME}; name an empty folder with --out")
    if new:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = create_private_key(private)
    else:
        key = public_bytes(read_private_key(private))
    if not public.exists():
        write_new(public, public_line(key, site).encode())
    elif read_public_key(public) != key:
        raise IdentityError(f"{public}: does not belong to {private}; name an empty folder with --out")
    return _told(site, private, public, key, new=new)


def _told(site: str, private: Path, public: Path, key: bytes, *, new: bool) -> tuple[dict[str, Any], str]:
    data = {
        "site": site,
        "new": new,
        "private_key": str(private),
        "public_key": str(public),
        "line": public_line(key, site).strip(),
        "fingerprint": fingerprint(key),
    }
    lines = (
        f"{private}: private key, {'made' if new else 'was there and is kept'}; "
        "it must never leave this computer",
        f"{public}: public key",
        data["line"],
        f"fingerprint {data['fingerprint']}",
        f"next: send {public.name} to the coordinating centre, and read the fingerprint to them by telephone",
        f"next: put {private.name} beside {site}.yaml of the kit that you get back",
    )
    return data, "\n".join(map(str, lines))
