"""Hospitals in and out of a consortium: who may join, with which key, and the kit that goes with it.

Admitting goes kit, archive, allow-list, in this order, and each step is left out where it is done: a
command that was killed is finished by typing it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fedglioma.errors import ConfigError, IdentityError
from fedglioma.newfile import write_new
from fedglioma.nodekey import (
    PRIVATE_NAME,
    PUBLIC_NAME,
    fingerprint,
    public_line,
    read_public_key,
    short_fingerprint,
)
from fedglioma_server.consortium import Consortium
from fedglioma_server.kits import Terms, write_archive, write_kit


class Outcome(StrEnum):
    """What a command did about a site."""

    ADDED = "added"
    KEPT = "kept"
    RENEWED = "renewed"
    REVOKED = "revoked"


def brought_its_key(kit: Path) -> bool:
    """Return whether a kit is there and holds no private key, because its site has it."""
    return kit.exists() and not (kit / PRIVATE_NAME).exists()


@dataclass(frozen=True)
class Enrolled:
    """A site after the command."""

    site: str
    outcome: Outcome
    public: bytes
    kit: Path | None
    archive: Path | None

    @property
    def own_key(self) -> bool:
        """Whether the kit is there and holds no private key."""
        return self.kit is not None and brought_its_key(self.kit)


@dataclass(frozen=True)
class Wishes:
    """What is asked for, by site; a public key where the site brought its own."""

    add: Mapping[str, bytes | None]
    renew: Mapping[str, bytes | None]
    revoke: tuple[str, ...]


def check(wishes: Wishes, folder: Consortium) -> None:
    """Raise before anything is written if a wish cannot be granted.

    Raises
    ------
    ConfigError
        A site is unknown, or barred, or has another key already.
    IdentityError
        A key belongs to another site or was barred, or a key file in the folder is damaged.
    """
    keys, barred = folder.keys(), folder.revoked_keys()
    known = keys.keys() | set(barred.values())
    for site in (*wishes.renew, *wishes.revoke):
        if site not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{site}: no such site in {folder.path}; sites there: {there}")
    for site, public in wishes.add.items():
        _check_addition(site, public, keys, barred)
    for site, public in wishes.renew.items():
        if public is None and brought_its_key(folder.kit(site)):
            raise ConfigError(
                f"--renew-site {site}: the site made its own key; ask for a new public key and give it "
                f"with --site-key {site}=FILE"
            )
        if public is not None and keys.get(site) == public:
            raise IdentityError(f"--site-key {site}: is the key that is to be replaced; ask for a new one")
    _check_ownership({**wishes.add, **wishes.renew}, keys, barred)


def admit(folder: Consortium, site: str, terms: Terms, public: bytes | None, outcome: Outcome) -> Enrolled:
    """Return the site once it has a kit, an archive of it, and a place in the allow-list."""
    listed = folder.public_key(site)
    if listed.exists():
        return _keep(folder, site, terms, public)
    kit, archive = folder.kit(site), folder.archive(site)
    if kit.exists():
        made = read_public_key(kit / PUBLIC_NAME)
        if made in folder.revoked_keys() or public not in (None, made):
            retire(folder, site)
    if not kit.exists():
        write_kit(kit, site, terms, public)
    if not archive.exists():
        write_archive(kit, archive)
    made = read_public_key(kit / PUBLIC_NAME)
    write_new(listed, public_line(made, site).encode())
    return Enrolled(site, outcome, made, kit, archive)


def revoke(folder: Consortium, site: str) -> Enrolled:
    """Return the site once its key is barred and its kit put aside; nothing happens where it was before."""
    public = folder.keys().get(site)
    if public is not None:
        folder.bar(site, public)
    else:
        public = next(key for key, name in folder.revoked_keys().items() if name == site)
    if folder.kit(site).exists() and read_public_key(folder.kit(site) / PUBLIC_NAME) in folder.revoked_keys():
        retire(folder, site)
    return Enrolled(site, Outcome.REVOKED, public, None, None)


def retire(folder: Consortium, site: str) -> None:
    """Put a site's kit and archive aside as ``<site>.old-<fingerprint>``."""
    kit, archive = folder.kit(site), folder.archive(site)
    old = f"{site}.old-{short_fingerprint(read_public_key(kit / PUBLIC_NAME))}"
    if archive.exists():  # before the kit, which says what its name is to be
        _move(archive, folder.kits / f"{old}.tar.gz")
    _move(kit, folder.kits / old)


def _move(source: Path, target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target}: is there already and is never overwritten; move it away")
    source.rename(target)


def _keep(folder: Consortium, site: str, terms: Terms, public: bytes | None) -> Enrolled:
    """Return a site that is in the list; what was lost of the kit of a site's own key is made again."""
    listed = read_public_key(folder.public_key(site))
    kit, archive = folder.kit(site), folder.archive(site)
    if public is not None and not kit.exists():
        write_kit(kit, site, terms, public)
    if kit.exists() and not archive.exists():
        write_archive(kit, archive)
    return Enrolled(
        site, Outcome.KEPT, listed, kit if kit.exists() else None, archive if archive.exists() else None
    )


def _check_addition(
    site: str, public: bytes | None, keys: Mapping[str, bytes], barred: Mapping[bytes, str]
) -> None:
    if site not in keys and site in barred.values():
        raise ConfigError(f"{site}: was revoked; --renew-site {site} admits it again, with a new key")
    if site in keys and public not in (None, keys[site]):
        raise ConfigError(
            f"--site-key {site}: the site has another key already ({fingerprint(keys[site])}); "
            f"add --renew-site {site} to replace it"
        )


def _check_ownership(
    asked: Mapping[str, bytes | None], keys: Mapping[str, bytes], barred: Mapping[bytes, str]
) -> None:
    """Raise where a key is, or was, somebody's; a key stands for one site only."""
    owners = {key: site for site, key in keys.items()}
    for site, public in asked.items():
        if public is None:
            continue
        if public in barred:
            raise IdentityError(
                f"--site-key {site}: this key was revoked ({fingerprint(public)}); ask for a new one"
            )
        owner = owners.setdefault(public, site)
        if owner != site:
            raise IdentityError(
                f"--site-key {site}: this key is {owner}'s ({fingerprint(public)}); every site needs its own"
            )
