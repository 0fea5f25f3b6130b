"""``provision --status``: certificates and kits, what ends when, and what does not fit together."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma.nodekey import PUBLIC_NAME, fingerprint, read_public_key
from fedglioma_server import authority as ca
from fedglioma_server.consortium import Consortium
from fedglioma_server.kits import CA_NAME
from fedglioma_server.provision_request import Request
from fedglioma_server.provision_text import SOON_DAYS, table


class State(StrEnum):
    """How something stands; all but the first two end the command with 7."""

    OK = "ok"
    SOON = "soon"
    EXPIRED = "EXPIRED"
    BROKEN = "BROKEN"


@dataclass(frozen=True)
class Row:
    """A certificate or a site's kit."""

    what: str
    name: str
    certificate: ca.Certificate | None
    fingerprint: str
    state: State
    note: str = ""

    def data(self, now: datetime) -> dict[str, Any]:
        """Return the row for the JSON envelope."""
        ends = self.certificate
        return {
            "what": self.what,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "expires": None if ends is None else ends.not_valid_after_utc.isoformat(),
            "days_left": None if ends is None else ca.days_left(ends, now),
            "state": self.state.value.lower(),
            "note": self.note,
        }

    def words(self, now: datetime) -> tuple[str, ...]:
        """Return the row for the table."""
        ends = "" if self.certificate is None else f"{self.certificate.not_valid_after_utc:%Y-%m-%d}"
        left = "" if self.certificate is None else str(ca.days_left(self.certificate, now))
        return self.state, self.what, self.name, ends, left, self.note or self.fingerprint


def status(request: Request, *, now: datetime | None = None) -> tuple[dict[str, Any], str, str | None]:
    """Return the table as data and as text, and why the command does not end with 0, if so.

    Nothing is written.

    Raises
    ------
    ConfigError
        There is no consortium in the folder, or something else is asked for too.
    IdentityError
        The authority's certificate or a public key cannot be read.
    """
    now, out = now or ca.today(), request.out
    if request != Request(out):
        raise ConfigError("--status: only looks; leave the other options out, except --out")
    folder = Consortium(out)
    if not folder.exists():
        raise ConfigError(f"--out {out}: no consortium there; 'fedglioma-server provision' makes one")
    authority = ca.read_certificate(folder.ca_certificate)
    rows = [
        _authority_row(authority, now),
        _server_row(folder, authority, now),
        *_site_rows(folder, authority, now),
    ]
    lines = table(
        [("state", "what", "name", "ends", "days", "remark or fingerprint"), *(r.words(now) for r in rows)]
    )
    bad = [row for row in rows if row.state in (State.EXPIRED, State.BROKEN)]
    soon = [row for row in rows if row.state is State.SOON]
    lines += [f"warning: {row.what} {row.name}: ends within {SOON_DAYS} days" for row in soon]
    reason = "; ".join(f"{row.what} {row.name}: {row.note or 'expired'}" for row in bad) or None
    data = {
        "folder": str(out),
        "consortium": ca.consortium_name(authority),
        "rows": [r.data(now) for r in rows],
    }
    return data, "\n".join(lines), reason


def _state(certificate: ca.Certificate, now: datetime) -> State:
    if now >= certificate.not_valid_after_utc:
        return State.EXPIRED
    return State.SOON if ca.days_left(certificate, now) < SOON_DAYS else State.OK


def _authority_row(authority: ca.Certificate, now: datetime) -> Row:
    state = _state(authority, now)
    note = "" if state is State.OK else "make a new consortium folder and give every hospital a new kit"
    words = ca.certificate_fingerprint(authority)
    return Row("authority", ca.consortium_name(authority), authority, words, state, note)


def _server_row(folder: Consortium, authority: ca.Certificate, now: datetime) -> Row:
    path = folder.server_certificate
    problem = _problem(lambda: _check_server(folder, authority))
    if problem is not None:
        return Row("server", path.name, None, "", State.BROKEN, problem)
    server = ca.read_certificate(path)
    state = _state(server, now)
    note = "" if state is State.OK else "--renew-server makes a new one"
    return Row(
        "server", ",".join(ca.hosts_of(server)), server, ca.certificate_fingerprint(server), state, note
    )


def _check_server(folder: Consortium, authority: ca.Certificate) -> None:
    server = ca.read_certificate(folder.server_certificate)
    ca.check_issued(server, authority, str(folder.server_certificate))
    ca.check_pair(server, ca.read_key(folder.server_key), str(folder.server_key))


def _site_rows(folder: Consortium, authority: ca.Certificate, now: datetime) -> list[Row]:
    keys = folder.keys()
    rows = [_site_row(folder, site, public, authority, now) for site, public in keys.items()]
    kits = sorted(path.name for path in folder.kits.glob("*") if path.is_dir() and "." not in path.name)
    rows += [
        Row(
            "kit", site, None, "", State.BROKEN, f"not admitted; the same provision --site {site} finishes it"
        )
        for site in kits
        if site not in keys and site not in folder.revoked_keys().values()
    ]
    return rows + [
        Row("revoked", site, None, fingerprint(public), State.OK)
        for public, site in folder.revoked_keys().items()
    ]


def _site_row(folder: Consortium, site: str, public: bytes, authority: ca.Certificate, now: datetime) -> Row:
    words, kit = fingerprint(public), folder.kit(site)
    if not kit.exists():
        return Row("site", site, authority, words, _state(authority, now), f"{words}, kit not here any more")
    problem = _problem(lambda: _check_kit(kit, public, authority))
    if problem is not None:
        return Row("site", site, None, words, State.BROKEN, problem)
    return Row("site", site, authority, words, _state(authority, now))


def _check_kit(kit: Path, public: bytes, authority: ca.Certificate) -> None:
    """Raise unless a kit has the site's key and this consortium's certificate."""
    if read_public_key(kit / PUBLIC_NAME) != public:
        raise ConfigError(f"{kit / PUBLIC_NAME}: another key than the site's; --renew-site makes a new kit")
    if ca.read_certificate(kit / CA_NAME) != authority:
        raise ConfigError(f"{kit / CA_NAME}: another consortium's; --renew-site makes a new kit")


def _problem(looked: Callable[[], None]) -> str | None:
    try:
        looked()
    except FedGliomaError as error:
        return str(error)
    return None
