"""What ``provision`` did, as data and as words for the coordinator; private keys are in neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedglioma.nodekey import PRIVATE_NAME, fingerprint
from fedglioma_server.authority import (
    Certificate,
    certificate_fingerprint,
    consortium_name,
    days_left,
    hosts_of,
)
from fedglioma_server.consortium import Consortium
from fedglioma_server.enrolment import Enrolled, Outcome
from fedglioma_server.kits import sha256_of

SOON_DAYS = 30
"""Whatever ends within so many days is warned about."""


@dataclass(frozen=True)
class Done:
    """The consortium after a command, and what was new in it."""

    folder: Consortium
    authority: Certificate
    server: Certificate
    address: str
    new_authority: bool
    new_server: bool
    enrolled: Sequence[Enrolled]
    warnings: Sequence[str]
    now: datetime


def certificate_data(certificate: Certificate, now: datetime) -> dict[str, Any]:
    """Return what a certificate says, for the JSON envelope."""
    return {
        "fingerprint": certificate_fingerprint(certificate),
        "serial": f"{certificate.serial_number:x}",
        "expires": certificate.not_valid_after_utc.isoformat(),
        "days_left": days_left(certificate, now),
    }


def data_of(done: Done) -> dict[str, Any]:
    """Return the result for the JSON envelope."""
    return {
        "folder": str(done.folder.path),
        "consortium": consortium_name(done.authority),
        "authority": certificate_data(done.authority, done.now) | {"new": done.new_authority},
        "server": certificate_data(done.server, done.now)
        | {"new": done.new_server, "hosts": list(hosts_of(done.server)), "address": done.address},
        "settings": str(done.folder.settings),
        "sites": [_site(one) for one in done.enrolled],
        "warnings": list(done.warnings),
    }


def text_of(done: Done) -> str:
    """Return the result in words, with what to do next."""
    lines = [
        f"consortium {consortium_name(done.authority)}: {done.folder.path}",
        _certificate_line("authority", done.authority, done.now, new=done.new_authority),
        f"  fingerprint {certificate_fingerprint(done.authority)}",
        _certificate_line("server certificate", done.server, done.now, new=done.new_server),
        f"  for {', '.join(hosts_of(done.server))}; kits connect to {done.address}",
    ]
    width = max((len(one.site) for one in done.enrolled), default=0)
    lines += [
        f"{one.outcome:8} {one.site:{width}}  {fingerprint(one.public)}  {_kit_words(one)}"
        for one in done.enrolled
    ]
    lines += [f"warning: {warning}" for warning in done.warnings]
    return "\n".join([*lines, *_next_steps(done)])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of words as lines with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _site(one: Enrolled) -> dict[str, Any]:
    return {
        "site": one.site,
        "outcome": one.outcome.value,
        "fingerprint": fingerprint(one.public),
        "own_key": one.own_key,
        "kit": _path(one.kit),
        "archive": _path(one.archive),
        "archive_sha256": None if one.archive is None else sha256_of(one.archive),
    }


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _certificate_line(what: str, certificate: Certificate, now: datetime, *, new: bool) -> str:
    made = "made" if new else "kept"
    ends = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    return f"{what}: {made}, ends {ends} ({days_left(certificate, now)} days left)"


def _kit_words(one: Enrolled) -> str:
    if one.outcome is Outcome.REVOKED:
        return "may not join any more"
    if one.archive is None:
        return f"its kit is not here any more; --renew-site {one.site} makes a new one"
    return (
        f"{one.archive} ({'without a key: the site has its own' if one.own_key else 'holds its private key'})"
    )


def _next_steps(done: Done) -> list[str]:
    steps = []
    handed = [one for one in done.enrolled if one.outcome in (Outcome.ADDED, Outcome.RENEWED)]
    if handed:
        steps.append(
            "hand each hospital its archive over a channel you trust, and tell both fingerprints by voice"
        )
    if any(not one.own_key for one in handed):
        steps.append(f"delete a kit here once it has arrived: it holds {PRIVATE_NAME}")
    if done.new_authority:
        steps.append(f"keep {done.folder.ca_key} away from the server: only --renew-server needs it")
    if done.new_server and not done.new_authority:
        steps.append("restart the server: it reads its certificate when it starts")
    return [f"next: {step}" for step in steps]
