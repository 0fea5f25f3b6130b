"""Released models of every network as a run writes them, at a size that takes milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np

from fedglioma.case import GENES, Task
from fedglioma.config.run import RunConfig
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.tables import Evaluation, evaluate
from fedglioma.privacy.accounting import Mechanism, Spent
from fedglioma.training.learner import initial_learner
from fedglioma.weights import Layout, pack
from fedglioma_server.card import write_card
from fedglioma_server.records import HeldOutRound, RoundRecord, RunRecord, SiteData, SiteRound
from fedglioma_server.release import write_model

COUNTS = dict.fromkeys(GENES, (7.5, 4.0))
EMPTY = dict.fromkeys(GENES)
CHOSEN = RoundRecord(
    round=2, heldout=HeldOutRound(cases=3, loss=1.0, loss_by_task=EMPTY, auc=EMPTY, accuracy=EMPTY)
)
SMALL: dict[str, dict[str, Any]] = {
    "mdpnet": {"width": 1, "crop": 16},
    "sgpnet": {"width": 1, "crop": 32},
    "resnet50": {"width": 4, "crop": 16},
    "unet": {"width": 2, "crop": 16},
}
"""A network of each kind: markers, markers and outline, MONAI's for markers, MONAI's for outlines."""


def trained_rounds(number: int) -> list[RoundRecord]:
    """Return so many rounds on record, in each of which one hospital took part."""
    sites = {"henan": SiteRound(status="ok")}
    return [CHOSEN.model_copy(update={"round": done + 1, "sites": sites}) for done in range(number)]


def small_settings(model: str = "mdpnet", **others: Any) -> RunConfig:
    """Return a run's settings of a size for tests; each case stays on its own scale."""
    table = {"spacing_mm": 5.5, "rounds": 3, "bias_correction": False, "standardize": "zscore"}
    return RunConfig.model_validate({"model": model, **SMALL[model], **table, **others})


def site_data(**others: Any) -> SiteData:
    """Return a hospital's counts, of which one was too small to tell."""
    table = {
        "cases": 10,
        "labels": dict.fromkeys(GENES, (5, None, 0)),
        "modalities": {"flair+t1ce+t1+t2": 10, "flair": None},
        "masks": 5,
        "small_cell_limit": 5,
    }
    return SiteData.model_validate({**table, **others})


def run_record(settings: RunConfig, **others: Any) -> RunRecord:
    """Return the record of a finished run over two hospitals."""
    table = {
        "run_id": "demo",
        "created": "2026-01-01T00:00:00+00:00",
        "engine": "inline",
        "command": "tests",
        "synthetic": True,
        "versions": {"fedglioma": "9.9"},
        "settings": settings,
        "cohorts": ["a"],
        "data_digest": "0" * 64,
        "parameters": 262_799,
        "payload_bytes": 20,
        "splits": {},
        "sites": {"ningxia": site_data(), "henan": site_data()},
        "class_counts": COUNTS,
    }
    return RunRecord.model_validate({**table, **others})


def evaluation_of(settings: RunConfig, cases: int = 12, site: str = "henan") -> Evaluation:
    """Return a held-out result drawn at random."""
    rng = np.random.default_rng(0)
    outlines = rng.uniform(size=(cases, 4)) if Task.SEGMENTATION in settings.tasks else None
    predictions = Predictions(
        labels=np.tile(np.arange(cases)[:, None] % 2, (1, 3)).astype(np.int64),
        probabilities=rng.uniform(size=(cases, 3)),
        sites=(site,) * cases,
        modalities=("flair",) * cases,
        split=("report",) * cases,
        patients=np.arange(cases),
        genes=settings.genes,
        tumours=outlines,
    )
    return evaluate(predictions, split="report", synthetic=True, resamples=100)


def write_release(
    folder: Path,
    settings: RunConfig,
    record: RunRecord | None = None,
    *,
    spent: tuple[Mechanism, ...] = (),
) -> Path:
    """Write an untrained model's folder as a run does, and return it; ``spent`` of a patient's privacy."""
    learner = initial_learner(settings, COUNTS)
    layout = Layout.of(learner.model, learner.loss, whole=True)
    told = record or run_record(settings)
    lost = Spent(unit="patient", mechanisms=spent) if spent else None
    write_model(folder, told, CHOSEN, pack(learner.model, learner.loss, whole=True), layout, lost)
    write_card(folder, told, CHOSEN, evaluation_of(settings), "Not differentially private.")
    return folder
