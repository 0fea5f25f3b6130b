"""Whole run folders for the report's tests, written through the models that a real run writes through.

``rich_run`` is a finished synthetic federation, ``poor_run`` a finished one of few real patients in which
much is undefined, ``interrupted_run`` one that stopped on the way.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import CHANNELS, GENES, UNKNOWN, Case, Gene, Genotype, Modality, Outcome
from fedglioma.config.run import RunConfig
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.tables import evaluate
from fedglioma.scale import LandmarkSums, Scale, fit_scale
from fedglioma.survival.analysis import analyse
from fedglioma.survival.table import table_from_cases
from fedglioma_server.privacy import privacy_record
from fedglioma_server.records import (
    DataIssue,
    HeldOutRound,
    RoundRecord,
    RunRecord,
    ScaleDoubt,
    SiteData,
    SiteRound,
    SplitCount,
    write_json,
    write_rounds,
)

IntArray = NDArray[np.int64]

PAYLOAD = 34_567_890
ALL = "flair+t1ce+t1+t2"
NO_T2 = "flair+t1ce+t1"


def rich_run(
    folder: Path, *, sites: Sequence[str] = ("henan", "ningxia", "zhengzhou"), survival: bool = True
) -> Path:
    """Write a finished run: three synthetic hospitals, twenty rounds, every figure defined."""
    random = np.random.default_rng(7)
    settings = RunConfig(rounds=20, crop=64, bootstrap=100)
    record = _record(
        "demo-20261121",
        settings,
        synthetic=True,
        cohorts=["synthetic-240"],
        command="fedglioma-server simulate --synthetic 240 --rounds 20 --crop 64 --out runs/demo",
        splits={
            site: SplitCount(train=60 + 9 * i, selection=18 + i, report=44 + 3 * i)
            for i, site in enumerate(sites)
        },
        sites={
            site: _site_data(60 + 9 * i, {ALL: 48 + 9 * i, NO_T2: 8, "flair+t1ce": None}, suppressed=i == 2)
            for i, site in enumerate(sites)
        },
        class_counts={Gene.IDH: (74.0, 133.0), Gene.ATRX: (112.0, 71.0), Gene.CODEL: (140.5, 52.0)},
        suppressed_cells=4,
        **_scaled(CHANNELS, len(sites)),
        issues=[
            DataIssue(
                site=sites[0],
                kind="excluded",
                code="truncated",
                cases=2,
                explanation="a volume file is cut off",
            ),
            DataIssue(
                site=sites[1],
                kind="warning",
                code="contradiction",
                cases=1,
                explanation="IDH wild-type with 1p/19q codeletion: check the record",
            ),
        ],
        status="completed",
        finished="2026-11-21T05:12:44+00:00",
    )
    rounds = [_round(n, settings, sites, random, 1.9 * np.exp(-n / 6) + 0.6) for n in range(21)]
    _write(folder, record, _select(rounds))
    split = ["selection"] * 57 + ["report"] * 141
    labels = _genotypes(len(split), random)
    labels[::9, 1] = UNKNOWN
    where = [sites[i % len(sites)] for i in range(len(split))]
    subset = [ALL if i % 4 else NO_T2 if i % 8 else "flair+t1ce" for i in range(len(split))]
    predictions = _predictions(labels, where, subset, split, random, skill=1.5)
    _evaluate(folder, predictions, settings, synthetic=True)
    if survival:
        _survive(folder, predictions, random, synthetic=True, grades=(2, 3, 4))
    return folder


def poor_run(folder: Path) -> Path:
    """Write a finished run of seven real hospitals and few patients: most of it cannot be told."""
    random = np.random.default_rng(3)
    settings = RunConfig(rounds=3, crop=64, bootstrap=100, strategy="fedprox")
    names = ("brats2021", "casewestern", "casewestern2", "henryford", "jefferson", "ucsf", "upenn")
    train = (4, 8, 2, 11, 4, 2, 1)
    record = _record(
        "tcga-few",
        settings,
        synthetic=False,
        cohorts=["lgg_hospitals_nc", "glioma"],
        command="fedglioma-server simulate --cohort lgg_hospitals_nc --cohort glioma --rounds 3",
        splits={
            site: SplitCount(train=n, selection=i % 3, report=(n + 2) // 3)
            for i, (site, n) in enumerate(zip(names, train, strict=True))
        },
        sites={
            site: _site_data(n, {ALL if n < 3 else NO_T2: n if n >= 5 else None}, few=True)
            for site, n in zip(names, train, strict=True)
        }
        | {"casewestern": _site_data(8, {NO_T2: 8}, few=True, epsilon=2.0)},
        **_scaled(CHANNELS[:3], 2),
        scale_doubts=[
            ScaleDoubt(kind="left_out", sites=["henryford"], modality=Modality.T1CE, distance=31.4),
            ScaleDoubt(
                kind="apart", sites=["casewestern", "jefferson"], modality=Modality.FLAIR, distance=22
            ),
        ],
        class_counts={Gene.IDH: (17.5, 20.0), Gene.ATRX: (14.0, 15.0), Gene.CODEL: (20.5, 7.5)},
        suppressed_cells=31,
        issues=[
            DataIssue(
                site="henryford",
                kind="excluded",
                code="constant",
                cases=1,
                explanation="a volume holds one value only",
            ),
            DataIssue(
                site="jefferson",
                kind="excluded",
                code="label",
                cases=1,
                explanation="idh is 2: a label is 0, 1 or empty",
            ),
            DataIssue(
                site="ucsf",
                kind="warning",
                code="no_outcome",
                cases=2,
                explanation="no follow-up: not part of the survival curves",
            ),
        ],
        status="completed",
        finished="2026-11-21T06:40:02+00:00",
    )
    rounds = [_round(n, settings, names, random, 1.4 - 0.1 * n, blind=True) for n in range(4)]
    rounds = [_with_trouble(r) for r in rounds]
    _write(folder, record, _select(rounds))
    labels = np.array(
        [
            [0, -1, -1], [1, 1, 0], [1, 0, 1], [0, 0, 0],
            [1, 1, 0], [1, 1, 0], [1, 0, 0], [-1, -1, -1], [0, -1, -1],
            [1, -1, 0], [1, 1, 0], [1, 0, 0], [0, -1, -1],
        ]
    )  # fmt: skip
    where = [names[i] for i in (0, 3, 3, 4, 1, 3, 1, 0, 5, 2, 3, 1, 6)]
    subset = [ALL if site in ("brats2021", "ucsf", "upenn") else NO_T2 for site in where]
    split = ["selection"] * 4 + ["report"] * 9
    predictions = _predictions(labels, where, subset, split, random, skill=0.1)
    _evaluate(folder, predictions, settings, synthetic=False)
    _survive(folder, predictions, random, synthetic=False, grades=(2, 4))
    return folder


def interrupted_run(folder: Path) -> Path:
    """Write a run that was stopped after round 2 of 10: no evaluation, no survival, no privacy record."""
    random = np.random.default_rng(5)
    settings = RunConfig(rounds=10, crop=48)
    names = ("henan", "ningxia")
    record = _record(
        "stopped",
        settings,
        synthetic=False,
        cohorts=["north"],
        command="fedglioma-server simulate --cohort north --rounds 10",
        splits={name: SplitCount(train=40, selection=10, report=15) for name in names},
        sites={name: _site_data(40, {ALL: 40}) for name in names},
        status="interrupted",
    )
    rounds = [_round(n, settings, names, random, 1.5 - 0.2 * n) for n in range(3)]
    write_json(folder / "run.json", record)
    write_rounds(folder / "rounds.jsonl", _select(rounds))
    return folder


def _record(run_id: str, settings: RunConfig, **fields: object) -> RunRecord:
    return RunRecord.model_validate(
        {
            "run_id": run_id,
            "created": "2026-11-21T04:46:08+00:00",
            "engine": "inline",
            "versions": {"fedglioma": "0.1.0", "flwr": "1.41.2", "torch": "2.13.0+cpu", "python": "3.11.2"},
            "settings": settings.model_dump(),
            "data_digest": "9f2c" * 16,
            "parameters": 8_641_417,
            "payload_bytes": PAYLOAD,
            **fields,
        }
    )


def _scaled(modalities: Sequence[Modality], sites: int) -> dict[str, object]:
    """Return a record's fields of a scale that so many sites decided for some modalities."""
    told = LandmarkSums(cases=10, sums=(551.0, 732.0, 903.0))
    scale: Scale = fit_scale([dict.fromkeys(modalities, told)] * sites)
    return {"scale": scale, "scale_id": scale.id}


def _site_data(
    train: int,
    modalities: dict[str, int | None],
    *,
    suppressed: bool = False,
    few: bool = False,
    epsilon: float | None = None,
) -> SiteData:
    third = train // 3
    cells = (third, train - third, None if suppressed else 0)
    shown = tuple(None if few and cell is not None and 0 < cell < 5 else cell for cell in cells)
    return SiteData.model_validate(
        {
            "cases": -(-train // 5) * 5,
            "labels": dict.fromkeys(GENES, shown),
            "modalities": modalities,
            "small_cell_limit": 5,
            "landmark_epsilon": epsilon,
        }
    )


def _round(
    number: int,
    settings: RunConfig,
    sites: Sequence[str],
    random: np.random.Generator,
    level: float,
    *,
    blind: bool = False,
) -> RoundRecord:
    losses = {gene: level * (0.9 + 0.1 * i) + float(random.normal(0, 0.03)) for i, gene in enumerate(GENES)}
    rise = 0.5 + 0.4 * (1 - np.exp(-number / 5))
    auc = {
        gene: float(np.clip(rise - 0.04 * i + random.normal(0, 0.015), 0, 1)) for i, gene in enumerate(GENES)
    }
    trained = {
        site: SiteRound(
            status="ok",
            weights={"trunk": 60.0 + 5 * i, "idh": 55.0 + 5 * i, "atrx": 42.5, "codel_1p19q": 50.0},
            steps=30 + 2 * i,
            loss=level + 0.1 * i + float(random.normal(0, 0.04)),
            loss_by_task=dict.fromkeys(GENES, level),
            seconds={"load": 1.2, "train": 62.5 + 7 * i, "pack": 0.05},
            bytes_down=PAYLOAD + 2_000,
            bytes_up=PAYLOAD + 900,
            update_norm=3.2 - 0.1 * number,
        )
        for i, site in enumerate(sites)
    }
    undefined: dict[Gene, float | None] = dict.fromkeys(GENES)
    return RoundRecord(
        round=number,
        seconds={"evaluate": 8.4, "checkpoint": 0.3}
        if number == 0
        else {"sites": 97.1, "aggregate": 0.2, "evaluate": 8.4, "checkpoint": 0.3},
        sites=trained if number else {},
        heldout=HeldOutRound(
            cases=57,
            loss=sum(losses.values()) / 3,
            loss_by_task={**losses, Gene.CODEL: None} if blind else losses,
            auc={**undefined, Gene.IDH: 0.5 + 0.1 * number} if blind else auc,
            accuracy={**undefined, Gene.IDH: 0.6} if blind else dict.fromkeys(GENES, 0.7),
        ),
        log_variances=dict.fromkeys(GENES, 0.1 * number),
    )


def _with_trouble(record: RoundRecord) -> RoundRecord:
    """Return the round with what goes wrong: an idle site, one error, one that did not answer."""
    if not record.round:
        return record
    sites = dict(record.sites)
    sites["upenn"] = SiteRound(status="idle", reason="no labelled training case")
    if record.round == 2:
        sites["henryford"] = SiteRound(
            status="error", reason="the update holds numbers that are not finite", bytes_down=PAYLOAD
        )
    if record.round == 3:
        sites["ucsf"] = SiteRound(
            status="no_reply", reason="no reply within the round's time", bytes_down=PAYLOAD
        )
    return record.model_copy(update={"sites": sites})


def _select(rounds: list[RoundRecord]) -> list[RoundRecord]:
    best = float("inf")
    marked = []
    for record in rounds:
        loss = record.heldout.loss
        better = record.round > 0 and loss is not None and loss < best
        best = loss if better and loss is not None else best
        marked.append(record.model_copy(update={"selected": better}))
    return marked


def _genotypes(n: int, random: np.random.Generator) -> IntArray:
    idh = (random.random(n) < 0.6).astype(np.int64)
    codel = idh * (random.random(n) < 0.4)
    atrx = idh * (1 - codel) * (random.random(n) < 0.75)
    return np.stack([idh, atrx, codel], axis=1).astype(np.int64)


def _predictions(
    labels: IntArray,
    sites: Sequence[str],
    modalities: Sequence[str],
    split: Sequence[str],
    random: np.random.Generator,
    *,
    skill: float,
) -> Predictions:
    truth = np.where(labels == UNKNOWN, 0, 2 * labels - 1)
    logits = skill * truth + random.normal(0, 1.2, labels.shape)
    return Predictions(
        labels=labels,
        probabilities=1 / (1 + np.exp(-logits)),
        sites=tuple(sites),
        modalities=tuple(modalities),
        split=tuple(split),
        patients=np.arange(len(labels), dtype=np.int64),
    )


def _write(folder: Path, record: RunRecord, rounds: list[RoundRecord]) -> None:
    write_json(folder / "run.json", record)
    write_rounds(folder / "rounds.jsonl", rounds)
    write_json(folder / "privacy.json", privacy_record(record))


def _evaluate(folder: Path, predictions: Predictions, settings: RunConfig, *, synthetic: bool) -> None:
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    predictions.write_csv(folder / "evaluation" / "predictions.csv")
    tables = evaluate(predictions, split="report", synthetic=synthetic, resamples=settings.bootstrap, seed=1)
    tables.write(folder / "evaluation" / "metrics.json")


def _survive(
    folder: Path,
    predictions: Predictions,
    random: np.random.Generator,
    *,
    synthetic: bool,
    grades: Sequence[int],
) -> None:
    measured = [_case(i, row, random, grades) for i, row in enumerate(predictions.labels)]
    called = [
        case.model_copy(update={"genotype": _genotype((row >= 0.5).astype(np.int64))})
        for case, row, split in zip(measured, predictions.probabilities, predictions.split, strict=True)
        if split == "report"
    ]
    write_json(
        folder / "survival" / "results.json",
        analyse(table_from_cases(measured, "held-out patients, measured markers"), synthetic=synthetic),
    )
    table = table_from_cases(called, "report split, predicted markers")
    markers = tuple(replace(marker, title=f"{marker.title} (predicted)") for marker in table.markers)
    write_json(
        folder / "survival" / "predicted.json", analyse(replace(table, markers=markers), synthetic=synthetic)
    )


def _case(number: int, labels: IntArray, random: np.random.Generator, grades: Sequence[int]) -> Case:
    grade = int(grades[number % len(grades)])
    scale = 4200 if labels[0] == 1 else 700
    death = random.exponential(scale * (0.5 if grade == 4 else 1.4))
    end = random.uniform(300, 3600)
    return Case(
        patient=f"p{number}",
        site="any",
        volumes={},
        genotype=_genotype(labels),
        grade=grade,
        age=float(round(random.normal(50, 12))),
        outcome=Outcome(os_days=float(round(min(death, end))), os_event=int(death < end)),
    )


def _genotype(labels: IntArray) -> Genotype:
    idh, atrx, codel = (int(label) for label in labels)
    return Genotype(idh=idh, atrx=atrx, codel_1p19q=codel)
