"""``evaluate --attack``: what a released model, and one update of its network, give away of the patients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedglioma.attack.bounds import Bound
from fedglioma.attack.likelihood import likelihood_ratio
from fedglioma.attack.membership import attacked_set, by_patient, familiarity
from fedglioma.attack.probe import ProbeResult, probe
from fedglioma.attack.result import AttackResult, attack_result
from fedglioma.attack.shadows import Train, require_shadows, shadow_models
from fedglioma.case import GENES, Gene
from fedglioma.config.run import LEAST_CROP, RunConfig
from fedglioma.console import progress
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.prepare import PrepareSettings
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.standardize import on_scale
from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma.training.learner import EQUAL_COUNTS, Learner, initial_learner
from fedglioma.training.local import LocalWork, train_locally
from fedglioma.training.released import load_model, model_digest, read_config
from fedglioma_server.attack_cases import (
    AttackCases,
    attackable,
    cases_of_cohorts,
    cases_of_run,
    patient_keys,
)
from fedglioma_server.attack_report import (
    AttackReport,
    attack_file,
    attack_text,
    gate,
    serious,
)
from fedglioma_server.device import usable_device
from fedglioma_server.figures import membership_curve
from fedglioma_server.gather import write_findings
from fedglioma_server.records import write_json, write_text
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import default_threads
from fedglioma_server.stated_privacy import StatedPrivacy, stated_privacy

FloatArray = NDArray[np.float64]

PROBED: Final = 8
"""Patients whose updates are looked at; the work grows with the square."""
DRAWN: Final = 2
LARGEST_TO_DRAW: Final = 5_000_000
"""Parameters up to which a processor reconstructs images; a GPU always does."""
SMALLEST_CROP: Final = 16


@dataclass(frozen=True)
class AttackRequest:
    """What was typed. ``rounds`` of a shadow model follow from ``epochs``, or are the released round's."""

    model: Path
    out: Path
    members: tuple[Path, ...] = ()
    cohorts: tuple[Path, ...] = ()
    run: Path | None = None
    shadows: int = 8
    epochs: int | None = None
    inversion: bool = True
    cache: Path | None = None
    workers: int = 0
    device: str = "cpu"
    resamples: int = 1000


def attack_model(request: AttackRequest) -> tuple[dict[str, Any], str, FedGliomaError | None]:
    """Return the attack's record and text, and why the model must not be released, if it must not.

    Writes ``attack.json`` and ``attack.svg`` to ``out``, and the first into the run's folder too, where its
    report and ``bundle`` look for it. What finished shadow models said is kept below it,
    so that the same command continues an attack that was interrupted.

    Raises
    ------
    ConfigError
        An option or a folder is wrong, the model is of another run or was never trained, or somebody is
        member and non-member.
    DataError
        Too few patients can be used.
    ProtocolError
        The model is damaged or not one of fedglioma.
    """
    if request.out.exists() and not request.out.is_dir():
        raise ConfigError(f"--out {request.out}: is a file; name a folder")
    if not request.model.is_dir():
        raise ConfigError(f"{request.model}: no such folder; name the model folder of a run")
    if request.shadows:
        require_shadows(request.shadows)
    elif request.epochs is not None:
        raise ConfigError("--attack-epochs: --shadows 0 trains no model; leave one of the two out")
    place = usable_device(request.device)
    learner, settings, scale = load_model(request.model)
    config = read_config(request.model)
    if int(config["round"]) == 0:
        raise ConfigError(f"{request.model}: round 0 was never trained, so there is nothing to attack")
    run = _run_of(request, str(config["run_id"]))
    stated = stated_privacy(request.model, settings, run)
    workers = request.workers or default_threads()
    cases = attackable(_cases(request, run, settings, workers), settings.tasks)
    cases = replace(
        cases,
        members=on_scale(cases.members, scale, workers=workers),
        nonmembers=on_scale(cases.nonmembers, scale, workers=workers),
    )
    request.out.mkdir(parents=True, exist_ok=True)
    rounds = _shadow_rounds(request, settings, int(config["round"]))
    attacks = _membership(request, learner, settings, cases, rounds, place, stated.bound)
    probes = _probes(learner, settings, cases.members, place, stated) if request.inversion else ()
    report = AttackReport(
        model_digest=model_digest(request.model),
        run_id=str(config["run_id"]),
        round=int(config["round"]),
        synthetic=cases.synthetic,
        members=attacks[0].members,
        nonmembers=attacks[0].nonmembers,
        left_out=cases.left_out,
        privacy=stated.words,
        epsilon=None if stated.bound is None else stated.bound.epsilon,
        delta=None if stated.bound is None else stated.bound.delta,
        shadows=request.shadows,
        shadow_rounds=rounds if request.shadows else 0,
        attacks=attacks,
        probes=probes,
    )
    refusals = (*stated.doubts, *gate(report))
    report = report.model_copy(update={"refusals": refusals, "warnings": tuple(serious(report))})
    _write(request.out, report, cases, stated.bound)
    if run is not None:
        write_json(attack_file(run), report)
    data = {"folder": str(request.out), "attack": report.model_dump(mode="json", exclude=_NO_CURVES)}
    refused = FedGliomaError(f"not to be released: {report.refusals[0]}") if report.refusals else None
    return data, attack_text(report) + f"\nwritten to {request.out}", refused


_NO_CURVES: Any = {"attacks": {"__all__": {"curve"}}}
"""They are for attack.json, not for a screen."""


def shadow_trainer(settings: RunConfig, rounds: int, device: torch.device) -> Train:
    """Return what trains a shadow model: the run's recipe on all cases in one place, round after round."""

    def train(cases: Sequence[PreparedCase], seed: int) -> Learner:
        own = settings.model_copy(update={"seed": seed, "strategy": "fedavg", "compile": False})
        learner = initial_learner(own, own.given_counts or _class_counts(cases)).to(device)
        for number in range(1, rounds + 1):
            train_locally(learner, LocalWork(own, cases, "shadow", number), device)
        return learner

    return train


def _membership(
    request: AttackRequest,
    learner: Learner,
    settings: RunConfig,
    cases: AttackCases,
    rounds: int,
    device: torch.device,
    bound: Bound | None,
) -> tuple[AttackResult, ...]:
    everyone = (*cases.members, *cases.nonmembers)
    patients = [
        *(f"in/{key}" for key in patient_keys(cases.members)),
        *(f"out/{key}" for key in patient_keys(cases.nonmembers)),
    ]
    members = len(set(patient_keys(cases.members)))
    dataset = attacked_set(everyone, settings)
    found = familiarity(learner, dataset, device, batch_size=settings.batch_size)

    def judged(name: str, scores: FloatArray) -> AttackResult:
        return attack_result(
            name,
            scores[:members],
            scores[members:],
            bound=bound,
            resamples=request.resamples,
            seed=settings.seed,
        )

    threshold = judged("loss threshold", by_patient(-found.losses, patients))
    if not request.shadows:
        return (threshold,)
    with progress("shadow models", unit="models") as shown:
        shadows = shadow_models(
            everyone,
            patients,
            shadow_trainer(settings, rounds, device),
            lambda shadow: familiarity(shadow, dataset, device, batch_size=settings.batch_size).confidences,
            shadows=request.shadows,
            seed=settings.seed,
            folder=request.out / "shadows",
            about={"settings": settings.model_dump(mode="json"), "rounds": rounds},
            progress=shown,
        )
    first = [patients.index(name) for name in dict.fromkeys(patients)]
    ratio = likelihood_ratio(
        by_patient(found.confidences, patients),
        by_patient(shadows.said, patients),
        shadows.trained_on[:, first],
    )
    return threshold, judged("likelihood ratio", ratio)


def _probes(
    learner: Learner,
    settings: RunConfig,
    members: Sequence[PreparedCase],
    device: torch.device,
    stated: StatedPrivacy,
) -> tuple[ProbeResult, ...]:
    """Return what first updates give away: as they are and, of a private run, as they leave the site."""
    people: dict[str, PreparedCase] = {}
    for key, item in zip(patient_keys(members), members, strict=True):
        people.setdefault(key, item)
    whole = attacked_set(list(people.values())[:PROBED], settings)
    dataset = CaseDataset(whole.cases, LEAST_CROP.get(settings.model, SMALLEST_CROP), masks=whole.masks)
    start = Learner(initial_learner(settings, EQUAL_COUNTS).model, learner.loss)
    size = sum(weight.numel() for weight in start.model.parameters())
    drawn = DRAWN if device.type != "cpu" or size <= LARGEST_TO_DRAW else 0
    found = []
    for noise in (None, stated.noise) if stated.noise is not None else (None,):
        with progress("gradient inversion", unit="patients") as shown:
            found.append(
                probe(start, dataset, device, drawn=drawn, noise=noise, seed=settings.seed, progress=shown)
            )
    return tuple(found)


def _cases(request: AttackRequest, run: Path | None, settings: RunConfig, workers: int) -> AttackCases:
    if run is not None and not request.members and not request.cohorts:
        return cases_of_run(run)
    cache = (request.cache or request.out.parent / "cache").resolve()
    return cases_of_cohorts(request.members, request.cohorts, PrepareSettings.of(settings), cache, workers)


def _run_of(request: AttackRequest, run_id: str) -> Path | None:
    """Return the run folder that was named, else that in which the model lies, if it lies in one."""
    if request.run is None:
        around = RunFolder(request.model.resolve().parent)
        return around.path if around.exists() and around.read().run_id == run_id else None
    folder = RunFolder(request.run)
    if not folder.exists():
        raise ConfigError(f"--run {request.run}: no such run folder")
    if folder.read().run_id != run_id:
        raise ConfigError(
            f"--run {request.run}: the model is of run {run_id}, this is {folder.read().run_id}"
        )
    return request.run


def _shadow_rounds(request: AttackRequest, settings: RunConfig, released: int) -> int:
    if request.epochs is None:
        return released
    return max(1, -(-request.epochs // settings.local_epochs))


def _class_counts(cases: Sequence[PreparedCase]) -> dict[Gene, tuple[float, float]]:
    labels = {gene: [item.case.genotype.label(gene) for item in cases] for gene in GENES}
    return {gene: (float(found.count(0)), float(found.count(1))) for gene, found in labels.items()}


def _write(out: Path, report: AttackReport, cases: AttackCases, bound: Bound | None) -> None:
    write_json(out / "attack.json", report)
    if cases.exclusions or cases.warnings:
        write_findings(out / "findings.csv", list(cases.exclusions), list(cases.warnings))
    svg = membership_curve(
        [(attack.name, attack.curve) for attack in report.attacks],
        allowed=None if bound is None else bound.largest_tpr,
        title="Who was trained on?",
        subtitle="no bound" if bound is None else f"epsilon {bound.epsilon:g}, delta {bound.delta:g}",
        least=1 / (2 * max(report.members, report.nonmembers)),
        stamp="SYNTHETIC DATA" if report.synthetic else "",
    )
    write_text(out / "attack.svg", svg)
