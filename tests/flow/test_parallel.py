"""Training in several processes: torchrun and gloo as they are."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedglioma.config.run import RunConfig
from fedglioma.errors import FedGliomaError
from fedglioma.training.fit import FitSummary
from fedglioma.training.learner import EQUAL_COUNTS, initial_learner, layout_of
from fedglioma.training.local import LocalWork, train_locally
from fedglioma.weights import GROUPS, pack
from fedglioma.wire import TrainRequest
from fedglioma_client.processes import train_in_processes
from fedglioma_client.round import train_round
from fedglioma_client.site import Site
from tests.parallel_fixture import begun, made_up_cases, site_config, work_of

PATIENCE_S = 120.0
"""For a loaded machine to get processes going, or to end them."""
SMALL = {"width": 2, "local_epochs": 2, "batch_size": 2, "rounds": 4, "seed": 3, "payload": "float32"}


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose command line names a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_text(errors="replace")
            if str(folder) in command and int(place.name) != os.getpid():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def trainers_of(folder: Path) -> list[int]:
    """Return the processes that take part in a round by now: those that hold their lock, one for a rank.

    A trainer that starts a program is two processes with that lock for a moment.
    """
    held = dict[str, int]()
    for pid in sorted(processes_of(folder)):
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            settings = dict(
                line.split("=", 1)
                for line in Path(f"/proc/{pid}/environ").read_text().split("\0")
                if "=" in line
            )
        except OSError:
            continue
        if any(link.endswith("/alive") for link in links) and "RANK" in settings:
            held.setdefault(settings["RANK"], pid)
    return list(held.values())


def listened_by(pids: list[int]) -> set[str]:
    """Return the addresses, as the kernel writes them, on which processes listen."""
    sockets = set()
    for pid in pids:
        try:
            sockets |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                addresses.add(columns[1].split(":")[0])
    return addresses


def request_of(settings: RunConfig, mu: float = 0.0) -> TrainRequest:
    layout = layout_of(settings).digest
    return TrainRequest(
        run="r", round=2, settings=settings, proximal_mu=mu, class_counts=EQUAL_COUNTS, layout=layout
    )


def test_a_round_of_two_processes_gives_the_weights_of_one(tmp_path: Path) -> None:
    settings = RunConfig.model_validate(
        SMALL | {"model": "mdpnet", "crop": 16, "accumulate": 2, "strategy": "fedprox"}
    )
    cases = tuple(made_up_cases(tmp_path / "cases", 5))
    learner = initial_learner(settings, EQUAL_COUNTS)
    start = pack(learner.model, learner.loss)
    request = request_of(settings, mu=0.1)
    (told, one) = train_round(request, start, Site(site_config(tmp_path), cases))
    (said, two) = train_round(request, start, Site(site_config(tmp_path, processes=2), cases))
    apart = max(float(np.abs(one[group] - two[group]).max(initial=0)) for group in GROUPS)
    moved = max(float(np.abs(one[group] - start[group]).max(initial=0)) for group in GROUPS)
    assert moved > 1e-4
    assert apart < 1e-5
    assert said.loss == pytest.approx(told.loss, rel=0.02)  # rounded to two digits
    assert (said.steps, said.weights) == (told.steps, told.weights)
    assert not list((tmp_path / "state" / "jobs").iterdir())
    assert not processes_of(tmp_path)


def test_sgpnet_with_some_masks_and_labels_learns_the_same_in_two_processes(tmp_path: Path) -> None:
    settings = RunConfig.model_validate(SMALL | {"model": "sgpnet", "crop": 32, "checkpointing": True})
    work = work_of(made_up_cases(tmp_path / "cases", 5, 34, masks=True), settings)
    alone, together, before = begun(settings), begun(settings), begun(settings)
    one = train_locally(alone, work, torch.device("cpu"))
    two = in_two(together, work, tmp_path)
    assert two.loss_sum == pytest.approx(one.loss_sum, rel=1e-4)
    assert two.task_sums == pytest.approx(one.task_sums, rel=1e-4)
    assert (two.cases, two.steps, two.task_cases) == (one.cases, one.steps, one.task_cases)
    # Adam makes full steps of gradients that are rounding noise, so single weights may differ.
    start, ended, other = (
        torch.cat([parameter.detach().flatten() for parameter in learner.model.parameters()])
        for learner in (before, alone, together)
    )
    assert (other - ended).norm() < 0.05 * (ended - start).norm()


def in_two(learner: object, work: LocalWork, folder: Path, limit_s: float = 300.0) -> FitSummary:
    return train_in_processes(
        learner, work, site_config(folder, 2), EQUAL_COUNTS, processes=2, limit_s=limit_s
    )


def long_work(folder: Path) -> tuple[object, LocalWork]:
    settings = RunConfig.model_validate(SMALL | {"model": "mdpnet", "crop": 16, "local_epochs": 1_000_000})
    return begun(settings), work_of(made_up_cases(folder / "cases", 4), settings)


def kill_once(happened: Callable[[list[int]], bool], folder: Path) -> threading.Thread:
    """Kill, beside a test, one of two processes that train, once something is so of them."""

    def kill() -> None:
        end = time.monotonic() + PATIENCE_S
        while len(trainers := trainers_of(folder)) < 2 or not happened(trainers):
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        os.kill(max(trainers), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer


def test_training_processes_listen_on_loopback_only(tmp_path: Path) -> None:
    # They train until one is killed: a whole round may be over before anybody has looked.
    state, seen = tmp_path / "state", set[str]()

    def all_listen(trainers: list[int]) -> bool:
        seen.update(listened_by(processes_of(state)))
        return all(listened_by([trainer]) for trainer in trainers)

    killer = kill_once(all_listen, state)
    with pytest.raises(FedGliomaError, match="one of them died"):
        in_two(*long_work(tmp_path), tmp_path)
    killer.join()
    assert seen == {"0100007F"}


def test_a_process_that_is_killed_ends_the_round_in_words(tmp_path: Path) -> None:
    kill_once(lambda _trainers: True, tmp_path / "state")
    with pytest.raises(
        FedGliomaError, match=r"one of them died \(killed by SIGKILL, out of memory\?\)$"
    ) as raised:
        in_two(*long_work(tmp_path), tmp_path)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "state" / "jobs").iterdir())
    assert not processes_of(tmp_path)


def test_training_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(FedGliomaError, match="took longer than the 3 s"):
        in_two(*long_work(tmp_path), tmp_path, limit_s=3.0)
    assert not list((tmp_path / "state" / "jobs").iterdir())
    assert not processes_of(tmp_path)


CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.flow.test_parallel import in_two, long_work
folder = Path({folder!r})
in_two(*long_work(folder), folder)
"""


def test_nothing_outlives_a_client_that_is_killed(tmp_path: Path) -> None:
    program = CLIENT.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    client = subprocess.Popen([sys.executable, "-c", program])  # noqa: S603 (our own text)
    try:
        end = time.monotonic() + PATIENCE_S
        while len(trainers := trainers_of(tmp_path / "state")) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(trainers) == 2
    finally:
        client.kill()
        client.wait()
    end = time.monotonic() + PATIENCE_S
    while processes_of(tmp_path / "state") and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes_of(tmp_path / "state")
    assert not list((tmp_path / "state" / "jobs").iterdir())
