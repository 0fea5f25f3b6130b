"""The systems that are compared, each as something that runs a task and answers when its rounds were."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import deployed
import flare
from adding import STAMPS, require_sums, terms
from sampling import SERVER, Figures, Role, Sampler, figures, marked

from fedglioma.training.learner import layout_of
from fedglioma_server.runfolder import RunFolder

HERE = Path(__file__).parent
WIDTHS = range(1, 17)
INLINE, DEPLOYED, SIMULATOR, POC = "ours inline", "ours deployed", "FLARE simulator", "FLARE POC"


@dataclass(frozen=True)
class Task:
    """One measurement: how many sites exchange how much how often, and where they may write."""

    sites: int
    width: int
    rounds: int
    folder: Path

    @property
    def bytes(self) -> int:
        """Bytes of one set of weights."""
        return payload(self.width)


Run = Callable[[Task, Mapping[str, str]], list[float]]
"""Runs a task in processes with this environment; answers the first round's start and each one's end."""


@dataclass(frozen=True)
class System:
    """Something that can be measured."""

    run: Run
    role: Role


@lru_cache
def payload(width: int) -> int:
    """Return the bytes of a network's weights."""
    return layout_of(terms(width, 1)).payload_bytes


def nearest_width(megabytes: float) -> int:
    """Return the width whose weights come nearest to a size."""
    return min(WIDTHS, key=lambda width: abs(payload(width) - megabytes * 1e6))


def run_inline(task: Task, environment: Mapping[str, str]) -> list[float]:
    """Run the inline engine in a process of its own."""
    words = [str(task.folder), "--sites", str(task.sites), "--width", str(task.width)]
    answer = subprocess.run(  # noqa: S603 - this interpreter, a script beside this one
        [sys.executable, str(HERE / "adding.py"), *words, "--rounds", str(task.rounds)],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"inline: {answer.stderr[-1500:]}")
    return [float(stamp) for stamp in json.loads((task.folder / STAMPS).read_text())]


def run_deployed(task: Task, environment: Mapping[str, str]) -> list[float]:
    """Run server and sites as processes of their own, over TLS with node keys."""
    sites = [f"site-{number}" for number in range(1, task.sites + 1)]
    consortium = deployed.provision(task.folder, sites, environment)
    clients = {
        site: [
            sys.executable,
            str(HERE / "adding_site.py"),
            str(consortium / "kits" / site / f"{site}.yaml"),
        ]
        for site in sites
    }
    stamps = deployed.run(task.folder, environment, clients, settings=options_of(task), consortium=consortium)
    require_sums(RunFolder(task.folder / "run"), terms(task.width, task.rounds))
    return stamps


def options_of(task: Task) -> list[str]:
    """Return the task's settings as options of the server's command."""
    return deployed.options_of(terms(task.width, task.rounds).model_dump(mode="json", exclude_defaults=True))


def run_flare(
    run: Callable[..., list[float]], python: str, task: Task, environment: Mapping[str, str]
) -> list[float]:
    """Run one of FLARE's modes."""
    return run(
        python, task.folder, environment, sites=task.sites, numbers=task.bytes // 4, rounds=task.rounds
    )


def systems(flare_python: str | None) -> dict[str, System]:
    """Return what can be measured on this machine."""
    found = {
        INLINE: System(run_inline, lambda _command: SERVER),
        DEPLOYED: System(run_deployed, deployed.role),
    }
    if flare_python is not None:
        found[SIMULATOR] = System(partial(run_flare, flare.run_simulator, flare_python), flare.simulator_role)
        found[POC] = System(partial(run_flare, flare.run_poc, flare_python), flare.poc_role)
    return found


def measure(system: System, task: Task) -> Figures:
    """Return what a system's rounds cost; its processes are ended whatever happens."""
    task.folder.mkdir(parents=True)
    with Sampler(role=system.role) as sampler:
        stamps = system.run(task, marked(sampler.mark))
    shutil.rmtree(task.folder, ignore_errors=True)
    if len(stamps) != task.rounds + 1:
        raise RuntimeError(f"{len(stamps) - 1} rounds of {task.rounds} were seen")
    return replace(figures(sampler.samples, stamps), sampler_share=sampler.share)
