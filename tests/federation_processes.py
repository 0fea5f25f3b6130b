"""Federations of real processes on loopback: one server and its hospitals, each with its own log.

Everything lies in a temporary folder, every wait has a limit, and whatever happens every process that
was started here is ended by its own number; what a failed wait raises has the ends of all logs in it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedglioma.errors import FedGliomaError
from fedglioma.nodekey import read_public_key
from fedglioma.seeds import derive_seed
from fedglioma_server.handle import ask
from fedglioma_server.records import RoundRecord
from fedglioma_server.runfolder import RunFolder
from tests.cli_fixture import call, meddled, plain_environment
from tests.ports import free_port

SITES = ("henan", "ningxia", "zhengzhou")
ROUNDS = 3
RUN: dict[str, Any] = {
    **{"rounds": ROUNDS, "width": 1, "crop": 16, "spacing_mm": 8, "batch_size": 2, "bootstrap": 100},
    **{"quorum": 2, "round_timeout_s": 600, "bias_correction": False},
    "payload": "float32",  # members that a test plays send weights as they are
}
PATIENCE_S = 300.0
"""Far more than anything here takes on a quiet machine, so that only what hangs fails."""
STEP_S = 0.05
_TAIL = 2500


@dataclass(frozen=True)
class Ground:
    """What all federations of a test session share: cohorts, prepared images, keys and kits."""

    folder: Path

    @property
    def consortium(self) -> Path:
        return self.folder / "consortium"


def lay_ground(folder: Path) -> Ground:
    """Make a cohort for each hospital and for the centre, and a consortium with a kit for each hospital."""
    size = ("--size", "16")
    assert (
        call("synthesize", folder / "sites", "--patients", "18", "--by-site", *size, "--seed", "3").exit_code
        == 0
    )
    assert call("synthesize", folder / "centre", "--patients", "10", *size, "--seed", "5").exit_code == 0
    names = [word for site in SITES for word in ("--site", site)]
    words = ("--out", folder / "consortium", "--host", "127.0.0.1", "--port", "1", *names)
    assert call("provision", *words).exit_code == 0
    return Ground(folder)


@dataclass
class Running:
    """A process of ours and what it said."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    began: float = field(default_factory=time.monotonic)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        return self.popen.poll() is not None

    def children(self) -> list[int]:
        """Return the processes that this one started and that still live: a site's node."""
        path = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        with suppress(OSError):  # it has ended, perhaps this very moment
            return [int(word) for word in path.read_text().split()]
        return []

    def kill(self) -> None:
        """End it at once, with its children."""
        children = self.children()
        for pid in (self.popen.pid, *children):
            _kill(pid)
        self.popen.wait(PATIENCE_S)
        for pid in children:
            _gone(pid)

    def kill_node(self) -> None:
        """End a site's node at once; its supervisor lives on."""
        (node,) = self.children()
        _kill(node)

    def end(self) -> None:
        """End it in order, or at once if it does not."""
        if not self.ended():
            self.popen.terminate()
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _gone(pid: int) -> None:
    end = time.monotonic() + PATIENCE_S
    with suppress(OSError):  # it is gone, perhaps this very moment
        while ") Z " not in Path(f"/proc/{pid}/stat").read_text() and time.monotonic() < end:
            time.sleep(STEP_S)


class Federation:
    """A server and its hospitals in a folder of their own.

    Parameters
    ----------
    ground : Ground
        Cohorts, keys and kits; the keys are copied, the images are not.
    folder : Path
        Where this federation lives.
    run : dict
        Settings of the run that differ from ``RUN``.
    server : dict
        Other settings of the server that differ.
    """

    def __init__(
        self, ground: Ground, folder: Path, *, run: dict[str, Any] | None = None, **server: Any
    ) -> None:
        self.folder = folder
        self.ground = ground
        self.consortium = folder / "consortium"
        shutil.copytree(ground.consortium, self.consortium)
        self.port = free_port()
        self.processes: list[Running] = []
        self.run = RunFolder(self.consortium / "runs" / "federation")
        table = {
            **{"address": "127.0.0.1", "port": self.port, "threads": 1, "join_timeout_s": 600},
            **{"expected": list(SITES), "cohorts": [str(ground.folder / "centre")]},
            **{"cache": str(ground.folder / "cache"), "out": "runs/federation"},
            **{"certificate": "server/server.pem", "key": "server/server.key", "ca": "ca/ca.pem"},
            "sites": "sites",
            **server,
            "run": RUN | (run or {}),
        }
        self.settings = self.consortium / "server.yaml"
        self.settings.write_text(yaml.safe_dump(table), encoding="utf-8")
        for site in SITES:
            self.set_site(site)

    def kit(self, site: str) -> Path:
        """Return the folder of a hospital's settings."""
        return self.consortium / "kits" / site

    def set_site(self, site: str, **changes: Any) -> Path:
        """Write a hospital's settings, and return where they are."""
        table = {
            **{"site": site, "data": str(self.ground.folder / "sites" / site), "threads": 1},
            **{"cache": str(self.ground.folder / "cache"), "small_cell_limit": 1},
            **{"server": f"127.0.0.1:{self.port}", "ca": "ca.pem", "key": "node.key", "state": "state"},
            **changes,
        }
        path = self.kit(site) / f"{site}.yaml"
        path.write_text(yaml.safe_dump(table), encoding="utf-8")
        return path

    def node(self, site: str) -> int:
        """Return Flower's number of a hospital, which follows from its key."""
        return derive_seed("node", read_public_key(self.consortium / "sites" / f"{site}.pub").hex())

    def serve(self, *options: str, meddle: str = "", command: list[str] | None = None) -> Running:
        """Start the server."""
        words = [_script("fedglioma-server"), "start", "--config", str(self.settings), *options]
        return self._start("server", command or words, meddle)

    def join(self, site: str, *, meddle: str = "", once: bool = True, folder: Path | None = None) -> Running:
        """Start a hospital's client."""
        words = [_script("fedglioma-client"), "--site", site, "--config-dir", str(folder or self.kit(site))]
        return self._start(site, words + (["--once"] if once else []), meddle)

    def join_all(self) -> dict[str, Running]:
        """Start all hospitals' clients."""
        return {site: self.join(site) for site in SITES}

    def signals(self, name: str) -> Path:
        """Return the folder in which a meddled process and the test talk."""
        folder = self.folder / "signals" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def at(self, name: str, instant: str) -> Callable[[], bool]:
        """Return whether a meddled process has come to an instant."""
        return (self.signals(name) / instant).exists

    def release(self, name: str) -> None:
        """Let a meddled process go on, and all that follow under its name."""
        (self.signals(name) / "go").touch()

    def status(self) -> dict[str, Any]:
        """Return what the running server tells of itself; nothing where it does not answer."""
        for _ in range(6):
            with suppress(FedGliomaError):  # it is there and too busy
                return ask(self.run, "GET", "status") or {}
        return {}

    def online(self, *sites: str) -> Callable[[], bool]:
        """Return whether the server counts all these sites as connected."""
        return lambda: all(self.status().get("sites", {}).get(site, {}).get("online") for site in sites)

    def complete(self, number: int) -> Callable[[], bool]:
        """Return whether a round is on record."""
        return lambda: any(line.round == number for line in self.rounds())

    def rounds(self) -> list[RoundRecord]:
        """Return the rounds on record."""
        return self.run.rounds() if self.run.rounds_file.exists() else []

    def digests(self) -> dict[int, str | None]:
        """Return the digest of the weights after each round."""
        return {line.round: line.weights_digest for line in self.rounds()}

    def audit(self, event: str | None = None, **facts: Any) -> list[dict[str, Any]]:
        """Return the data of the server's audit log, of one kind of event and with these facts."""
        path = self.run.path / "audit.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            line["data"]
            for line in lines
            if event in (None, line["event"]) and facts.items() <= line["data"].items()
        ]

    def until(self, happened: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> float:
        """Wait until something is so, and return how many seconds it took; a server that failed ends it."""

        def hopeless() -> bool:
            servers = [one for one in self.processes if one.name == "server"]
            return bool(servers) and (servers[-1].popen.poll() or 0) > 0

        return self._wait(happened, what, limit_s, hopeless)

    def ends(self, process: Running, code: int, limit_s: float = PATIENCE_S) -> float:
        """Wait until a process ends by itself, with this exit code, and return the seconds it took."""
        took = self._wait(process.ended, f"{process.name} ends", limit_s)
        assert process.popen.returncode == code, f"{process.name}: {process.popen.returncode}\n{self.said()}"
        return took

    def _wait(
        self,
        happened: Callable[[], bool],
        what: str,
        limit_s: float,
        hopeless: Callable[[], bool] = lambda: False,
    ) -> float:
        began = time.monotonic()
        while not happened():
            assert not hopeless(), f"the server failed before: {what}\n{self.said()}"
            assert time.monotonic() - began < limit_s, f"not in {limit_s:g} s: {what}\n{self.said()}"
            time.sleep(STEP_S)
        return time.monotonic() - began

    def said(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"--- {one.name}\n{one.said()[-_TAIL:]}" for one in self.processes)

    def close(self) -> None:
        """End everything that was started."""
        for process in self.processes:
            process.end()

    def _start(self, name: str, command: list[str], meddle: str) -> Running:
        path = self.folder / f"{len(self.processes)}-{name}.log"
        environment = plain_environment() | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        if meddle:
            environment = meddled(environment, meddle, self.signals(name))
        with path.open("wb") as out:
            popen = subprocess.Popen(  # noqa: S603 - our own words
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
            )
        running = Running(name, popen, path)
        self.processes.append(running)
        return running


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@contextmanager
def federation(ground: Ground, folder: Path, **settings: Any) -> Iterator[Federation]:
    """Give a federation, and end all its processes when the block does."""
    made = Federation(ground, folder, **settings)
    try:
        yield made
    finally:
        made.close()
