"""What a system of processes costs: the CPU seconds and the memory of all its processes, sampled over time.

A process belongs to the system when a mark stands in its environment. Children inherit it, and so do
processes that outlive their parents, which a walk from parent to child would lose.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType

import numpy as np

MARK = "FEDGLIOMA_BENCHMARK_MARK"
INTERVAL_S = 0.05
MOST_OF_A_CORE = 0.1
"""A sample that took long is followed by a pause of at least this share's inverse, so that measuring does not
become what is measured."""
SERVER, SITE, TOOL = "server", "site", "tool"
"""What a process is: part of the server, part of a site, or a tool of the benchmark that is not counted."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")

Role = Callable[[str], str]
"""Told a process's command line, answers what the process is."""


@dataclass(frozen=True)
class Sample:
    """One look at all processes: wall-clock time, CPU seconds so far, memory by role in bytes."""

    at: float
    cpu_s: float
    memory: Mapping[str, int]


@dataclass(frozen=True)
class Figures:
    """What rounds cost; memory is proportional set size (PSS): shared pages are divided by their users."""

    seconds_per_round: float
    cpu_s_per_round: float
    peak_server_mb: float
    peak_all_mb: float
    rounds: tuple[float, ...] = ()
    sampler_share: float = 0.0


def marked(mark: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment whose processes are counted under ``mark``."""
    return {**os.environ, **(more or {}), MARK: mark}


def pids() -> set[int]:
    """Return the numbers of all processes of this machine."""
    return {int(name) for name in os.listdir(_PROC) if name.isdigit()}  # noqa: PTH208 - a hundred times a second


def _read(pid: int, what: str) -> bytes:
    """Return a file of a process; empty where the process ended or is another user's."""
    try:
        with open(f"/proc/{pid}/{what}", "rb") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return b""


def carries(pid: int, mark: str) -> bool:
    """Whether a process has the mark; a zombie has nothing."""
    return f"{MARK}={mark}".encode() in _read(pid, "environ").split(b"\0")


def cpu_s(pid: int) -> float:
    """Return user and system seconds of a process, all threads; 0 where it ended."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0


def pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 where it ended."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def command_line(pid: int) -> str:
    """Return a process's command line; empty where it ended."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


@dataclass
class Sampler:
    """Samples every process that carries ``mark``, in a thread, from entering to leaving.

    Parameters
    ----------
    role : callable
        Says what a process is; asked at every sample, because a child runs its parent's program for a while.
    """

    role: Role = lambda _command: SERVER
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    interval_s: float = INTERVAL_S
    samples: list[Sample] = field(default_factory=list)
    own_cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self._spent: dict[int, float] = {}
        self._members: set[int] = set()
        self._sizes: dict[int, tuple[bytes, int]] = {}
        self._strangers = {pid for pid in pids() if not carries(pid, self.mark)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)

    def __enter__(self) -> "Sampler":
        """Start to sample."""
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Stop to sample, and end what is left of the system."""
        self._stop.set()
        self._thread.join()
        end(self.mark)

    @property
    def share(self) -> float:
        """CPU seconds of the sampling itself per second."""
        span = self.samples[-1].at - self.samples[0].at if self.samples else 0.0
        return self.own_cpu_s / span if span > 0 else 0.0

    def sample(self) -> Sample:
        """Look once at all processes of the system."""
        now = pids()
        self._strangers &= now
        self._members &= now
        # A process that is new and has no mark may still get it: its exec is yet to come.
        self._members |= {pid for pid in now - self._strangers - self._members if carries(pid, self.mark)}
        memory: dict[str, int] = {SERVER: 0, SITE: 0, TOOL: 0}
        for pid in self._members:
            command = command_line(pid)
            role = self.role(command) if command else TOOL
            if role != TOOL:
                self._spent[pid] = max(self._spent.get(pid, 0.0), cpu_s(pid))
            memory[role] += self._pss(pid)
        return Sample(time.time(), sum(self._spent.values()), memory)

    def _pss(self, pid: int) -> int:
        """Return a process's PSS, asked for again when its resident pages changed: asking walks all pages."""
        resident = _read(pid, "statm")
        before, size = self._sizes.get(pid, (b"", 0))
        if resident != before:
            size = pss(pid)
            self._sizes[pid] = resident, size
        return size

    def _loop(self) -> None:
        while not self._stop.is_set():
            started, spent = time.perf_counter(), time.thread_time()
            self.samples.append(self.sample())
            self.own_cpu_s += time.thread_time() - spent
            took = time.perf_counter() - started
            self._stop.wait(max(self.interval_s - took, took / MOST_OF_A_CORE - took, 0.0))


def end(mark: str, *, within_s: float = 20.0) -> None:
    """Kill every process that carries the mark, and those that they start meanwhile.

    Raises
    ------
    RuntimeError
        Some still run when the time is over.
    """
    give_up = time.monotonic() + within_s
    while left := [pid for pid in pids() if carries(pid, mark)]:
        for pid in left:
            _kill(pid)
        if time.monotonic() > give_up:
            raise RuntimeError(f"processes {', '.join(map(str, left))} do not end; end them by hand")
        time.sleep(0.05)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def figures(samples: Sequence[Sample], stamps: Sequence[float], *, drop: int = 1) -> Figures:
    """Return what the rounds between the stamps cost.

    Parameters
    ----------
    stamps : sequence of float
        Wall-clock times: the first round's start, then each round's end.
    drop : int
        First rounds that count for the peaks but not for seconds and CPU: they connect and warm up.

    Raises
    ------
    ValueError
        There are not enough rounds or samples.
    """
    if len(stamps) < drop + 2:
        raise ValueError(f"{len(stamps) - 1} rounds seen where more than {drop} are needed")
    inside = [sample for sample in samples if stamps[0] <= sample.at <= stamps[-1]]
    if not inside:
        raise ValueError("no sample fell into the rounds")
    lengths = tuple(later - sooner for sooner, later in pairwise(stamps))
    at = [sample.at for sample in samples]
    spent = [sample.cpu_s for sample in samples]
    first, last = np.interp([stamps[drop], stamps[-1]], at, spent)
    server, everything = peaks(inside)
    return Figures(
        seconds_per_round=median(lengths[drop:]),
        cpu_s_per_round=float(last - first) / (len(lengths) - drop),
        peak_server_mb=server,
        peak_all_mb=everything,
        rounds=lengths,
    )


def peaks(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the highest memory of the server's processes together, and of all, in MB of 10^6 bytes."""
    return (
        max((sample.memory[SERVER] for sample in samples), default=0) / 1e6,
        max((sample.memory[SERVER] + sample.memory[SITE] for sample in samples), default=0) / 1e6,
    )


def wait_for(found: Callable[[], bool], *, within_s: float, every_s: float = 0.1) -> bool:
    """Return whether something came true in time."""
    for _ in _until(time.monotonic() + within_s, every_s):
        if found():
            return True
    return found()


def _until(end_at: float, every_s: float) -> Iterator[None]:
    while time.monotonic() < end_at:
        yield
        time.sleep(every_s)
