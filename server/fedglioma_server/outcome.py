"""Survival of the coordinator's held-out patients, by measured and by predicted marker."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedglioma.case import GENES, Case, Genotype
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError
from fedglioma.metrics.predictions import Predictions
from fedglioma.survival.analysis import analyse
from fedglioma.survival.table import SurvivalTable, table_from_cases
from fedglioma_server.records import write_json
from fedglioma_server.survival_report import write_survival

PREDICTED = "predicted.json"


def write_outcome(
    folder: Path, cases: Sequence[PreparedCase], predictions: Predictions, *, synthetic: bool
) -> str | None:
    """Write the survival analysis of held-out patients; return why there is none where there is none.

    ``results.json`` divides all held-out patients by their measured markers, ``predicted.json`` those of
    the report split by what the released model says of them. ``cases`` and ``predictions`` are parallel.
    """
    held_out = [item.case for item in cases]
    try:
        measured = table_from_cases(held_out, "held-out patients, measured markers")
        write_survival(analyse(measured, synthetic=synthetic), folder)
        predicted = predicted_table(held_out, predictions)
    except DataError as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "none.json", {"reason": str(error)})
        return str(error)
    write_json(folder / PREDICTED, analyse(predicted, synthetic=synthetic))
    return None


def predicted_table(cases: Sequence[Case], predictions: Predictions) -> SurvivalTable:
    """Return the report split's patients with the model's calls in place of their measured markers."""
    calls = predictions.calls()
    chosen = [
        case.model_copy(
            update={"genotype": Genotype(**{gene.value: int(calls[row, i]) for i, gene in enumerate(GENES)})}
        )
        for row, case in enumerate(cases)
        if predictions.split[row] == "report"
    ]
    table = table_from_cases(chosen, "report split, predicted markers")
    return replace(
        table, markers=tuple(replace(marker, title=f"{marker.title} (predicted)") for marker in table.markers)
    )
