"""What does a smaller payload cost? The same federation with each payload, on synthetic patients.

    python benchmarks/payload.py [--patients 300] [--rounds 8] [--seeds 1 2] [--out docs/payload.md]

One synthetic cohort over three hospitals, as in learning.py. For each seed the run is repeated with each
payload; all else is the same. Measured are the bytes of a round over all sites and both ways; how far
rounding moves the aggregated step, on the exact updates of the float32 run; and the AUC on the reported
patients, with the difference from float32 on the same patients and its interval by resampling patients.
SYNTHETIC DATA: the figures say what rounding does to learning, and nothing about patients.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from fedglioma.console import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
from learning import FIELD_OF_VIEW_MM, auc_of, plan_of  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from page import fill  # noqa: E402
from scipy.stats import rankdata  # noqa: E402

from fedglioma.case import GENE_TITLES, GENES, Gene  # noqa: E402
from fedglioma.config.run import Payload, RunConfig  # noqa: E402
from fedglioma.data.synthetic_cohort import synthesize  # noqa: E402
from fedglioma.metrics.predictions import Predictions, read_csv  # noqa: E402
from fedglioma.payload import update  # noqa: E402
from fedglioma.training.learner import layout_of  # noqa: E402
from fedglioma.weights import GROUPS, FlatArrays  # noqa: E402
from fedglioma_server import conclusion  # noqa: E402
from fedglioma_server.aggregation import Update, combine, weighted_mean  # noqa: E402
from fedglioma_server.checkpoint import Checkpoints  # noqa: E402
from fedglioma_server.runfolder import RunFolder  # noqa: E402
from fedglioma_server.updates import StoredUpdate, round_folder  # noqa: E402

PAYLOADS: tuple[Payload, ...] = get_args(Payload)
RESAMPLES = 2000


@dataclass
class Measured:
    """What was seen of one payload: a number per seed, or per seed and round."""

    bytes_a_round: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    auc: dict[Gene, list[float]] = field(default_factory=lambda: {gene: [] for gene in GENES})
    predictions: list[Predictions] = field(default_factory=list)


def settings_of(asked: argparse.Namespace, seed: int, payload: Payload) -> RunConfig:
    """Return a run's settings."""
    return RunConfig(
        preset="reference",
        width=4,
        crop=asked.size,
        spacing_mm=FIELD_OF_VIEW_MM / asked.size,
        rounds=asked.rounds,
        local_epochs=3,
        batch_size=asked.batch_size,
        lr=asked.lr,
        seed=seed,
        selection=0.15,
        report=0.30,
        payload=payload,
        keep_updates=payload == "float32",
    )


def length(arrays: Mapping[str, NDArray[np.float64]]) -> float:
    """Return the Euclidean length over all groups."""
    return float(np.sqrt(sum(float(array @ array) for array in arrays.values())))


def difference(one: FlatArrays, other: FlatArrays) -> dict[str, NDArray[np.float64]]:
    """Return one less the other, group by group."""
    return {group: one[group].astype(np.float64) - other[group] for group in GROUPS}


def rounding_errors(folder: RunFolder, payload: Payload) -> list[float]:
    """Return per round of a float32 run how far a payload's rounding moves the mean step, relative to it."""
    settings = folder.read().settings
    checkpoints = Checkpoints(folder.checkpoints, layout_of(settings))
    errors = []
    for line in folder.rounds()[1:]:
        sent = checkpoints.load(line.round - 1)
        exact, rounded = [], []
        for name, entry in sorted(line.sites.items()):
            stored = StoredUpdate.open(round_folder(folder.updates, line.round) / f"{name}.safetensors")
            local = {group: stored.arrays[group][:] for group in GROUPS}
            stored.close()
            exact.append(Update(name, entry.weights, "float32", local))
            rounded.append(Update(name, entry.weights, payload, update(payload, local, sent)))
        mean = combine(exact, sent, weighted_mean)
        moved = length(difference(combine(rounded, sent, weighted_mean), mean))
        errors.append(moved / length(difference(mean, sent)))
    return errors


def auc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve by ranks; NaN where only one class is there."""
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def change(ours: list[Predictions], base: list[Predictions], gene: Gene) -> tuple[float, float, float]:
    """Return the mean difference in AUC over the seeds, and its 95 % interval over resampled patients."""
    column, rng = GENES.index(gene), np.random.default_rng(0)
    pairs = []
    for one, other in zip(ours, base, strict=True):
        used = (np.array(one.split) == "report") & (one.labels[:, column] >= 0)
        if not (one.labels == other.labels).all():
            raise SystemExit("the runs held out other patients")
        pairs.append(
            (one.labels[used, column], one.probabilities[used, column], other.probabilities[used, column])
        )
    found = statistics.mean(auc(labels, a) - auc(labels, b) for labels, a, b in pairs)
    draws = []
    for _ in range(RESAMPLES):
        each = []
        for labels, a, b in pairs:
            chosen = rng.integers(0, len(labels), len(labels))
            each.append(auc(labels[chosen], a[chosen]) - auc(labels[chosen], b[chosen]))
        draws.append(statistics.mean(each))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return found, float(low), float(high)


def table(results: Mapping[Payload, Measured]) -> str:
    """Return what was measured as Markdown."""
    lines = [
        "| payload | MB a round | step off by | "
        + " | ".join(f"{GENE_TITLES[gene]} AUC" for gene in GENES)
        + " |",
        "|---|---|---|" + "---|" * len(GENES),
    ]
    base = results["float32"]
    for payload, seen in results.items():
        cells = [
            f"`{payload}`",
            f"{statistics.mean(seen.bytes_a_round) / 1e6:.1f}",
            "0" if max(seen.errors) == 0 else f"{statistics.mean(seen.errors):.2%}",
        ]
        for gene in GENES:
            each = ", ".join(f"{value:.3f}" for value in seen.auc[gene])
            cell = f"{statistics.mean(seen.auc[gene]):.3f} ({each})"
            if payload != "float32":
                found, low, high = change(seen.predictions, base.predictions, gene)
                cell += f"; {found:+.3f} [{low:+.3f}, {high:+.3f}]"
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page_text(asked: argparse.Namespace, results: Mapping[Payload, Measured]) -> str:
    """Return the table, and before it the settings behind it."""
    return (
        f"SYNTHETIC DATA. {asked.patients} patients over three hospitals, {asked.size}^3 voxels, overlap "
        f"{asked.overlap:g}; 55 % train, 15 % choose the round, 30 % are reported. MDPNet, reference preset, "
        f"width 4; {asked.rounds} rounds of 3 epochs, batch {asked.batch_size}, Adam {asked.lr:g}; seeds "
        f"{', '.join(map(str, asked.seeds))}. AUC on the reported patients: mean, each seed, and the mean "
        "difference from float32 on the same patients with its 95 % interval.\n\n" + table(results)
    )


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--size", type=int, default=24, help="edge of the volumes in voxels, of 176 mm")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="page whose table is replaced, docs/payload.md")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    conclusion.write_report = lambda folder: folder
    results: dict[Payload, Measured] = {payload: Measured() for payload in PAYLOADS}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        cohort = Path(scratch) / "cohort"
        synthesize(cohort, patients=asked.patients, size=asked.size, overlap=asked.overlap)
        for seed in asked.seeds:
            exact: RunFolder | None = None
            for payload, seen in results.items():
                folder = RunFolder(Path(scratch) / f"seed-{seed}-{payload}")
                settings = settings_of(asked, seed, payload)
                found = auc_of(plan_of(folder.path, Path(scratch) / "cache", cohort, settings))
                exact = exact or folder
                sites = folder.rounds()[-1].sites.values()
                seen.bytes_a_round.append(sum(site.bytes_down + site.bytes_up for site in sites))
                seen.errors += rounding_errors(exact, payload)
                seen.predictions.append(read_csv(folder.evaluation / "predictions.csv"))
                for gene in GENES:
                    seen.auc[gene].append(found[gene] if found[gene] is not None else float("nan"))
                words = json.dumps({gene.value: value for gene, value in found.items()})
                logging.info("seed %d, %s: %s", seed, payload, words)
    text = page_text(asked, results)
    if asked.out:
        fill(asked.out, "table of benchmarks/payload.py", text)
    print(text)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
