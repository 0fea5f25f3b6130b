"""What federation costs: R rounds with the inline engine over the same steps in a plain PyTorch loop.

    python benchmarks/round_overhead.py [--rounds 5] [--repeats 3]

Both train MDPNet at test width on the same three synthetic hospitals, batches of the same sizes in the same
number. The plain loop holds all batches in memory and one network and optimizer for everything: forward,
backward, step, nothing else. The federated rounds read the cache from disk, copy weights, build networks and
optimizers per site and round, aggregate, write checkpoints and records. Nothing is held out, so that neither
side evaluates. The two alternate within one process; the ratio of medians is printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from fedglioma.console import prepare_environment

prepare_environment()

import torch  # noqa: E402
from page import fill  # noqa: E402

from fedglioma.config.run import RunConfig  # noqa: E402
from fedglioma.data.dataset import CaseDataset  # noqa: E402
from fedglioma.data.loader import train_batches  # noqa: E402
from fedglioma.data.plan import PLAN_KEY, SimulationPlan  # noqa: E402
from fedglioma.data.synthetic_cohort import synthesize  # noqa: E402
from fedglioma.training.fit import parameter_groups  # noqa: E402
from fedglioma.training.learner import initial_learner  # noqa: E402
from fedglioma_client.app import app as client_app  # noqa: E402
from fedglioma_server import federation, simulate  # noqa: E402
from fedglioma_server.app import make_app  # noqa: E402
from fedglioma_server.gather import SiteDefaults, gather  # noqa: E402
from fedglioma_server.inline import run_inline  # noqa: E402
from fedglioma_server.runfolder import RunFolder  # noqa: E402


def make_plan(folder: Path, settings: RunConfig, patients: int, threads: int) -> SimulationPlan:
    """Return a plan over three synthetic hospitals whose patients all train."""
    cohort = folder / "cohort"
    if not cohort.exists():
        synthesize(cohort, patients=patients, size=settings.crop)
    defaults = SiteDefaults(cache=folder / "cache", threads=threads)
    run = RunFolder(folder / f"run-{time.monotonic_ns()}")
    simulation = simulate.Simulation(
        settings=settings,
        gathering=gather([cohort], None, defaults),
        folder=run,
        cache=folder / "cache",
        threads=threads,
    )
    return simulate.write_plan(simulation, simulate.prepare(simulation))


def federated(plan: SimulationPlan) -> float:
    """Return the seconds of all rounds with the inline engine, release and report left out."""
    conclude = federation.conclude
    federation.conclude = lambda *_args: None
    try:
        started = time.perf_counter()
        run_inline(
            make_app(),
            client_app,
            sites=len(plan.sites),
            run_config={PLAN_KEY: str(simulate.plan_file(RunFolder(plan.run_folder)))},
        )
        return time.perf_counter() - started
    finally:
        federation.conclude = conclude


def plain(plan: SimulationPlan, batches: list[list[tuple[torch.Tensor, ...]]]) -> float:
    """Return the seconds of the same steps in a plain loop over batches in memory."""
    learner = initial_learner(plan.settings, RunFolder(plan.run_folder).read().class_counts)
    optimizer = torch.optim.Adam(
        parameter_groups(learner.model, learner.loss, plan.settings.weight_decay), lr=plan.settings.lr
    )
    learner.model.train()
    started = time.perf_counter()
    for _ in range(plan.settings.rounds):
        for site in batches:
            for image, present, genotype in site:
                optimizer.zero_grad(set_to_none=True)
                learner.loss(learner.model(image, present), genotype).backward()
                optimizer.step()
    return time.perf_counter() - started


def in_memory(plan: SimulationPlan) -> list[list[tuple[torch.Tensor, ...]]]:
    """Return each site's batches of one epoch."""
    settings = plan.settings
    return [
        list(
            train_batches(
                CaseDataset(site.cases, crop=settings.crop, augment=None, seed=0),
                batch_size=settings.batch_size,
                seed=0,
                epoch=0,
            )
        )
        for site in plan.sites
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patients", type=int, default=120)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, help="page whose figures are replaced, docs/overhead.md")
    parser.add_argument("--threads", type=int, default=simulate.default_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    settings = RunConfig(
        width=asked.width,
        crop=32,
        spacing_mm=5.5,
        rounds=asked.rounds,
        batch_size=asked.batch_size,
        lr=1e-3,
        selection=0,
        report=0,
        payload="float32",
    )
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = [], []
        for repeat in range(asked.repeats + 1):
            plan = make_plan(Path(scratch), settings, asked.patients, asked.threads)
            seconds = federated(plan), plain(plan, in_memory(plan))
            if repeat:  # the first pass warms caches and thread pools
                ours.append(seconds[0])
                theirs.append(seconds[1])
        steps = sum(len(site) for site in in_memory(plan)) * asked.rounds
    lines = [f"{asked.rounds} rounds, {len(plan.sites)} sites, {steps} steps, {asked.threads} threads"]
    lines += [
        f"federated   {statistics.median(ours):.2f} s (of {', '.join(f'{s:.2f}' for s in ours)})",
        f"plain loop  {statistics.median(theirs):.2f} s (of {', '.join(f'{s:.2f}' for s in theirs)})",
        f"ratio       {statistics.median(ours) / statistics.median(theirs):.3f}",
    ]
    print("\n".join(lines))
    if asked.out:
        fenced = "\n".join(["```text", *lines, "```"])
        fill(asked.out, "output of benchmarks/round_overhead.py", fenced)


if __name__ == "__main__":
    main()
