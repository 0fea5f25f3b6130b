"""Which figures a report has: records to captioned drawings, or a sentence why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedglioma.case import GENE_TITLES, GENES, TASK_TITLES, TASKS, Gene, Task
from fedglioma.metrics.genotype import GeneMetrics, roc_points
from fedglioma.metrics.predictions import Predictions
from fedglioma_server import figures
from fedglioma_server import report_text as words
from fedglioma_server.figures import Curve
from fedglioma_server.records import RoundRecord


@dataclass(frozen=True)
class Drawing:
    """A figure: a key that is also its file's name, its SVG, what is seen on it, what stands below it."""

    key: str
    svg: str
    spoken: str
    caption: str = ""

    @property
    def inline(self) -> str:
        """The SVG as it stands in the page."""
        return figures.embed(self.svg, self.key, self.spoken)


@dataclass(frozen=True)
class Figures:
    """The figures of a section, and a sentence for each that cannot be drawn."""

    drawings: tuple[Drawing, ...] = ()
    missing: tuple[str, ...] = ()


def round_figures(
    rounds: Sequence[RoundRecord], chosen: int | None, stamp: str, *, finished: bool
) -> Figures:
    """Return the curves over the rounds: held-out loss and AUC, training loss per site."""
    trained = [record for record in rounds if record.round]
    if not trained:
        return Figures(missing=("No round is on record yet, so there is no curve.",))
    numbers = [record.round for record in rounds]
    losses = [
        Curve("Mean", [record.heldout.told_loss for record in rounds], style=None),
        *(
            Curve(TASK_TITLES[task], [record.heldout.loss_by_task.get(task) for record in rounds], style)
            for style, task in enumerate(TASKS)
            if task in rounds[0].heldout.loss_by_task
        ),
    ]
    auc = [
        Curve(GENE_TITLES[gene], [record.heldout.auc.get(gene) for record in rounds], style)
        for style, gene in enumerate(GENES)
        if gene in rounds[0].heldout.auc
    ]
    dice = [Curve("Tumour", [record.heldout.dice for record in rounds], style=None)]
    outlines = Task.SEGMENTATION in rounds[0].heldout.loss_by_task
    own = [record.round for record in trained]
    names = sorted({name for record in rounds for name in record.sites})
    sites = [
        Curve(name, [_train_loss(record, name) for record in trained], i) for i, name in enumerate(names)
    ]
    wanted = (
        ("heldout-loss", numbers, losses, "Error on held-out patients", "Loss (lower is better)",
         "Loss of the shared model on the held-out patients that choose it, per task and their mean; "
         "round 0 is before any training."),
        ("heldout-auc", numbers, auc, "Telling patients apart, by round", "AUC (0.5 is guessing)",
         "AUC of the shared model on the same patients; the dotted line is guessing."),
        *((("heldout-dice", numbers, dice, "Finding the tumour, by round", "Dice (1 is perfect)",
            "Mean overlap of the model's and the experts' outlines of the tumour, on the same patients."),
           ) if outlines else ()),
        ("training-loss", own, sites, "Error on the hospitals' own patients", "Training loss",
         "Mean loss of each hospital's own training in every round; a gap where it did not take part."),
    )  # fmt: skip
    drawings, missing = [], []
    for key, x, curves, title, axis, caption in wanted:
        drawn = [curve for curve in curves if any(value is not None for value in curve.values)]
        absent = [curve.label for curve in curves if curve not in drawn]
        if absent:
            missing.append(f"{title}: no value in any round for {words.listing(absent)}.")
        if not drawn:
            continue
        is_auc, is_share = key == "heldout-auc", key in ("heldout-auc", "heldout-dice")
        svg = figures.round_curves(
            x, drawn, title=title, axis=axis, chosen=chosen, stamp=stamp,
            chosen_label=f"chosen: round {chosen}" if finished else f"best so far: round {chosen}",
            chance=0.5 if is_auc else None, span=(-0.02, 1.02) if is_share else None,
        )  # fmt: skip
        drawings.append(Drawing(key, svg, f"{title}. {caption}", caption))
    return Figures(tuple(drawings), tuple(missing))


def _train_loss(record: RoundRecord, name: str) -> float | None:
    site = record.sites.get(name)
    return site.loss if site is not None and site.status == "ok" else None


def roc_figures(
    metrics: Mapping[Gene, GeneMetrics], predictions: Predictions | None, split: str, stamp: str
) -> Figures:
    """Return one ROC curve per marker over the cases of ``split``."""
    if predictions is None:
        return Figures(missing=("The predictions were not saved, so no curve can be drawn.",))
    cases = predictions.select(np.array([name == split for name in predictions.split], dtype=bool))
    drawings, missing = [], []
    for index, gene in enumerate(GENES):
        title = GENE_TITLES[gene]
        measured = metrics.get(gene)
        if measured is None:
            continue
        if measured.withheld:
            missing.append(f"{title}: no curve, {measured.auc.reason or 'too few patients'}.")
            continue
        false_rate, true_rate = roc_points(cases.labels[:, index], cases.probabilities[:, index])
        if not len(false_rate):
            missing.append(f"{title}: no curve, {measured.auc.reason or 'one class only'}.")
            continue
        sensitivity, specificity = measured.sensitivity.value, measured.specificity.value
        point = None if sensitivity is None or specificity is None else (1 - specificity, sensitivity)
        counts = words.class_counts(gene, measured.positives, measured.n)
        auc = f"AUC {words.with_interval(measured.auc)}"
        svg = figures.roc_curve(
            false_rate.tolist(), true_rate.tolist(), title=title, subtitle=f"{auc}  ({counts})",
            threshold_point=point, stamp=stamp,
        )  # fmt: skip
        drawings.append(Drawing(f"roc-{gene.value.replace('_', '-')}", svg, f"{title}: {auc}; {counts}."))
    return Figures(tuple(drawings), tuple(missing))
