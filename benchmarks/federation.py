"""What a round costs: ours inline and deployed beside NVIDIA FLARE's simulator and POC, on one machine.

    python benchmarks/federation.py compare --flare-python X/bin/python
    python benchmarks/federation.py memory-sites       # the server's memory with 2 and with 8 sites
    python benchmarks/federation.py memory-inline      # the whole network, trained: 8 sites in one process
    python benchmarks/federation.py memory-deployed    # the whole network, trained: 3 sites over TLS

In the first two no site trains: each answers with the received float32 weights plus one, so that what is
measured is the federation alone. Both sides carry the same number of bytes: the real network's at a width
that comes nearest to the asked-for megabytes, in one array at FLARE. All systems run one after the other.
Seconds are from a round's start to the next one's; the first round is dropped and the median taken. CPU
seconds are of all processes of the system together. Memory is the highest proportional set size (PSS) while
rounds run, the first one included, of the server's processes together and of all processes.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path

from fedglioma.console import prepare_environment

prepare_environment()

import flare  # noqa: E402
import whole_network  # noqa: E402
from page import fill  # noqa: E402
from sampling import Figures  # noqa: E402
from systems import (  # noqa: E402
    DEPLOYED,
    INLINE,
    POC,
    SIMULATOR,
    Task,
    measure,
    nearest_width,
    payload,
    systems,
)

INLINE_REPEATS = 20
INLINE_REPEATS_LARGE = 5
SMALL_BYTES = 50e6


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    system: str
    task: Task
    figures: Figures | None
    failure: str = ""


def rounds_of(name: str, width: int, rounds: int) -> int:
    """Return how many rounds to run: inline ones are short, with few bytes shorter than a sample takes."""
    if name != INLINE:
        return rounds
    return rounds * (INLINE_REPEATS if payload(width) < SMALL_BYTES else INLINE_REPEATS_LARGE)


def compare(asked: argparse.Namespace, scratch: Path) -> Iterator[Line]:
    """Yield the lines of the comparison as they are measured: by size and sites, the systems in turn."""
    known = systems(asked.flare_python)
    for number, (megabytes, sites, name) in enumerate(
        (size, count, name) for size in asked.sizes for count in asked.sites for name in asked.systems
    ):
        if name not in known:
            continue
        width = nearest_width(megabytes)
        task = Task(sites, width, rounds_of(name, width, asked.rounds), scratch / str(number))
        try:
            yield Line(name, task, measure(known[name], task))
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            # An hour of figures is not thrown away for one that could not be measured.
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            yield Line(name, task, None, type(error).__name__)


HEAD = ("system", "sites", "MB", "s per round", "CPU s per round", "server MB", "all MB")


def cells(line: Line) -> tuple[str, ...]:
    """Return a line's cells, as in ``HEAD``."""
    found = line.figures
    start = line.system, str(line.task.sites), f"{line.task.bytes / 1e6:.0f}"
    if found is None:
        return *start, *["failed"] * 4
    return (
        *start,
        f"{found.seconds_per_round:.2f}",
        f"{found.cpu_s_per_round:.2f}",
        f"{found.peak_server_mb:.0f}",
        f"{found.peak_all_mb:.0f}",
    )


def row(values: tuple[str, ...]) -> str:
    """Return cells as a line of text, numbers to the right."""
    return f"{values[0]:16}" + "".join(
        f"{value:>{max(len(head), 5) + 2}}" for value, head in zip(values[1:], HEAD[1:], strict=True)
    )


RATIOS = (
    ("seconds, FLARE simulator over ours inline", SIMULATOR, INLINE, "seconds_per_round"),
    ("seconds, FLARE POC over ours deployed", POC, DEPLOYED, "seconds_per_round"),
    ("server memory, ours deployed over FLARE POC", DEPLOYED, POC, "peak_server_mb"),
)


def ratios(lines: list[Line]) -> Iterator[str]:
    """Yield how the systems compare where both were measured, one line per size and number of sites."""
    found = {(line.system, line.task.width, line.task.sites): line.figures for line in lines if line.figures}
    for title, upper, lower, what in RATIOS:
        for system, width, sites in found:
            below = found.get((lower, width, sites))
            if system == upper and below is not None:
                ratio = getattr(found[upper, width, sites], what) / getattr(below, what)
                yield f"{title}: {ratio:.2f} at {payload(width) / 1e6:.0f} MB, {sites} sites"


def sampling_cost(lines: list[Line]) -> str:
    """Return what measuring cost, so that a reader can judge whether it disturbed."""
    share = max((line.figures.sampler_share for line in lines if line.figures), default=0.0)
    return f"sampling took at most {100 * share:.0f} % of a core"


def surroundings(flare_version: str | None) -> Iterator[str]:
    """Yield the machine, the versions and the load before anything was measured."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    versions = [f"{name} {version(name)}" for name in ("fedglioma", "flwr", "torch", "numpy")]
    if flare_version is not None:
        versions.append(f"nvflare {flare_version}")
    yield (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), "
        f"load before the run {load}"
    )
    yield f"Python {platform.python_version()}, {', '.join(versions)}"


def growth(lines: list[Line]) -> Iterator[str]:
    """Yield how the server's memory grows with the sites, beside the size of one payload."""
    found = {line.task.sites: line for line in lines if line.figures}
    for fewer, more in pairwise(sorted(found)):
        small, large = found[fewer], found[more]
        if small.figures and large.figures:
            more_mb = large.figures.peak_server_mb - small.figures.peak_server_mb
            payload_mb = large.task.bytes / 1e6
            change = f"server memory with {more} sites less that with {fewer}: {more_mb:+.0f} MB"
            yield f"{change}; one payload is {payload_mb:.0f} MB"


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(MEASURES), nargs="?", default="compare")
    parser.add_argument("--sizes", type=float, nargs="+", help="megabytes, about")
    parser.add_argument("--sites", type=int, nargs="+", help="numbers of sites")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement; the first is dropped")
    parser.add_argument("--systems", nargs="+", choices=[INLINE, DEPLOYED, SIMULATOR, POC])
    parser.add_argument(
        "--flare-python",
        default=os.environ.get("FEDGLIOMA_FLARE_PYTHON"),
        help=f"the Python of an environment with NVIDIA FLARE: {flare.HOW_TO_INSTALL}",
    )
    parser.add_argument("--out", type=Path, help="page whose figures are replaced")
    return parser


def table(asked: argparse.Namespace, scratch: Path) -> Iterator[str]:
    """Yield a table of the asked-for measurements, line by line as they are made."""
    more = (
        f" ({INLINE} {INLINE_REPEATS} times as many below {SMALL_BYTES / 1e6:.0f} MB, "
        f"{INLINE_REPEATS_LARGE} times from there on)"
    )
    yield (
        f"{asked.rounds} rounds each{more if INLINE in asked.systems else ''}, "
        "the first dropped, median of the others"
    )
    yield ""
    yield row(HEAD)
    lines = []
    for line in compare(asked, scratch):
        lines.append(line)
        yield row(cells(line))
    yield ""
    yield from ratios(lines) if asked.what == "compare" else growth(lines)
    yield sampling_cost(lines)


def whole(asked: argparse.Namespace, scratch: Path) -> Iterator[str]:
    """Yield what the whole network takes, in a line."""
    if asked.what == "memory-inline":
        yield from (whole_network.inline(scratch / str(count), count, asked.rounds) for count in asked.sites)
    else:
        (scratch / "deployed").mkdir()
        yield whole_network.over_tls(scratch / "deployed", asked.rounds)


@dataclass(frozen=True)
class Measure:
    """One sub-command: what it prints, and what it does unless told otherwise."""

    lines: Callable[[argparse.Namespace, Path], Iterator[str]]
    defaults: Mapping[str, object]


EVERY = [INLINE, DEPLOYED, SIMULATOR, POC]
MEASURES = {
    "compare": Measure(table, {"sizes": [0, 20, 120], "sites": [2, 3], "rounds": 4, "systems": EVERY}),
    "memory-sites": Measure(table, {"sizes": [120], "sites": [2, 8], "rounds": 3, "systems": [DEPLOYED]}),
    "memory-inline": Measure(whole, {"sites": [8], "rounds": 1}),
    "memory-deployed": Measure(whole, {"rounds": 1}),
}


def main() -> None:
    """Measure and print."""
    parser = options()
    asked = parser.parse_args()
    measure_of = MEASURES[asked.what]
    for name, value in measure_of.defaults.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    for name in ("sizes", "sites", "rounds", "systems"):
        if name not in measure_of.defaults and getattr(asked, name) is not None:
            parser.error(f"{asked.what} does not take --{name}")
    found = None
    if asked.what == "compare":
        found = flare.version_of(asked.flare_python)
        if found is None:
            reason = "has no nvflare" if asked.flare_python else "is not given"
            print(f"FLARE is left out: --flare-python {reason}. {flare.HOW_TO_INSTALL}", file=sys.stderr)
            asked.flare_python = None
    text = []
    with tempfile.TemporaryDirectory(prefix="fedglioma-benchmark-") as scratch:
        try:
            for line in chain(surroundings(found), measure_of.lines(asked, Path(scratch))):
                text.append(line)
                print(line, flush=True)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise SystemExit(f"not measured: {error}") from None
    if asked.out:
        fenced = "\n".join(["```text", *text, "```"])
        fill(asked.out, f"output of benchmarks/federation.py {asked.what}", fenced)


if __name__ == "__main__":
    main()
