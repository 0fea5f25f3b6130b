"""Ours deployed on one machine: ``provision``, ``start`` and a process per hospital, TLS and node keys."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import socket
from typing import Any

from sampling import SERVER, SITE, TOOL

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
LOOK_S = 0.005
TIMEOUT_S = 900.0
LAST_S = 60.0


def role(command: str) -> str:
    """Return whose process it is: the server's, a site's, or a tool that ended before the rounds."""
    if "fedglioma-server provision" in command:
        return TOOL
    return SERVER if "fedglioma-server" in command else SITE


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def options_of(settings: Mapping[str, object]) -> list[str]:
    """Return run settings as options of our commands."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def provision(folder: Path, sites: Sequence[str], environment: Mapping[str, str]) -> Path:
    """Make authority, certificate, settings and kits as a consortium would, and return their folder."""
    consortium = folder / "consortium"
    words = ["--out", str(consortium), "--host", HOST, "--port", str(free_port())]
    words += [word for site in sites for word in ("--site", site)]
    answer = subprocess.run(  # noqa: S603 (our own command)
        [str(BIN / "fedglioma-server"), "provision", *words],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"provision: {answer.stderr[-1000:]}")
    return consortium


def run(
    folder: Path,
    environment: Mapping[str, str],
    clients: Mapping[str, Sequence[str]],
    *,
    settings: Sequence[str],
    consortium: Path,
) -> list[float]:
    """Run a deployed federation to its end, and return when round 0 and each round were on disk.

    Parameters
    ----------
    clients : mapping
        Per site the command that joins.
    settings : sequence of str
        Run settings, as options of ``fedglioma-server start``.

    Raises
    ------
    RuntimeError
        The server did not end well, or not in time.
    """
    environment = {**environment, "NO_PROXY": "*", "no_proxy": "*"}
    out = folder / "run"
    server = [str(BIN / "fedglioma-server"), "start", "--config", str(consortium / "server.yaml")]
    server += ["--address", HOST, "--out", str(out), *settings]
    with ExitStack() as logs:
        places = {name: folder / f"{name}.log" for name in ("server", *clients)}
        files = {name: logs.enter_context(place.open("wb")) for name, place in places.items()}
        started = {
            name: subprocess.Popen(  # noqa: S603 (our own commands)
                list(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=files[name],
                stderr=subprocess.STDOUT,
            )
            for name, command in {"server": server, **clients}.items()
        }
        stamps = watch(out / "rounds.jsonl", started["server"])
        if started["server"].returncode != 0:
            told = "\n".join(f"{name}: {place.read_text()[-1500:]}" for name, place in places.items())
            raise RuntimeError(f"deployed: exit code {started['server'].returncode}\n{told}")
        for name in clients:
            try:
                started[name].wait(LAST_S)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"{name}: still there {LAST_S:.0f} s after the server ended") from None
    return stamps


def watch(rounds: Path, server: subprocess.Popen[Any]) -> list[float]:
    """Return when the record of rounds was written, each time, until the server ends."""
    stamps: list[float] = []
    give_up = time.monotonic() + TIMEOUT_S
    while server.poll() is None:
        if time.monotonic() > give_up:
            raise RuntimeError(f"deployed: not finished after {TIMEOUT_S:.0f} s")
        if rounds.exists():
            written = rounds.stat().st_mtime_ns / 1e9
            if not stamps or written > stamps[-1]:
                stamps.append(written)
        time.sleep(LOOK_S)
    return stamps
