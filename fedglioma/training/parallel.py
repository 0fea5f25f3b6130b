"""Data parallelism in one hospital: what each process of ``torchrun`` does with its part of every batch.

The client writes a folder and starts ``torchrun -m fedglioma.training.parallel FOLDER``:

========================  ============================================================================
file                      content
========================  ============================================================================
``request.json``          a ``Job``: settings, cases, device; names patients, so the folder is private
``start.safetensors``     network and loss as the round begins with them
``lock``                  locked by the client as long as it waits; whoever finds it free ends
``alive``                 locked, shared, by each process as long as it runs
``launcher``              the number of the process that is ``torchrun``
``rendezvous``, ``group`` by which the processes find each other, so that no port is opened for it
``trained.safetensors``   network and loss after the round, and what training did: the first process's
``trouble-<rank>.json``   why a process gave up
========================  ============================================================================

The gradient of a step is the mean over the processes of what ``Share`` scales by their number, which is the
gradient that one process has of the whole batch.
"""

import argparse
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fedglioma.case import Frozen, Gene, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, FedGliomaError, ProtocolError
from fedglioma.seeds import seed_torch
from fedglioma.tensorfile import read_safetensors, write_safetensors
from fedglioma.training.fit import FitSummary
from fedglioma.training.learner import Learner, Objective, build_learner
from fedglioma.training.local import LocalWork, train_locally
from fedglioma.training.part import Part, share_dropout

REQUEST, START, TRAINED = "request.json", "start.safetensors", "trained.safetensors"
LOCK, ALIVE, LAUNCHER, GROUP = "lock", "alive", "launcher", "group"
SUMMARY = TypeAdapter(FitSummary)
NEEDS_CASES = frozenset({"swinunetr"})
"""Networks that cannot take a batch without cases."""
_LOOK_S = 0.5


class Job(Frozen):
    """A round's training, as it is handed to the processes that share it.

    ``device`` is ``cpu``, or ``cuda`` for one GPU per process; ``threads`` are those of each process;
    ``limit_s`` is how long one waits for the others.
    """

    settings: RunConfig
    site: str
    round: int
    proximal_mu: float
    class_counts: dict[Gene, tuple[float, float]]
    cases: tuple[PreparedCase, ...]
    device: Literal["cpu", "cuda"]
    threads: int
    limit_s: float


class Trouble(Frozen):
    """Why a process gave up.

    ``kind`` is ``said`` for an error of ours, by its class's name in ``error``; ``own`` for another one of
    this process; ``lost`` where a process that it waited for had gone first.
    """

    kind: Literal["said", "own", "lost"]
    error: str
    message: str


def useful_processes(settings: RunConfig, cases: int, asked: int) -> int:
    """Return how many of the processes asked for have anything to do: not more than a batch has cases."""
    count = max(1, min(asked, settings.batch_size, cases))
    if settings.model in NEEDS_CASES:
        rest = cases % settings.batch_size
        # A single case left over joins the batch before it.
        count = min(count, rest) if rest > 1 else count
    return count


def require_divisible(learner: Learner, device: torch.device) -> None:
    """Raise ``ConfigError`` where a network cannot train in several processes on a device."""
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in learner.model.modules())
    if normed and device.type != "cuda":
        raise ConfigError(
            "processes: batch normalisation can be shared by processes on GPUs only; set processes to 1, or "
            "ask for preset recommended"
        )


def state_of(learner: Learner) -> dict[str, NDArray[Any]]:
    """Return all that a learner keeps, by name, counters of batch normalisation included."""
    state = Objective(learner.model, learner.loss).state_dict()
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def load_state(learner: Learner, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Put in what ``state_of`` gave.

    Raises
    ------
    ProtocolError
        It is of another network.
    """
    own = state_of(learner)
    if {n: (t.shape, t.dtype) for n, t in tensors.items()} != {n: (t.shape, t.dtype) for n, t in own.items()}:
        raise ProtocolError("processes: the weights in the round's folder are of another network")
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    Objective(learner.model, learner.loss).load_state_dict(state)


def train_part(
    job: Job, start: Mapping[str, NDArray[Any]], part: Part, device: torch.device
) -> tuple[Learner, FitSummary]:
    """Train this process's part of a job within the process group, and return what all have reached.

    Raises
    ------
    FedGliomaError
        As ``train_locally``.
    """
    torch.set_num_threads(job.threads)
    seed_torch(job.settings.seed, "train", job.site, job.round)
    learner = build_learner(job.settings, job.class_counts)
    load_state(learner, start)
    require_divisible(learner, device)
    share_dropout(learner.model, part)
    if part.world > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(learner.model)  # type: ignore[no-untyped-call]
    learner.to(device)

    def wrap(objective: nn.Module) -> nn.Module:
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)

    work = LocalWork(job.settings, job.cases, job.site, job.round, job.proximal_mu)
    summary = train_locally(learner, work, device, share=part, wrap=wrap)
    return learner, summed(summary, learner.tasks, device)


def summed(summary: FitSummary, tasks: tuple[Task, ...], device: torch.device) -> FitSummary:
    """Return what all processes together did; steps and seconds are this process's."""
    own = [float(summary.cases), summary.loss_sum]
    own += [summary.task_sums.get(task, 0.0) for task in tasks]
    own += [float(summary.task_cases.get(task, 0)) for task in tasks]
    total = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    cases, loss, *rest = total.tolist()
    return FitSummary(
        steps=summary.steps,
        cases=round(cases),
        loss_sum=loss,
        task_sums=dict(zip(tasks, rest[: len(tasks)], strict=True)),
        task_cases={task: round(n) for task, n in zip(tasks, rest[len(tasks) :], strict=True)},
        load_s=summary.load_s,
        train_s=summary.train_s,
    )


def main() -> None:
    """Do the part of a job that ``torchrun`` gave this process; exit with 0, or 1 and a ``Trouble``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with (folder / ALIVE).open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)
        threading.Thread(target=_end_with_client, args=(folder,), name="orphan", daemon=True).start()
        try:
            _take_part(folder, rank, world)
        except Exception as error:
            path = folder / f"trouble-{rank}.json"
            path.write_text(trouble_of(error).model_dump_json(), encoding="utf-8")
            # At once: taking the process group down would wait for processes that are gone.
            os._exit(FedGliomaError.exit_code)


def _take_part(folder: Path, rank: int, world: int) -> None:
    job = Job.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))
    start, _ = read_safetensors(folder / START)
    device = torch.device(job.device)
    if job.device == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if job.device == "cuda" else "gloo",
        init_method=(folder.absolute() / GROUP).as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=job.limit_s),
    )
    learner, summary = train_part(job, start, Part(rank, world), device)
    if rank == 0:
        told = {"summary": SUMMARY.dump_json(summary).decode()}
        write_safetensors(folder / TRAINED, state_of(learner), told)
    dist.barrier()
    dist.destroy_process_group()


def trouble_of(error: Exception) -> Trouble:
    """Return an error in one line that names no file; the words of an unknown error could name one."""
    name = type(error).__name__
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, FedGliomaError):
        return Trouble(kind="said", error=name, message=line)
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in line):
        return Trouble(kind="lost", error=name, message=line)
    return Trouble(kind="own", error=name, message=line if isinstance(error, RuntimeError) else name)


def is_free(lock: IO[bytes]) -> bool:
    """Return whether nobody else holds a file's lock; this process then holds it, shared."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_with_client(folder: Path) -> None:
    """End this process and ``torchrun`` once the client is gone, and leave nothing behind."""
    with suppress(FileNotFoundError), (folder / LOCK).open("rb") as lock:
        while not is_free(lock):
            time.sleep(_LOOK_S)
    with suppress(OSError, ValueError):
        launcher = int((folder / LAUNCHER).read_text(encoding="ascii"))
        # While it is this one's parent, nobody else has its number. It would wait long for the folder.
        if os.getppid() == launcher:
            os.kill(launcher, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(FedGliomaError.exit_code)


if __name__ == "__main__":
    main()
