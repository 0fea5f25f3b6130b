"""A round's training in several processes of this computer, started by ``torchrun`` and watched to their end.

The processes find each other by files in a folder of their own and talk over the loopback interface:
``torchrun`` would by default listen on every interface, for anybody, and hospitals open no port. Whatever
ends first, the client, ``torchrun`` or one of the processes, the others follow within seconds and the
folder, which names patients, is removed.
"""

import fcntl
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

import torch
from pydantic import ValidationError

from fedglioma.case import Gene
from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, DataError, FedGliomaError, ProtocolError
from fedglioma.machine import usable_cores
from fedglioma.tensorfile import read_safetensors, write_safetensors
from fedglioma.training.fit import FitSummary
from fedglioma.training.learner import Learner
from fedglioma.training.local import LocalWork
from fedglioma.training.parallel import (
    ALIVE,
    LAUNCHER,
    LOCK,
    REQUEST,
    START,
    SUMMARY,
    TRAINED,
    Job,
    Trouble,
    is_free,
    load_state,
    require_divisible,
    state_of,
)

logger = logging.getLogger(__name__)

FOLDER = "jobs"
"""Where rounds in progress lie, in the site's ``state``."""
_LOG = "log"
_STOP_S = 5.0
_GONE_S = 10.0
_POLL_S = 0.05
_SIGNAL = re.compile(r"Signal \d+ \((SIG\w+)\)")
"""In torchrun's last words, which end with the first cause."""
_SAID: Mapping[str, type[FedGliomaError]] = {"ConfigError": ConfigError, "DataError": DataError}
"""Errors that keep their class; of the others some would be told to the server."""


def train_in_processes(
    learner: Learner,
    work: LocalWork,
    config: SiteConfig,
    class_counts: Mapping[Gene, tuple[float, float]],
    *,
    processes: int,
    limit_s: float,
) -> FitSummary:
    """Train a learner for a round as ``train_locally`` does, with each batch divided among processes.

    The learner stays on the CPU and holds the result. ``load_s`` is the first process's; ``train_s`` is all
    the rest, the processes' start of some seconds included.

    Raises
    ------
    ConfigError
        The network cannot be trained so, or as ``train_locally``.
    DataError
        As ``train_locally``.
    FedGliomaError
        Training diverged, a process died, or it took longer than ``limit_s``.
    """
    kind: Literal["cpu", "cuda"] = "cuda" if config.device == "cuda" else "cpu"
    require_divisible(learner, torch.device(kind))
    job = Job(
        settings=work.settings,
        site=work.site,
        round=work.round,
        proximal_mu=work.proximal_mu,
        class_counts=dict(class_counts),
        cases=tuple(work.cases),
        device=kind,
        threads=max(1, (config.threads or usable_cores()) // processes),
        limit_s=max(limit_s, 1.0),
    )
    started = time.perf_counter()
    with _folder(config.state / FOLDER) as folder:
        (folder / REQUEST).write_text(job.model_dump_json(), encoding="utf-8")
        write_safetensors(folder / START, state_of(learner), {})
        _run(folder, processes, job)
        try:
            tensors, told = read_safetensors(folder / TRAINED)
            summary = SUMMARY.validate_json(told.get("summary", ""))
            load_state(learner, tensors)
        except (ProtocolError, ValidationError):
            raise FedGliomaError(
                f"training in {processes} processes left no result; is the disk of {config.state} full?"
            ) from None
    summary.train_s = time.perf_counter() - started - summary.load_s
    return summary


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """Give a folder for this user alone, locked while it is in use; nothing of it is left."""
    place.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    folder = Path(tempfile.mkdtemp(prefix="round-", dir=place))
    try:
        (folder / ALIVE).touch()
        with (folder / LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        # The lock is free now: a process that outlived torchrun sees it and ends.
        with suppress(FileNotFoundError):
            _wait_until_gone(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove what a client that was killed left, unless another one is at work in it."""
    for folder in place.glob("round-*"):
        with suppress(OSError), (folder / LOCK).open("rb") as lock:
            if is_free(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _wait_until_gone(folder: Path) -> None:
    end = time.monotonic() + _GONE_S
    with (folder / ALIVE).open("rb") as alive:
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(_POLL_S)
    logger.warning("a training process does not end; look for fedglioma.training.parallel")


def _run(folder: Path, processes: int, job: Job) -> None:
    """Run the processes to their end.

    Raises
    ------
    FedGliomaError
        They did not all end well, or not in time.
    """
    with (folder / _LOG).open("wb") as log:
        launcher = _start(folder, processes, job, log)
        (folder / LAUNCHER).write_text(str(launcher.pid), encoding="ascii")
        try:
            code = launcher.wait(job.limit_s)
        except subprocess.TimeoutExpired:
            raise FedGliomaError(
                f"training in {processes} processes took longer than the {job.limit_s:.0f} s that were "
                "left of the round"
            ) from None
        finally:
            _stop(launcher)
    if code != 0:
        raise _reason(folder, processes)


def _start(folder: Path, processes: int, job: Job, log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    # Files instead of --standalone, whose store listens on every interface and unpickles what it is sent.
    command += ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder}/rendezvous"]
    command += ["--rdzv-id=round", "--local-addr=127.0.0.1", "--monitor-interval=0.1", "--max-restarts=0"]
    command += [f"--log-dir={folder}/logs", "-m", "fedglioma.training.parallel", str(folder)]
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    environment = {
        "OMP_NUM_THREADS": str(job.threads),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": f"={loopback}",
    }
    # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
    return subprocess.Popen(  # noqa: S603 (our own module)
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _stop(launcher: subprocess.Popen[bytes]) -> None:
    """End ``torchrun``, which ends its processes."""
    if launcher.poll() is not None:
        return
    os.killpg(launcher.pid, signal.SIGTERM)
    try:
        launcher.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def _reason(folder: Path, processes: int) -> FedGliomaError:
    """Return why the processes failed, in one line: the first cause, not what followed from it."""
    log = (folder / _LOG).read_text(encoding="utf-8", errors="replace")
    logger.debug("training in %d processes failed:\n%s", processes, log)
    told = []
    for path in sorted(folder.glob("trouble-*.json")):
        with suppress(ValidationError):  # ended while it was writing
            told.append(Trouble.model_validate_json(path.read_text(encoding="utf-8")))
    for trouble in told:
        if trouble.kind == "said":
            return _SAID.get(trouble.error, FedGliomaError)(trouble.message)
    for trouble in told:
        if trouble.kind == "own":
            return FedGliomaError(f"training in {processes} processes failed: {trouble.message}")
    signals = _SIGNAL.findall(log)
    how = f"killed by {signals[-1]}" if signals else "it ended by itself"
    if signals and signals[-1] == "SIGKILL":
        how += ", out of memory?"
    return FedGliomaError(f"training in {processes} processes failed: one of them died ({how})")
