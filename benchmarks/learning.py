"""Does federation learn? Federated against each hospital alone, on synthetic patients.

    python benchmarks/learning.py [--patients 300] [--rounds 8] [--seeds 1 2] [--out docs/learning.md]

One synthetic cohort over three hospitals, each with its scanners, missing sequences and case mix. For each
seed (of weights, split and batches) the shared model is trained over all three, and a local-only model on
each hospital's training patients with the same network, rounds and learning rate. All of a seed's models
choose their round on the same selection patients and are measured on the same reported patients. SYNTHETIC
DATA: the figures say that the machinery learns, and nothing about patients.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

from fedglioma.console import prepare_environment

prepare_environment()

from page import fill  # noqa: E402

from fedglioma.case import GENE_TITLES, GENES, Gene  # noqa: E402
from fedglioma.config.run import RunConfig  # noqa: E402
from fedglioma.data.plan import PLAN_KEY, SimulationPlan  # noqa: E402
from fedglioma.data.synthetic_cohort import synthesize  # noqa: E402
from fedglioma.metrics.tables import Evaluation  # noqa: E402
from fedglioma_client.app import app as client_app  # noqa: E402
from fedglioma_server import conclusion, simulate  # noqa: E402
from fedglioma_server.app import make_app  # noqa: E402
from fedglioma_server.gather import SiteDefaults, gather  # noqa: E402
from fedglioma_server.inline import run_inline  # noqa: E402
from fedglioma_server.records import read_json, write_json, write_text  # noqa: E402
from fedglioma_server.runfolder import RunFolder  # noqa: E402

FIELD_OF_VIEW_MM = 176.0


def settings_of(asked: argparse.Namespace, seed: int) -> RunConfig:
    """Return the run's settings for a seed."""
    return RunConfig(
        preset=asked.preset,
        width=asked.width,
        crop=asked.size,
        spacing_mm=FIELD_OF_VIEW_MM / asked.size,
        rounds=asked.rounds,
        local_epochs=asked.local_epochs,
        batch_size=asked.batch_size,
        lr=asked.lr,
        seed=seed,
        selection=0.15,
        report=0.30,
        payload="float32",
    )


def plan_of(run: Path, cache: Path, cohort: Path, settings: RunConfig) -> SimulationPlan:
    """Return the plan of a federation over a cohort's hospitals, written into the run's folder."""
    threads = simulate.default_threads()
    simulation = simulate.Simulation(
        settings=settings,
        gathering=gather([cohort], None, SiteDefaults(cache=cache, threads=threads)),
        folder=RunFolder(run),
        cache=cache,
        workers=threads,
        threads=threads,
    )
    return simulate.write_plan(simulation, simulate.prepare(simulation))


def local_plan(plan: SimulationPlan, index: int) -> SimulationPlan:
    """Return the plan of one hospital training alone, the held-out patients the same."""
    site = plan.sites[index]
    folder = RunFolder(plan.run_folder.parent / f"local-{site.settings.site}")
    local = plan.model_copy(update={"sites": (site,), "run_folder": folder.path})
    write_json(folder.record_file, RunFolder(plan.run_folder).read())
    write_text(simulate.plan_file(folder), local.model_dump_json())
    return local


def auc_of(plan: SimulationPlan) -> dict[Gene, float | None]:
    """Train a plan to its end and return the reported AUC per gene."""
    folder = RunFolder(plan.run_folder)
    run_config = {PLAN_KEY: str(simulate.plan_file(folder))}
    run_inline(make_app(), client_app, sites=len(plan.sites), run_config=run_config)
    evaluation = read_json(folder.evaluation / "metrics.json", Evaluation)
    return {gene: evaluation.overall[gene].auc.value for gene in GENES}


def table(results: dict[str, dict[Gene, list[float | None]]]) -> str:
    """Return the AUCs as Markdown: a row per model, the mean and each seed."""
    lines = [
        "| model | " + " | ".join(f"{GENE_TITLES[gene]} AUC" for gene in GENES) + " |",
        "|---|" + "---|" * len(GENES),
    ]
    for name, by_gene in results.items():
        cells = []
        for gene in GENES:
            known = [value for value in by_gene[gene] if value is not None]
            each = ", ".join("-" if value is None else f"{value:.2f}" for value in by_gene[gene])
            cells.append(f"{statistics.mean(known):.3f} ({each})" if known else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page_text(
    asked: argparse.Namespace, results: dict[str, dict[Gene, list[float | None]]], seeds: list[int]
) -> str:
    """Return the table, and before it the settings behind it."""
    settings = (
        f"SYNTHETIC DATA. {asked.patients} patients over three hospitals, {asked.size}^3 voxels, "
        f"overlap {asked.overlap:g}; 55 % train, 15 % choose the round, 30 % are reported. "
        f"MDPNet, {asked.preset} preset, width {asked.width}; {asked.rounds} rounds of "
        f"{asked.local_epochs} epochs, batch {asked.batch_size}, Adam {asked.lr:g}. "
        f"AUC on the reported patients: mean over the seeds {', '.join(map(str, seeds))}, and each."
    )
    return f"{settings}\n\n{table(results)}"


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--size", type=int, default=24, help="edge of the volumes in voxels, of 176 mm")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--local-epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--preset", default="reference")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--federated-only", action="store_true", help="leave the local models out, for trying settings"
    )
    parser.add_argument("--out", type=Path, help="page whose table is replaced, docs/learning.md")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    conclusion.write_report = lambda folder: folder
    results: dict[str, dict[Gene, list[float | None]]] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        cohort = Path(scratch) / "cohort"
        synthesize(cohort, patients=asked.patients, size=asked.size, overlap=asked.overlap)
        for seed in asked.seeds:
            run = Path(scratch) / f"seed-{seed}" / "federated"
            plan = plan_of(run, Path(scratch) / "cache", cohort, settings_of(asked, seed))
            plans = {"federated": plan}
            if not asked.federated_only:
                plans |= {f"{s.settings.site} alone": local_plan(plan, i) for i, s in enumerate(plan.sites)}
            for name, each in plans.items():
                found = auc_of(each)
                logging.info(
                    "seed %d, %s: %s", seed, name, json.dumps({g.value: v for g, v in found.items()})
                )
                for gene in GENES:
                    results.setdefault(name, {g: [] for g in GENES})[gene].append(found[gene])
            if asked.out:
                done = asked.seeds[: asked.seeds.index(seed) + 1]
                fill(asked.out, "table of benchmarks/learning.py", page_text(asked, results, done))
    print(page_text(asked, results, asked.seeds))
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
