"""What ``provision`` is asked for: sites, hosts and options, checked against what is there already."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedglioma.config.site import SITE_NAME
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.nodekey import read_public_key
from fedglioma_server import authority as ca
from fedglioma_server.consortium import Consortium
from fedglioma_server.enrolment import Wishes

LONGEST_CONTACT = 200


@dataclass(frozen=True)
class Request:
    """What the command line asked for; ``None`` where nothing was said."""

    out: Path
    name: str | None = None
    hosts: Sequence[str] = ()
    port: int | None = None
    sites: Sequence[str] = ()
    site_keys: Sequence[str] = ()
    days: int | None = None
    ca_days: int | None = None
    renew_server: bool = False
    new_key: bool = False
    renew_sites: Sequence[str] = ()
    revoke: Sequence[str] = ()
    contact: str | None = None


@dataclass(frozen=True)
class Existing:
    """What of the folder is there before the command."""

    authority: ca.Certificate | None
    server: ca.Certificate | None


def wishes_of(request: Request) -> Wishes:
    """Return the sites that the options name, with the keys that they brought.

    Raises
    ------
    ConfigError
        A site's name is no name, stands twice, or a key is given without ``NAME=``.
    IdentityError
        A key file holds no P-384 public key.
    """
    keys: dict[str, bytes | None] = {}
    for text in request.site_keys:
        site, found, file = text.partition("=")
        if not found or not file:
            raise ConfigError(f"--site-key {text}: write NAME=FILE, as in ningxia=node.pub")
        _require_new(f"--site-key {text}", site, keys)
        keys[site] = read_public_key(Path(file))
    seen: set[str] = set()
    for option, names in (("--renew-site", request.renew_sites), ("--revoke", request.revoke)):
        for site in names:
            _require_new(f"{option} {site}", site, seen)
            seen.add(site)
    for site in request.sites:
        _require_new(f"--site {site}", site, seen | keys.keys())
        seen.add(site)
    conflicting = sorted(keys.keys() & set(request.revoke))
    if conflicting:
        raise ConfigError(f"--revoke {conflicting[0]}: the same site has a --site-key; choose one of them")
    renew = {site: keys.get(site) for site in request.renew_sites}
    add = {site: keys.get(site) for site in (*request.sites, *keys) if site not in renew}
    return Wishes(add, renew, tuple(request.revoke))


def _require_new(option: str, site: str, seen: set[str] | dict[str, bytes | None]) -> None:
    if not SITE_NAME.fullmatch(site):
        raise ConfigError(f"{option}: a site's name is 1-32 lower-case letters, digits, - or _")
    if site in seen:
        raise ConfigError(f"{option}: {site} is named twice; name every site once")


def hosts_of(request: Request) -> tuple[str, ...]:
    """Return the hosts that the options name, each once and in the form that certificates state.

    Raises
    ------
    ConfigError
        One is neither a host's name nor an address.
    """
    return tuple(dict.fromkeys(map(ca.checked_host, request.hosts)))


def check_words(request: Request) -> None:
    """Raise ``ConfigError`` where words cannot stand in a certificate or on a page."""
    for option, text, longest in (
        ("--name", request.name, ca.LONGEST_NAME),
        ("--contact", request.contact, LONGEST_CONTACT),
    ):
        if text is not None and not (text.strip() and len(text) <= longest and text.isprintable()):
            raise ConfigError(f"{option} {text!r}: 1 to {longest} printable letters on one line")


def check_options(request: Request, hosts: tuple[str, ...], there: Existing) -> None:
    """Raise where an option would have no effect: what is there is kept, never changed in passing.

    Raises
    ------
    ConfigError
        A first certificate lacks a host, or an option is for something that is made already.
    """
    if there.authority is not None:
        name = ca.consortium_name(there.authority)
        if request.name not in (None, name):
            raise ConfigError(f"--name {request.name}: this consortium is {name}; name another --out")
        if request.ca_days is not None:
            raise ConfigError("--ca-days: the authority is made already; leave the option out")
    if request.new_key and not request.renew_server:
        raise ConfigError("--new-key: goes with --renew-server; a first certificate has a new key anyway")
    if there.server is None:
        _check_first(request, hosts)
    elif not request.renew_server:
        _check_later(request, hosts, ca.hosts_of(there.server))


def _check_first(request: Request, hosts: tuple[str, ...]) -> None:
    if request.renew_server:
        raise ConfigError(f"--renew-server: {request.out} has no server certificate yet; leave it out")
    if not hosts:
        raise ConfigError("--host: name the server as the hospitals reach it, as in --host fed.example.org")


def _check_later(request: Request, hosts: tuple[str, ...], names: tuple[str, ...]) -> None:
    if hosts and hosts != names:
        raise ConfigError(
            f"--host {' '.join(hosts)}: the server's certificate is for {', '.join(names)}; "
            "add --renew-server for one with other names"
        )
    if request.days is not None:
        raise ConfigError("--days: the server's certificate is made already; add --renew-server")


def existing(folder: Consortium) -> Existing:
    """Return the certificates in the folder, once they were found to belong together.

    Raises
    ------
    IdentityError
        One cannot be read, or the server's is not the authority's.
    """
    if not folder.exists():
        return Existing(None, None)
    authority = ca.read_certificate(folder.ca_certificate)
    if not folder.server_certificate.exists():
        return Existing(authority, None)
    server = ca.read_certificate(folder.server_certificate)
    ca.check_issued(server, authority, str(folder.server_certificate))
    if not ca.hosts_of(server):
        raise IdentityError(f"{folder.server_certificate}: names no host; provision made none such")
    return Existing(authority, server)
