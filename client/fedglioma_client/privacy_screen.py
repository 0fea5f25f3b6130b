"""The ``privacy`` command: the ledger on one screen, for the data manager."""

import io
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Final

from rich.console import Console
from rich.table import Table

from fedglioma.privacy.ledger_entries import UPDATE, Release
from fedglioma.privacy.ledger_runs import RoundSpending, RunSummary
from fedglioma_client.budget import MECHANISM, NOT_COVERED, UNIT, Figures
from fedglioma_client.verdict import several

BAR: Final = 40
WIDTH: Final = 110


def screen(figures: Figures) -> str:
    """Return the ledger as text; nothing in it names a patient."""
    parts = [
        "\n".join(_top(figures)),
        _runs(figures.runs),
        "\n".join(_rounds(figures.rounds)),
        "\n".join(_others(figures.releases)),
        "\n".join(("not covered by any epsilon:", *(f"  - {line}" for line in NOT_COVERED))),
        "\n".join(f"WARNING: {line}" for line in figures.warnings()),
    ]
    return "\n\n".join(part for part in parts if part)


def _top(figures: Figures) -> Iterator[str]:
    limit = figures.limit
    yield f"site       {figures.site}"
    yield f"unit       {UNIT}"
    yield f"mechanism  {MECHANISM}"
    yield f"accountant {limit.accountant}, at delta {limit.delta:g}"
    if not figures.releases:
        yield "spent      nothing: no ledger line was ever written, nothing private was sent"
        yield f"limit      {_limit(limit.epsilon)}"
        return
    yield f"spent      epsilon {_number(figures.spent)}, by the patient who lost most"
    yield f"limit      {_limit(limit.epsilon)}"
    if math.isfinite(limit.epsilon):
        rounds = figures.rounds_left
        more = "" if rounds is None else f"; {several(rounds, 'more round')} like the last"
        yield f"left       epsilon {_number(figures.left)}{more}"
        yield f"           {bar(figures.share)}"
    open_ones = [release.key for release in figures.releases if release.open]
    yield f"open       {'; '.join(map(str, open_ones)) or 'nothing is reserved and not released'}"
    yield f"ledger     intact, {several(figures.head.seq, 'line')}, head {figures.head.digest}"
    yield f"kept too   {_kept(figures)}"


def _limit(epsilon: float) -> str:
    return (
        "none is set (privacy: max_epsilon)" if math.isinf(epsilon) else f"epsilon {epsilon:g} in a lifetime"
    )


def _kept(figures: Figures) -> str:
    places = []
    if figures.copied:
        places.append("second copy of the head")
    if figures.audited.head is not None:
        places.append("audit log")
    if not places:
        return "nowhere else: an older copy of this folder would not be noticed (privacy: head_copy)"
    return f"{' and '.join(places)}: {'agree' if len(places) > 1 else 'agrees'}"


def bar(share: float) -> str:
    """Return a bar of the spent share, with its percentage; full at 1 and beyond."""
    filled = math.ceil(min(share, 1.0) * BAR)
    percent = f"{share:.0%}" if math.isfinite(share) else "over 100%"
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {percent}"


def _number(epsilon: float) -> str:
    return "beyond what can be worked out" if math.isinf(epsilon) else f"{epsilon:.3g}"


def _runs(runs: Sequence[RunSummary]) -> str:
    if not runs:
        return ""
    table = Table(box=None, pad_edge=False)
    for name in (
        "run",
        "rounds",
        "updates",
        "steps",
        "noise",
        "rate",
        "clip",
        "patients",
        "epsilon",
        "until then",
    ):
        table.add_column(name, justify="left" if name in ("run", "rounds") else "right")
    for run in runs:
        clip = run.about.get("clip_norm")
        table.add_row(
            run.run,
            spans(run.rounds) or "-",
            str(run.updates),
            str(run.steps),
            _distinct([one.noise_multiplier for one in run.mechanisms]),
            _distinct([one.sampling_rate for one in run.mechanisms]),
            "-" if clip is None else str(clip),
            str(run.patients),
            _number(run.epsilon),
            _number(run.cumulative),
        )
    return _printed(table)


def _rounds(rounds: Sequence[RoundSpending]) -> Iterator[str]:
    """Yield what was spent after rounds: where there are many those that are exact, and each run's last."""
    if not rounds:
        return
    yield "epsilon after a round, of everything until then (<: at most):"
    for run in dict.fromkeys(one.run for one in rounds):
        own = [one for one in rounds if one.run == run]
        shown = [one for one in own if not one.at_most or one is own[-1]]
        told = [
            f"{one.round}:\N{NO-BREAK SPACE}{'<' * one.at_most}{_number(one.cumulative)}" for one in shown
        ]
        lines = wrap(f"run {run}, {', '.join(told)}", WIDTH, initial_indent="  ", subsequent_indent="    ")
        yield from (line.replace("\N{NO-BREAK SPACE}", " ") for line in lines)


def _others(releases: Sequence[Release]) -> Iterator[str]:
    others = [r for r in releases if r.key.what != UPDATE and r.committed is not None]
    if not others:
        return
    yield "other releases, counted in with their runs:"
    for release in others:
        noise = _distinct([one.noise_multiplier for one in release.reserved.mechanisms])
        key = release.key
        yield f"  {key.what.partition(':')[0]:<10} run {key.run}, round {key.round}, noise {noise}"


def _distinct(numbers: Sequence[float]) -> str:
    found = sorted(set(numbers))
    if not found:
        return "-"
    return f"{found[0]:.4g}" if len(found) == 1 else f"{found[0]:.4g} to {found[-1]:.4g}"


def spans(numbers: Sequence[int]) -> str:
    """Return rising whole numbers as spans: ``1-12, 14``."""
    if not numbers:
        return ""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _printed(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())
