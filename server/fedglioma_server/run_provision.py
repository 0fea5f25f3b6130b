"""The ``provision`` command: authority, server certificate, kits; each made once, then only added to."""

from collections.abc import Sequence
from datetime import datetime

from fedglioma.config.reading import read_yaml
from fedglioma.newfile import PRIVATE, PUBLIC, new_folder, write_new
from fedglioma_server import authority as ca
from fedglioma_server.consortium import Consortium
from fedglioma_server.enrolment import Enrolled, Outcome, Wishes, admit, check, revoke
from fedglioma_server.kits import Terms, render
from fedglioma_server.provision_request import (
    Existing,
    Request,
    check_options,
    check_words,
    existing,
    hosts_of,
    wishes_of,
)
from fedglioma_server.provision_text import SOON_DAYS, Done, data_of, text_of

DAYS = 397
CA_DAYS = 3650
NAME = "fedglioma"
CONTACT = "The coordinating centre: whoever gave you this kit"


def provision(request: Request, *, now: datetime | None = None) -> tuple[dict[str, object], str]:
    """Return what was made, as data and as text; neither holds a private key.

    Everything is checked before anything is written. What is there already is kept, so the same command
    may be typed again, with more sites or after it was killed.

    Raises
    ------
    ConfigError
        A name, host or combination of options is wrong, or a file is missing.
    IdentityError
        A key or certificate is damaged, expired, another's, or does not belong to its counterpart.
    """
    now = now or ca.today()
    wishes, hosts = wishes_of(request), hosts_of(request)
    check_words(request)
    folder = Consortium(request.out)
    with folder.opened():
        there = existing(folder)
        check_options(request, hosts, there)
        _check_authority(request, wishes, folder, there, now)
        check(wishes, folder)
        port = request.port or folder.port()
        authority = there.authority or _make_authority(request, folder, now)
        server = _server(request, hosts, folder, authority, there.server, now)
        terms = Terms(authority, _address(server, port), request.contact or CONTACT, now)
        enrolled = _enrol(wishes, folder, terms)
        if not folder.settings.exists():
            _write_settings(folder, authority, port)
        warnings = (
            *_endings(authority, server, there.server, now),
            *_addresses(folder, server, there.server, port),
            *_expectations(folder, enrolled),
        )
    done = Done(
        folder=folder,
        authority=authority,
        server=server,
        address=terms.server,
        new_authority=there.authority is None,
        new_server=server is not there.server,
        enrolled=enrolled,
        warnings=warnings,
        now=now,
    )
    return data_of(done), text_of(done)


def _check_authority(
    request: Request, wishes: Wishes, folder: Consortium, there: Existing, now: datetime
) -> None:
    """Raise unless the authority can do what is asked: sign, or stand in new kits; barring needs nothing."""
    if there.authority is None:
        return
    if there.server is None or request.renew_server:
        ca.check_authority(there.authority, ca.read_key(folder.ca_key), now)
    elif wishes.add or wishes.renew:
        ca.check_authority(there.authority, None, now)
    if there.server is not None and request.renew_server and not request.new_key:
        ca.check_pair(there.server, ca.read_key(folder.server_key), str(folder.server_key))


def _make_authority(request: Request, folder: Consortium, now: datetime) -> ca.Certificate:
    key = ca.new_key()
    authority = ca.create_authority(key, request.name or NAME, days=request.ca_days or CA_DAYS, now=now)
    with new_folder(folder.ca_certificate.parent) as part:
        write_new(part / folder.ca_key.name, ca.key_pem(key), mode=PRIVATE)
        write_new(part / folder.ca_certificate.name, ca.certificate_pem(authority))
    return authority


def _server(
    request: Request,
    hosts: tuple[str, ...],
    folder: Consortium,
    authority: ca.Certificate,
    old: ca.Certificate | None,
    now: datetime,
) -> ca.Certificate:
    if old is not None and not request.renew_server:
        return old
    keep = old is not None and not request.new_key
    key = ca.read_key(folder.server_key) if keep else ca.new_key()
    names = hosts or (ca.hosts_of(old) if old is not None else ())
    days = request.days or DAYS
    new = ca.issue_server(authority, ca.read_key(folder.ca_key), key, names, days=days, now=now)
    files = {folder.server_certificate.name: (ca.certificate_pem(new), PUBLIC)}
    if not keep:
        files[folder.server_key.name] = (ca.key_pem(key), PRIVATE)
    if old is not None:
        folder.replace_server(files, old.serial_number)
    else:
        with new_folder(folder.server) as part:
            for name, (content, mode) in files.items():
                write_new(part / name, content, mode=mode)
    return new


def _enrol(wishes: Wishes, folder: Consortium, terms: Terms) -> tuple[Enrolled, ...]:
    folder.revoked.mkdir(parents=True, exist_ok=True)
    folder.kits.mkdir(mode=0o700, exist_ok=True)
    enrolled = [revoke(folder, site) for site in wishes.revoke]
    for site, public in wishes.renew.items():
        revoke(folder, site)
        enrolled.append(admit(folder, site, terms, public, Outcome.RENEWED))
    enrolled += [admit(folder, site, terms, public, Outcome.ADDED) for site, public in wishes.add.items()]
    return tuple(sorted(enrolled, key=lambda one: one.site))


def _write_settings(folder: Consortium, authority: ca.Certificate, port: int) -> None:
    sites = sorted(folder.keys())
    words = {
        "consortium": ca.consortium_name(authority),
        "port": port,
        "expected": sites,
        "quorum": len(sites) // 2 + 1,
    }
    write_new(folder.settings, render("server.yaml.j2", words))


def _address(server: ca.Certificate, port: int) -> str:
    host = ca.hosts_of(server)[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _endings(
    authority: ca.Certificate, server: ca.Certificate, old: ca.Certificate | None, now: datetime
) -> list[str]:
    """Return what ends soon, or sooner than asked for."""
    warnings = []
    for what, certificate in (("the authority", authority), ("the server's certificate", server)):
        left = ca.days_left(certificate, now)
        if left < SOON_DAYS:
            ends = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            warnings.append(f"{what} {'ended' if left < 0 else f'ends in {left} days,'} on {ends}")
    if server is not old and server.not_valid_after_utc == authority.not_valid_after_utc:
        warnings.append("the server's certificate ends with the authority, which cannot vouch for longer")
    return warnings


def _addresses(
    folder: Consortium, server: ca.Certificate, old: ca.Certificate | None, port: int
) -> list[str]:
    """Return where kits and server may miss each other."""
    gone = [] if old is None else [host for host in ca.hosts_of(old)[:1] if host not in ca.hosts_of(server)]
    warnings = [f"kits handed out before connect to {host}, which the server no longer is" for host in gone]
    if port != folder.port():
        warnings.append(
            f"kits connect to port {port}, {folder.settings} says {folder.port()}: is it forwarded?"
        )
    return warnings


def _expectations(folder: Consortium, enrolled: Sequence[Enrolled]) -> list[str]:
    """Return where the list of expected hospitals, which is the coordinator's to edit, does not fit."""
    expected = read_yaml(folder.settings).get("expected")
    if not isinstance(expected, list) or not expected:
        return []
    new = [one.site for one in enrolled if one.outcome is not Outcome.REVOKED and one.site not in expected]
    barred = [one.site for one in enrolled if one.outcome is Outcome.REVOKED and one.site in expected]
    return [f"{folder.settings}: expected: does not name {site}; add it" for site in new] + [
        f"{folder.settings}: expected: still names {site}; remove it" for site in barred
    ]
