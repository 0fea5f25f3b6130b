"""What the site's patients have lost of their privacy, what is left, and whether the ledger is intact."""

import math
from dataclasses import dataclass
from typing import Any, Final

from fedglioma.chain import AUDIT_FILE, Head
from fedglioma.config.site import SiteConfig
from fedglioma.errors import PrivacyError
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import UPDATE, Budget, Release
from fedglioma.privacy.ledger_file import OUTBOX
from fedglioma.privacy.ledger_heads import Audited, read_audited
from fedglioma.privacy.ledger_runs import RoundSpending, RunSummary, rounds_of, runs_of
from fedglioma_client.verdict import Verdict, doubtful, failed, fine, several

NEAR: Final = 0.8
"""Share of the budget from which on the screen warns."""
UNIT: Final = "a patient with all scans; neighbours are two sets of patients of which one has a patient more"
MECHANISM: Final = "sampled Gaussian mechanism (DP-SGD), Poisson sampling over patients"
NOT_COVERED: Final = (
    "that this hospital takes part, when, how long it computes, and how much it sends",
    "counts and brightness that are told without noise: small cells are hidden and totals rounded, which is "
    "not differential privacy",
    "codes of patients who are at two hospitals, where a linkage key is set",
    "what others know of a patient from elsewhere, and what a model rightly tells of all patients alike",
    "settings that a person chose after looking at the data, and results told outside this program",
)


@dataclass(frozen=True)
class Figures:
    """Everything that the screen shows."""

    site: str
    limit: Budget
    head: Head
    copied: bool
    audited: Audited
    releases: tuple[Release, ...]
    runs: tuple[RunSummary, ...]
    rounds: tuple[RoundSpending, ...]
    spent: float
    rounds_left: int | None
    """How many more rounds like the last one fit; None where there was none, or no limit is set."""

    @property
    def left(self) -> float:
        """Epsilon that is left; infinite without a limit."""
        return max(self.limit.epsilon - self.spent, 0.0) if math.isfinite(self.spent) else 0.0

    @property
    def share(self) -> float:
        """Spent share of the limit; 0 without a limit."""
        if math.isinf(self.limit.epsilon):
            return 0.0
        return self.spent / self.limit.epsilon

    def warnings(self) -> tuple[str, ...]:
        """Return what somebody should look at, in words."""
        said = []
        if self.share > NEAR:
            more = (
                ""
                if self.rounds_left is None
                else f"; {several(self.rounds_left, 'round')} like the last fit"
            )
            said.append(f"{self.share:.0%} of the budget is spent{more}")
        if self.audited.unprotected:
            several_answers = several(self.audited.unprotected, "training answer")
            said.append(f"{several_answers} left without differential privacy and stand in no ledger")
        if math.isinf(self.limit.epsilon) and self.runs:
            said.append("no limit is set (privacy: max_epsilon): the ledger only counts")
        return tuple(said)

    def data(self) -> dict[str, Any]:
        """Return the result for machines; an epsilon that is infinite is null."""
        return {
            "site": self.site,
            "unit": UNIT,
            "mechanism": MECHANISM,
            "accountant": self.limit.accountant,
            "delta": self.limit.delta,
            "epsilon_limit": _finite(self.limit.epsilon),
            "epsilon_spent": _finite(self.spent),
            "epsilon_left": _finite(self.left),
            "share_spent": _finite(self.share),
            "rounds_left": self.rounds_left,
            "runs": [
                run.model_dump(mode="json")
                | {"epsilon": _finite(run.epsilon), "cumulative": _finite(run.cumulative)}
                for run in self.runs
            ],
            "rounds": [
                one.model_dump(mode="json") | {"cumulative": _finite(one.cumulative)} for one in self.rounds
            ],
            "releases": [_told(release) for release in self.releases],
            "ledger": {
                "intact": True,
                "lines": self.head.seq,
                "head": self.head.digest,
                "second_copy": self.copied,
                "noted_in_audit_log": self.audited.head is not None,
            },
            "unprotected_answers": self.audited.unprotected,
            "not_covered": list(NOT_COVERED),
            "warnings": list(self.warnings()),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _told(release: Release) -> dict[str, Any]:
    done = release.committed
    return {
        **release.key.model_dump(mode="json"),
        "time": release.time,
        "state": "given up" if release.voided else "open" if done is None else "released",
        "mechanisms": [one.model_dump(mode="json") for one in release.reserved.mechanisms],
        "patients": release.reserved.patients,
        "about": release.reserved.about,
        "bytes": None if done is None else done.bytes,
        "digest": None if done is None else done.update,
    }


def limit_of(config: SiteConfig) -> Budget:
    """Return the budget that a site's settings give each patient; infinite where they give no limit."""
    terms = config.privacy
    epsilon = math.inf if terms.max_epsilon is None else terms.max_epsilon
    return Budget(epsilon=epsilon, delta=terms.max_delta, accountant=terms.accountant)


def ledger_of(config: SiteConfig) -> Ledger:
    """Return a site's ledger; nothing is made before its first line.

    What may be sent again lies with it, or in a simulation of a hospital that has a ledger, with the run.
    """
    outbox = None if config.lasting_state == config.state else config.state / OUTBOX
    return Ledger(config.lasting_state, config.site, head_copy=config.privacy.head_copy, outbox=outbox)


def read_figures(config: SiteConfig, *, by_round: bool = False) -> Figures:
    """Return what a site's ledger shows, compared with every head that is kept beside it.

    Parameters
    ----------
    by_round : bool
        Whether also after each round, which takes a few seconds more.

    Raises
    ------
    PrivacyError
        The ledger is not as it was written, or an older copy of it was put back.
    """
    ledger, limit = ledger_of(config), limit_of(config)
    audited = read_audited(config.lasting_state / AUDIT_FILE)
    if audited.head is not None:
        ledger.require_head(audited.head)
    releases = ledger.entries()
    return Figures(
        site=config.site,
        limit=limit,
        head=ledger.head(),
        copied=config.privacy.head_copy is not None,
        audited=audited,
        releases=releases,
        runs=runs_of(ledger, limit),
        rounds=rounds_of(ledger, limit) if by_round else (),
        spent=ledger.epsilon_spent(None, limit.delta, limit.accountant),
        rounds_left=_rounds_left(ledger, releases, limit),
    )


def _rounds_left(ledger: Ledger, releases: tuple[Release, ...], limit: Budget) -> int | None:
    updates = [r for r in releases if r.key.what == UPDATE and r.committed is not None]
    if not updates or math.isinf(limit.epsilon):
        return None
    last = updates[-1]
    return ledger.rounds_left(last.reserved.mechanisms, ledger.members_of(last), limit)


def check_budget(config: SiteConfig) -> tuple[Verdict, ...]:
    """Return whether the ledger is intact and how much is left, as lines of the preflight."""
    try:
        figures = read_figures(config)
    except OSError as error:
        remedy = "give this user the right to read the state folder"
        return (failed("budget", f"{config.state}: {error.strerror or error}", remedy, exit_code=2),)
    except PrivacyError as error:
        remedy = "docs/privacy-ledger.md has what to do"
        return (failed("budget", str(error), remedy, exit_code=error.exit_code),)
    limit = "no limit" if math.isinf(figures.limit.epsilon) else f"of {figures.limit.epsilon:g}"
    detail = f"epsilon {figures.spent:.3g} {limit} spent at delta {figures.limit.delta:g}"
    if not figures.releases:
        return (fine("budget", f"{detail}; nothing private was ever sent"),)
    if figures.share >= 1 or figures.rounds_left == 0:
        remedy = "private rounds will be refused; the hospital decides on privacy: max_epsilon"
        return (doubtful("budget", f"{detail}; no round like the last fits", remedy),)
    if figures.share > NEAR:
        remedy = "plan the last rounds: fedglioma-client --site NAME privacy shows them"
        return (doubtful("budget", detail, remedy),)
    return (fine("budget", detail),)
