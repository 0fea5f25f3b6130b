"""What a training step costs: each way of running a network beside float32 as it comes.

    python benchmarks/step.py --model mdpnet --crop 128 --batch 2 --device cuda
    python benchmarks/step.py --model sgpnet --crop 64

Prints, per way of running it, the median seconds of a step (forward, backward, Adam) over several steps after
two that do not count, the ratio to the baseline of the same process, the peak memory, and the losses of the
same steps from the same weights on the same made-up images, so that a way that is fast and wrong shows. On a
processor the seconds are those of all its cores together (CPU seconds), which other work does not lengthen.
The floor is what the arithmetic alone would take at the speed of the largest matrix product that this
machine manages in the same run, in that type of numbers.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedglioma.case import GENES, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import Sample
from fedglioma.machine import return_free_memory
from fedglioma.training.fit import fit_epoch, parameter_groups
from fedglioma.training.learner import Objective, initial_learner
from fedglioma.training.precision import Precision
from fedglioma.training.speed import tuned

WARM_UP = 2


@dataclass(frozen=True)
class Way:
    """One way of running a network."""

    name: str
    preset: str = "recommended"
    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False
    checkpointing: bool = False


WAYS = {
    way.name: way
    for way in (
        Way("reference, float32", preset="reference"),
        Way("float32"),
        Way("float32, channels last", channels_last=True),
        Way("bfloat16, channels last", precision="bfloat16", channels_last=True),
        Way("bfloat16, channels last, compiled", precision="bfloat16", channels_last=True, compiled=True),
        Way("float32, channels last, compiled", channels_last=True, compiled=True),
        Way("float32, recomputed", checkpointing=True),
    )
}


def batches(settings: RunConfig, count: int) -> Iterator[Sample]:
    """Yield the same made-up batches every time."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, 4, settings.crop, settings.crop, settings.crop)
    for _ in range(count):
        image = torch.randn(shape, generator=generator)
        genotype = torch.randint(0, 2, (settings.batch_size, len(GENES)), generator=generator)
        mask = None
        if Task.SEGMENTATION in settings.tasks:
            mask = (image[:, 0] > 1).to(torch.int8)
        yield Sample(image, torch.ones(shape[:2]), genotype, mask)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Fill in the GiB that were in use at most: of the GPU's allocator, or of the whole process."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        return_free_memory()
        Path("/proc/self/clear_refs").write_text("5")
    yield found
    if device.type == "cuda":
        found["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        found["gib"] = int(line.split()[1]) / 2**20


def measure(
    way: Way, settings: RunConfig, device: torch.device, steps: int
) -> dict[str, float | list[float]]:
    """Return seconds per step, peak memory and the losses of the steps."""
    settings = settings.model_copy(update={"preset": way.preset})
    learner = initial_learner(settings, dict.fromkeys(GENES, (1.0, 1.0))).to(device)
    objective = tuned(
        Objective(learner.model, learner.loss),
        channels_last=way.channels_last,
        checkpointing=way.checkpointing,
        compiled=way.compiled,
    )
    groups = parameter_groups(learner.model, learner.loss, settings.weight_decay, settings.head_lr)
    optimizer = torch.optim.Adam(groups, lr=settings.lr)
    precision = Precision.of(way.precision, device)  # type: ignore[arg-type]
    seconds, losses = [], []
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    torch.manual_seed(0)
    with peak_memory(device) as peak:
        for batch in batches(settings, WARM_UP + steps):
            started = clock()
            summary = fit_epoch(
                objective,
                learner.tasks,
                optimizer,
                [batch],
                precision=precision,
                channels_last=way.channels_last,
            )
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(clock() - started)
            losses.append(summary.loss or 0.0)
    return {"seconds": statistics.median(seconds[WARM_UP:]), "gib": peak["gib"], "losses": losses}


def operations(settings: RunConfig) -> float:
    """Return the floating-point operations of a step's forward and backward pass."""
    with torch.device("meta"):
        learner = initial_learner(settings, dict.fromkeys(GENES, (1.0, 1.0)))
        shape = (settings.batch_size, 4, settings.crop, settings.crop, settings.crop)
        image, present = torch.zeros(shape), torch.ones(shape[:2])
    with FlopCounterMode(display=False) as counter:
        outputs = learner.model(image, present)
        torch.stack([value.float().sum() for value in outputs.values()]).sum().backward()
    return float(counter.get_total_flops())


def speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of the fastest of some matrix products in a type of numbers."""
    edge = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(4):
        started = clock()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    return 2 * edge**3 / best


def main() -> None:
    """Measure the ways that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mdpnet", choices=["mdpnet", "sgpnet"])
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="may be repeated; default: all")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    table = {"model": asked.model, "crop": asked.crop, "batch_size": asked.batch}
    if asked.width:
        table["width"] = asked.width
    settings = RunConfig.from_mapping(table, "step")
    chosen = [WAYS[name] for name in asked.way or WAYS]
    if asked.model == "sgpnet":
        chosen = [way for way in chosen if way.preset == "recommended"]
    if device.type == "cpu":  # a processor's short numbers give wrong gradients (training/precision.py)
        chosen = [way for way in chosen if way.precision == "float32"]
    work = operations(settings)
    print(
        f"{asked.model}, {asked.batch} x 4 x {asked.crop}^3, {work / 1e9:.1f} G operations a step, {device}"
    )
    print("| way | s a step | times faster | peak GiB | floor s | loss of the first and last step |")
    print("|---|---|---|---|---|---|")
    baseline = None
    for way in chosen:
        found = measure(way, settings, device, asked.steps)
        seconds, losses = float(found["seconds"]), found["losses"]  # type: ignore[arg-type]
        baseline = baseline or seconds
        floor = work / speed(device, Precision.of(way.precision, device).dtype)  # type: ignore[arg-type]
        print(
            f"| {way.name} | {seconds:.3f} | {baseline / seconds:.2f} | {found['gib']:.2f} | {floor:.3f} "
            f"| {losses[0]:.4f}, {losses[-1]:.4f} |",  # type: ignore[index]
            flush=True,
        )


if __name__ == "__main__":
    main()
