"""What differential privacy costs: time and memory of a private step over a plain one and over Opacus'.

    python benchmarks/dp_cost.py
    python benchmarks/dp_cost.py --model sgpnet --crop 64 --steps 9 --json dp_cost.json

Three ways of one training step (forward, backward, Adam) of the same network on the same made-up images:
``plain`` as ``training/fit.py`` has it; ``private`` with clipped gradients and noise as
``training/private.py`` has it; ``hooks``, Opacus' default (GradSampleModule and DPOptimizer). Each way has a
process of its own, whose memory is therefore its own. The processes take turns, one step each, so that what
else the machine does meets all three alike. Seconds are CPU seconds of all cores together, which other work
lengthens little; medians over the steps after one that does not count. Memory is the peak of a step beyond
what was there before it: weights and Adam's state are, gradients are not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedglioma.case import GENES, Task
from fedglioma.config.run import RunConfig
from fedglioma.machine import return_free_memory
from fedglioma.privacy.clipped import ClippedGradients
from fedglioma.privacy.optimizer import PrivateOptimizer
from fedglioma.training.fit import parameter_groups
from fedglioma.training.learner import Learner, Objective, initial_learner

WAYS = ("plain", "private", "hooks")
WIDTHS = {"mdpnet": 16, "sgpnet": 8}
TARGETS = {"time over plain": 1.6, "time over hooks": 0.6, "memory over hooks": 0.8}
CLIP, NOISE = 1.0, 1.0

Step = Callable[[], float]
"""Does one step and returns how many of its CPU seconds went into noise."""


@dataclass(frozen=True)
class Cost:
    """A way's step: CPU seconds, seconds by the clock, MiB beyond what was there, share of the noise."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    noise_share: float


def settings_of(model: str, crop: int, batch: int, width: int) -> RunConfig:
    """Return the settings of a network at a size; task weights are fixed, as a private run needs them."""
    table = {"model": model, "crop": crop, "batch_size": batch, "width": width}
    if model == "mdpnet":
        table["weighting"] = "fixed"
    return RunConfig.from_mapping(table, "dp_cost")


def batch_of(settings: RunConfig) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return made-up images, presence, genotypes and masks, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, 4, settings.crop, settings.crop, settings.crop)
    image = torch.randn(shape, generator=generator)
    genotype = torch.randint(0, 2, (settings.batch_size, len(GENES)), generator=generator)
    mask = (image[:, 0] > 1).to(torch.int8) if Task.SEGMENTATION in settings.tasks else None
    if settings.channels_last:
        image = image.contiguous(memory_format=torch.channels_last_3d)
    return image, torch.ones(shape[:2]), genotype, mask


def stepper(way: str, settings: RunConfig) -> Iterator[float]:
    """Yield once for each step of a way: CPU seconds of its noise."""
    learner = initial_learner(settings, dict.fromkeys(GENES, (1.0, 1.0)))
    if settings.channels_last:
        learner.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    learner.model.train()
    batch = batch_of(settings)
    yield from {"plain": _plain, "private": _private, "hooks": _hooks}[way](learner, settings, batch)


def _adam(learner: Learner, settings: RunConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(learner.model, learner.loss, settings.weight_decay, settings.head_lr)
    return torch.optim.Adam(groups, lr=settings.lr)


def _plain(learner: Learner, settings: RunConfig, batch: Any) -> Iterator[float]:
    objective, optimizer = Objective(learner.model, learner.loss), _adam(learner, settings)
    while True:
        losses, _ = objective(*batch)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield 0.0


def _private(learner: Learner, settings: RunConfig, batch: Any) -> Iterator[float]:
    objective = Objective(learner.model, learner.loss)
    optimizer = PrivateOptimizer(
        _adam(learner, settings),
        noise_multiplier=NOISE,
        clip_norm=CLIP,
        expected_cases=settings.batch_size,
    )
    add_noise, spent = optimizer.add_noise, [0.0]

    def timed() -> None:
        started = time.process_time()
        add_noise()
        spent[0] = time.process_time() - started

    optimizer.add_noise = timed  # type: ignore[method-assign]
    with ClippedGradients(learner.model, clip_norm=CLIP) as clipped:
        while True:
            losses, _ = objective(*batch)
            clipped.backward(losses)
            del losses
            optimizer.step()
            optimizer.zero_grad()
            yield spent[0]


def _hooks(learner: Learner, settings: RunConfig, batch: Any) -> Iterator[float]:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = GradSampleModule(learner.model)
    objective = Objective(model, learner.loss)
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # images have no gradient
    optimizer = DPOptimizer(
        _adam(learner, settings),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=settings.batch_size,
    )
    while True:
        losses, _ = objective(*batch)
        losses.mean().backward()
        del losses
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield 0.0


def _status(name: str) -> float:
    """Return a figure of this process' memory in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) / 2**10


def serve(way: str, settings: RunConfig) -> None:
    """Do one step for each line that comes in, and answer it with what the step cost."""
    steps = stepper(way, settings)
    for _ in sys.stdin:
        return_free_memory()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        cpu, wall = time.process_time(), time.perf_counter()
        noise = next(steps)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps([cpu, wall, _status("VmHWM") - before, noise / cpu]), flush=True)


def measure(model: str, crop: int, batch: int, width: int, steps: int) -> dict[str, Cost]:
    """Return what a step costs in each way; the ways take turns."""
    chosen = ["--model", model, "--crop", str(crop), "--batch", str(batch), "--width", str(width)]
    processes = {
        way: subprocess.Popen(  # noqa: S603 - this file, with arguments made here
            [sys.executable, __file__, "--serve", way, *chosen],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for way in WAYS
    }
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    try:
        for number in range(steps + 1):
            for way, process in processes.items():
                pipe_in, pipe_out = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
                pipe_in.write("step\n")
                pipe_in.flush()
                answer = pipe_out.readline()
                if not answer:
                    raise SystemExit(f"{model} {crop}: {way}: its process ended: see the lines above")
                if number:  # the first one makes Adam's state
                    found[way].append(json.loads(answer))
    finally:
        for process in processes.values():
            process.communicate()
    return {
        way: Cost(*(statistics.median(c) for c in zip(*rows, strict=True))) for way, rows in found.items()
    }


def ratios(costs: dict[str, Cost]) -> dict[str, float]:
    """Return the private way over the others."""
    plain, private, hooks = (costs[way] for way in WAYS)
    return {
        "time over plain": private.cpu_s / plain.cpu_s,
        "memory over plain": private.peak_mib / plain.peak_mib,
        "time over hooks": private.cpu_s / hooks.cpu_s,
        "memory over hooks": private.peak_mib / hooks.peak_mib,
    }


HEAD = (
    "| network | crop | way | CPU s a step | s by the clock | peak MiB of a step | noise "
    "| time over plain | memory over plain |\n|---|---|---|---|---|---|---|---|---|"
)


def lines_of(model: str, crop: int, costs: dict[str, Cost]) -> str:
    """Return a network's lines of the table in Markdown."""
    lines, plain = [], costs["plain"]
    for way, cost in costs.items():
        noise = f"{100 * cost.noise_share:.0f} %" if way == "private" else ""
        lines.append(
            f"| {model} | {crop} | {way} | {cost.cpu_s:.2f} | {cost.wall_s:.2f} | {cost.peak_mib:.0f} "
            f"| {noise} | {cost.cpu_s / plain.cpu_s:.2f} | {cost.peak_mib / plain.peak_mib:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for, print a table, write JSON, and fail where a target is missed at 64."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(WIDTHS), help="may be repeated")
    parser.add_argument("--crop", action="append", type=int, help="may be repeated; default: 32 and 64")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, help="default: the published one")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    models, crops = asked.model or list(WIDTHS), asked.crop or [32, 64]
    if asked.serve:
        serve(asked.serve, settings_of(models[0], crops[0], asked.batch, asked.width or WIDTHS[models[0]]))
        return
    rows: list[dict[str, Any]] = []
    missed: list[str] = []
    print(HEAD, flush=True)
    for model in models:
        for crop in crops:
            costs = measure(model, crop, asked.batch, asked.width or WIDTHS[model], asked.steps)
            print(lines_of(model, crop, costs), flush=True)
            found = ratios(costs)
            rows.append(
                {
                    "model": model,
                    "crop": crop,
                    "batch": asked.batch,
                    "costs": {way: asdict(cost) for way, cost in costs.items()},
                    "private": found,
                }
            )
            if crop == 64:
                missed += [
                    f"{model}: {name} {found[name]:.2f}" for name in TARGETS if found[name] > TARGETS[name]
                ]
    print()
    for row in rows:
        print(f"{row['model']} {row['crop']}: {', '.join(f'{k} {v:.2f}' for k, v in row['private'].items())}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    if missed:
        raise SystemExit(f"above the target: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
