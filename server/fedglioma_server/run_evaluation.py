"""The ``evaluate`` command: a released model on a labelled cohort."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedglioma.case import GENE_TITLES
from fedglioma.console import progress
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import merge_cohorts, read_cohort
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.standardize import on_scale
from fedglioma.errors import ConfigError
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.segmentation import SegmentationMetrics
from fedglioma.metrics.small_cells import outlined, told
from fedglioma.metrics.tables import Evaluation, evaluate
from fedglioma.training.released import load_model
from fedglioma_server.card_tables import measure_text
from fedglioma_server.device import usable_device
from fedglioma_server.gather import write_findings
from fedglioma_server.readings import predictions_of
from fedglioma_server.report_figures import roc_figures
from fedglioma_server.simulate import default_threads

SPLIT = "report"
"""All cases of an external cohort are reported on; none chooses anything."""


def evaluate_model(
    model: Path,
    cohorts: Sequence[Path],
    out: Path,
    *,
    cache: Path | None,
    workers: int,
    device: str,
    resamples: int,
) -> tuple[dict[str, Any], str]:
    """Return the evaluation as data and text, and write metrics, predictions and ROC figures to ``out``.

    Raises
    ------
    ConfigError
        No cohort is given, there is no such model folder or device, or ``out`` is a file.
    DataError
        No case can be used.
    ProtocolError
        The model is damaged or not one of fedglioma.
    """
    if not cohorts:
        raise ConfigError("nothing to evaluate on: give --cohort DIR")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder")
    if not model.is_dir():
        raise ConfigError(f"{model}: no such folder; name the model folder of a run")
    place = usable_device(device)
    learner, settings, scale = load_model(model)
    learner.to(place)
    cohort = merge_cohorts([read_cohort(folder) for folder in cohorts])
    with progress("prepare", unit="cases") as shown:
        prepared = prepare_cases(
            cohort.cases,
            PrepareSettings.of(settings),
            Cache((cache or out.parent / "cache").resolve()),
            workers=workers or default_threads(),
            progress=shown,
        )
    cases = on_scale(prepared.cases, scale, workers=workers or default_threads())
    predictions = predictions_of(learner, settings, cases, [SPLIT] * len(cases), place)
    evaluation = evaluate(predictions, split=SPLIT, synthetic=cohort.synthetic, resamples=resamples)
    out.mkdir(parents=True, exist_ok=True)
    predictions.write_csv(out / "predictions.csv")
    evaluation.write(out / "metrics.json")
    write_findings(
        out / "findings.csv",
        [*cohort.exclusions, *prepared.exclusions],
        [*cohort.warnings, *prepared.warnings],
    )
    _draw(evaluation, predictions, out)
    data = {"folder": str(out), "evaluation": evaluation.model_dump(mode="json")}
    return data, evaluation_text(evaluation) + f"\nwritten to {out}"


def evaluation_text(evaluation: Evaluation) -> str:
    """Return the overall figures for reading."""
    lines = ["SYNTHETIC DATA: made-up patients, nothing here is clinical evidence"] * evaluation.synthetic
    lines += [f"{evaluation.n_cases} cases", *overall_lines(evaluation)]
    return "\n".join([*lines, "research use only, not a medical device"])


def overall_lines(evaluation: Evaluation) -> list[str]:
    """Return a line per gene, the majority class beside each accuracy, and the caution if there is one."""
    lines = []
    for gene, found in evaluation.overall.items():
        baseline, known = measure_text(found.majority, interval=False), told(found).known
        lines.append(
            f"  {GENE_TITLES[gene]:<7} AUC {measure_text(found.auc):<18} "
            f"accuracy {measure_text(found.accuracy):<18} (majority class {baseline}; {known} known)"
        )
    if evaluation.segmentation is not None:
        lines.append(tumour_line(evaluation.segmentation))
    return lines if evaluation.caution is None else [*lines, evaluation.caution]


def tumour_line(found: SegmentationMetrics) -> str:
    """Return one line on how well tumours were outlined."""
    dice, distance = measure_text(found.mean_dice), measure_text(found.mean_hd95_mm)
    return f"  {'Tumour':<7} Dice {dice:<17} HD95 {distance} mm ({outlined(found)} outlined)"


def _draw(evaluation: Evaluation, predictions: Predictions, out: Path) -> None:
    stamp = "SYNTHETIC DATA" if evaluation.synthetic else ""
    for drawing in roc_figures(evaluation.overall, predictions, SPLIT, stamp).drawings:
        (out / f"{drawing.key}.svg").write_text(drawing.svg, encoding="utf-8")
