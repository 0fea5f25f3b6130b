"""What does privacy cost, and what does it buy? Epsilon against accuracy and membership attacks.

    python benchmarks/privacy_utility.py [--patients 400] [--epsilons 1 3 8] [--seeds 1 2 3]
        [--out docs/attacks.md]

One synthetic cohort, divided into halves patient by patient, by each seed anew. A network is trained on one
half for each epsilon and without privacy, all arms with the same steps, batches and learning rate, and with
equal class counts, because true ones would say something of the patients. The other half gives the held-out
AUC and the attacks' non-members. Shadow models are trained the same way as the network that they stand for.
SYNTHETIC DATA: the figures say what the machinery does, and nothing about patients.
"""

import argparse
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedglioma.console import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from page import fill  # noqa: E402
from scipy.special import stdtrit  # noqa: E402

from fedglioma.attack.bounds import Bound  # noqa: E402
from fedglioma.attack.likelihood import likelihood_ratio  # noqa: E402
from fedglioma.attack.membership import attacked_set, familiarity  # noqa: E402
from fedglioma.attack.result import AttackResult, attack_result  # noqa: E402
from fedglioma.attack.shadows import Train, shadow_models  # noqa: E402
from fedglioma.case import GENE_TITLES, GENES, Gene, Task  # noqa: E402
from fedglioma.config.privacy import PrivacyTerms  # noqa: E402
from fedglioma.config.run import RunConfig  # noqa: E402
from fedglioma.data.cache import Cache  # noqa: E402
from fedglioma.data.cohort import read_cohort  # noqa: E402
from fedglioma.data.prepare import PrepareSettings, prepare_cases  # noqa: E402
from fedglioma.data.prepared import PreparedCase  # noqa: E402
from fedglioma.data.synthetic_cohort import synthesize  # noqa: E402
from fedglioma.metrics.genotype import gene_metrics  # noqa: E402
from fedglioma.training.learner import EQUAL_COUNTS, Learner, initial_learner, parameter_count  # noqa: E402
from fedglioma.training.local import LocalWork, train_locally  # noqa: E402
from fedglioma_server.readings import predictions_of  # noqa: E402
from fedglioma_server.simulate import default_threads  # noqa: E402

FIELD_OF_VIEW_MM = 176.0
COARSEST_MM = 8.0


@dataclass
class Arm:
    """What one epsilon, or None for no privacy, came to: a value per seed."""

    epsilon: float | None
    noise: float | None = None
    over_gradient: float | None = None
    """How many times longer a step's noise is than its gradient can be."""
    auc: dict[Gene, list[float]] = field(default_factory=lambda: {gene: [] for gene in GENES})
    attacks: dict[str, list[AttackResult]] = field(default_factory=dict)


def settings_of(asked: argparse.Namespace) -> RunConfig:
    """Return the settings of all arms: one round of as many epochs as were asked for."""
    spacing = min(FIELD_OF_VIEW_MM / asked.size, COARSEST_MM)
    own = {"targets": "both"} if asked.model == "sgpnet" else {"weighting": "fixed"}
    return RunConfig.model_validate(
        {
            "model": asked.model,
            "preset": "recommended",
            "width": asked.width,
            "crop": round(FIELD_OF_VIEW_MM / spacing),
            "spacing_mm": spacing,
            "rounds": 1,
            "local_epochs": asked.epochs,
            "batch_size": asked.batch_size,
            "lr": asked.lr,
            "standardize": "zscore",
            "bias_correction": False,
            "channels_last": False,
            "inference": "centre",
            "precision": "float32",
            **own,
        }
    )


def terms_of(asked: argparse.Namespace, epsilon: float, members: int) -> PrivacyTerms:
    """Return terms that spend an epsilon over the whole training."""
    from fedglioma.privacy.accounting import noise_for

    rate = min(1.0, asked.batch_size / members)
    steps = math.ceil(asked.epochs * members / asked.batch_size)
    return PrivacyTerms(
        noise_multiplier=noise_for(epsilon, asked.delta, rate, steps, asked.accountant),
        clip_norm=asked.clip_norm,
        sampling_rate=rate,
        delta=asked.delta,
        accountant=asked.accountant,
        steps_per_round=steps,
        rounds=1,
    )


def trainer(settings: RunConfig, terms: PrivacyTerms | None, device: torch.device) -> Train:
    """Return what trains a network on cases, privately where there are terms."""

    def train(cases: Sequence[PreparedCase], seed: int) -> Learner:
        own = settings.model_copy(update={"seed": seed})
        learner = initial_learner(own, EQUAL_COUNTS).to(device)
        work = LocalWork(own, cases, "central", 1)
        if terms is None:
            train_locally(learner, work, device)
        else:
            from fedglioma.training.private import train_privately

            train_privately(learner, work, terms, device, patients=float(len(cases)))
        return learner

    return train


def measure(
    arm: Arm,
    train: Train,
    settings: RunConfig,
    halves: tuple[Sequence[PreparedCase], Sequence[PreparedCase]],
    asked: argparse.Namespace,
    seed: int,
    folder: Path,
) -> None:
    """Train one network on the first half, and enter its AUC on the second and the attacks on both."""
    members, others = halves
    everyone, device = [*members, *others], torch.device(asked.device)
    learner = train(members, seed)
    read = predictions_of(learner, settings, others, ["report"] * len(others), device)
    for column, gene in enumerate(GENES):
        if Task(gene) in settings.tasks:
            found = gene_metrics(read.labels[:, column], read.probabilities[:, column], resamples=0).auc.value
            arm.auc[gene] += [] if found is None else [found]
    dataset = attacked_set(everyone, settings)
    own = familiarity(learner, dataset, device)
    scores = {"loss threshold": -own.losses}
    if asked.shadows:
        shadows = shadow_models(
            everyone,
            [f"{item.case.site}/{item.case.patient}" for item in everyone],
            train,
            lambda shadow: familiarity(shadow, dataset, device).confidences,
            shadows=asked.shadows,
            seed=seed,
            folder=folder,
            about={"epsilon": arm.epsilon, "settings": settings.model_dump(mode="json")},
        )
        scores["likelihood ratio"] = likelihood_ratio(own.confidences, shadows.said, shadows.trained_on)
    bound = None if arm.epsilon is None else Bound.of(arm.epsilon, asked.delta)
    for name, values in scores.items():
        parts = values[: len(members)], values[len(members) :]
        arm.attacks.setdefault(name, []).append(attack_result(name, *parts, bound=bound, seed=seed))


def mean_text(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the mean over seeds with Student's 95 % interval."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return form(mean)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{form(mean)} [{form(max(mean - half, 0.0))}, {form(min(mean + half, 1.0))}]"


def table(arms: Sequence[Arm], genes: Sequence[Gene], delta: float) -> str:
    """Return a row for each epsilon: noise, AUC of the markers, AUC and TPR of the attacks, the bounds."""
    names = list(dict.fromkeys(name for arm in arms for name in arm.attacks))
    heads = ["epsilon", "noise", "over the gradient", *(f"{GENE_TITLES[gene]} AUC" for gene in genes)]
    heads += [f"{name}: {figure}" for name in names for figure in ("AUC", "TPR at 1 % FPR")]
    heads += ["allowed: AUC, TPR", "seeds above"]
    rows = []
    for arm in arms:
        row = ["none" if arm.epsilon is None else f"{arm.epsilon:g}"]
        row.append("-" if arm.noise is None else f"{arm.noise:.2f}")
        row.append("-" if arm.over_gradient is None else f"{arm.over_gradient:.1f}")
        row += [mean_text(arm.auc[gene], "{:.2f}".format) for gene in genes]
        for name in names:
            found = arm.attacks.get(name, [])
            row.append(mean_text([f.auc.value for f in found if f.auc.value is not None], "{:.2f}".format))
            row.append(mean_text([f.tpr.value for f in found if f.tpr.value is not None], "{:.1%}".format))
        bound = None if arm.epsilon is None else Bound.of(arm.epsilon, delta)
        row.append("-" if bound is None else f"{bound.largest_auc:.2f}, {bound.largest_tpr(0.01):.1%}")
        above = sum(f.verdict == "above" for found in arm.attacks.values() for f in found)
        row.append("-" if bound is None else str(above))
        rows.append(row)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page_text(asked: argparse.Namespace, arms: Sequence[Arm], genes: Sequence[Gene], seeds: int) -> str:
    """Return the table, and before it the settings behind it."""
    told = (
        f"SYNTHETIC DATA. {asked.patients} patients, half of them members, {asked.size}^3 voxels; "
        f"{asked.model} of width {asked.width}, {asked.epochs} epochs, batches of about {asked.batch_size}, "
        f"Adam {asked.lr:g}, clip {asked.clip_norm:g}, delta {asked.delta:g}, accountant {asked.accountant}; "
        f"{asked.shadows} shadow models. Means over {seeds} seeds with Student's 95 % intervals. `over the "
        "gradient`: how many times longer a step's noise is than its gradient can be. `seeds above`: "
        "networks of which an attack found more than is allowed, by the lower end of its interval; a TPR "
        f"moves in steps of one in {asked.patients // 2}."
    )
    return f"{told}\n\n{table(arms, genes, asked.delta)}"


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--size", type=int, default=22, help="edge of the volumes in voxels, of 176 mm")
    parser.add_argument("--overlap", type=float, default=0.0, help="0: every genotype shows its signs")
    parser.add_argument("--model", default="mdpnet", choices=["mdpnet", "sgpnet"])
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--accountant", default="prv", choices=["prv", "rdp"])
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1.0, 3.0, 8.0])
    parser.add_argument("--shadows", type=int, default=8, help="0: the loss threshold alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="folder for cohort and shadows, to continue in later")
    parser.add_argument("--out", type=Path, help="page whose table is replaced, docs/attacks.md")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the table where asked."""
    asked = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings, started = settings_of(asked), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        top = asked.keep or Path(scratch)
        cohort = top / f"cohort-{asked.patients}-{asked.size}-{asked.overlap:g}"
        if not cohort.exists():
            synthesize(cohort, patients=asked.patients, size=asked.size, overlap=asked.overlap)
        cases = prepare_cases(
            read_cohort(cohort).cases,
            PrepareSettings.of(settings),
            Cache(top / "cache"),
            workers=default_threads(),
        ).cases
        arms = [Arm(epsilon) for epsilon in (*asked.epsilons, None)]
        for seed in asked.seeds:
            order = np.random.default_rng([11, seed]).permutation(len(cases))
            members, others = (
                [cases[number] for number in sorted(part)]
                for part in (order[: len(cases) // 2], order[len(cases) // 2 :])
            )
            for arm in arms:
                terms = None if arm.epsilon is None else terms_of(asked, arm.epsilon, len(members))
                if terms is not None:
                    arm.noise = terms.noise_multiplier
                    expected = terms.sampling_rate * len(members)
                    arm.over_gradient = arm.noise * math.sqrt(parameter_count(settings)) / expected
                train = trainer(settings, terms, torch.device(asked.device))
                measure(arm, train, settings, (members, others), asked, seed, top / "shadows")
                logging.info("seed %d, epsilon %s: done", seed, arm.epsilon)
            if asked.out:
                done = asked.seeds.index(seed) + 1
                text = page_text(asked, arms, settings.genes, done)
                fill(asked.out, "table of benchmarks/privacy_utility.py", text)
    print(page_text(asked, arms, settings.genes, len(asked.seeds)))
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
