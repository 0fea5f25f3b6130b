"""Ledgers as tests make them: mechanisms without sampling, whose epsilon is a closed form and quick."""

import math
from pathlib import Path

from scipy import optimize, stats

from fedglioma.privacy.accounting import Mechanism
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import Budget, ReleaseKey, member_tags

SECRET = b"s" * 32
DELTA = 1e-5
AMPLE = Budget(epsilon=100.0, delta=DELTA)


def tags(*patients: int) -> tuple[str, ...]:
    """Return the tags of patients P1, P2, ..."""
    return member_tags(SECRET, [f"P{number}" for number in patients])


def noise(multiplier: float, steps: int = 1) -> tuple[Mechanism, ...]:
    return (Mechanism(noise_multiplier=multiplier, steps=steps),)


def key(round_: int = 1, run: str = "a", what: str = "update", attempt: int = 1) -> ReleaseKey:
    return ReleaseKey(run=run, round=round_, what=what, attempt=attempt)


def ledger_in(state: Path, copy: Path | None = None) -> Ledger:
    return Ledger(state, "north", head_copy=copy)


def spend(
    ledger: Ledger, of: ReleaseKey, multiplier: float = 5.0, patients: tuple[int, ...] = (1, 2, 3)
) -> None:
    """Reserve and commit."""
    ledger.commit(ledger.reserve(of, noise(multiplier), tags(*patients), AMPLE), f"update of {of}".encode())


def gaussian_epsilon(*multipliers: float) -> float:
    """Return epsilon of Gaussian mechanisms together, from the definition (Dong, Roth and Su 2022)."""
    if not multipliers:
        return 0.0
    mu = math.sqrt(math.fsum(1 / multiplier**2 for multiplier in multipliers))

    def excess(epsilon: float) -> float:
        upper = stats.norm.cdf(-epsilon / mu + mu / 2)
        return float(upper - math.exp(epsilon + stats.norm.logcdf(-epsilon / mu - mu / 2)) - DELTA)

    return 0.0 if excess(0) <= 0 else float(optimize.brentq(excess, 0, 500))
