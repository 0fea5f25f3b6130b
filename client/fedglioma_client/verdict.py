"""The result of one check: ok, warning or failed, in one line with its remedy."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended; only ``failed`` keeps the site from taking part."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """What was checked, what was found, and what to do about it; names no patient.

    ``exit_code`` is that of a command which ends with this failure; 0 where nothing failed.
    """

    subject: str
    status: Status
    detail: str
    remedy: str = ""
    exit_code: int = 0


def several(count: int, noun: str) -> str:
    """Return a count with its noun, as in ``1 case`` and ``2 cases``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def fine(subject: str, detail: str) -> Verdict:
    """Return that all is well."""
    return Verdict(subject, Status.OK, detail)


def doubtful(subject: str, detail: str, remedy: str) -> Verdict:
    """Return that it works, but somebody should look at it."""
    return Verdict(subject, Status.WARNING, detail, remedy)


def failed(subject: str, detail: str, remedy: str, *, exit_code: int) -> Verdict:
    """Return that the site cannot take part as things are."""
    return Verdict(subject, Status.FAILED, detail, remedy, exit_code)
