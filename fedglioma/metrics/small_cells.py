"""An evaluation as it may be passed on: no number of few patients, and no figure of them.

The coordinator's held-out patients are some hospital's patients, too. ``metrics.json`` and
``predictions.csv`` have everything and stay at the centre; the report, the model card and a bundle show
``passed_on`` of them. What is few says ``counts.py``.

======================================  ===========================================================
kept back                               where
======================================  ===========================================================
all figures of a marker, who has which  fewer patients than the limit have one of the two statuses, or are
                                        known: of a network that says the same of everybody accuracy and
                                        log loss give their number
all figures of an outline               fewer patients than the limit are outlined
exact numbers of all groups of a table  one of them has fewer patients of a status than the limit:
and their accuracies                    it would follow from the others and the sum
each cell of the WHO table              one of its cells is few
agreement of the WHO table              fewer cases than the limit have one of the classes
======================================  ===========================================================

How many patients a marker was not measured in is no status and is told, as long as some status is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedglioma.case import Gene
from fedglioma.counts import DASH, PASSED_ON, coded, is_few, roughly, shown_cells, without_few
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.genotype import GeneMetrics
from fedglioma.metrics.segmentation import SegmentationMetrics
from fedglioma.metrics.tables import Evaluation, caution_of
from fedglioma.metrics.who import CLASSES, WhoClass, WhoTable

Groups = Mapping[str, Mapping[Gene, GeneMetrics]]

_FIGURES = ("auc", "accuracy", "majority", "gain", "sensitivity", "specificity", "log_loss")
_COUNTING = ("accuracy", "majority", "gain", "log_loss")
_OUTLINES = ("mean_dice", "median_dice", "mean_hd95_mm", "mean_volume_error_ml")


@dataclass(frozen=True)
class Told:
    """A marker's numbers of cases as they may be printed."""

    known: str
    positive: str
    negative: str
    unknown: str


def told(metrics: GeneMetrics) -> Told:
    """Return how many are known, of each status and unknown; exactly, unless they were kept back."""
    if metrics.withheld == "row":
        return Told(roughly(metrics.n), DASH, DASH, DASH)
    known, unknown = f"{metrics.n:,}", f"{metrics.unknown:,}"
    if metrics.withheld:
        return Told(known, DASH, DASH, unknown)
    return Told(known, f"{metrics.positives:,}", f"{metrics.n - metrics.positives:,}", unknown)


def outlined(found: SegmentationMetrics) -> str:
    """Return how many cases somebody outlined, as it may be printed."""
    return roughly(found.n) if found.withheld else f"{found.n - found.no_dice:,}"


def passed_on(evaluation: Evaluation) -> Evaluation:
    """Return what may be printed of an evaluation where others read it; again, nothing more changes."""
    overall = {gene: of_marker(metrics) for gene, metrics in evaluation.overall.items()}
    tumours = None if evaluation.segmentation is None else _of_outlines(evaluation.segmentation)
    caution = None
    if evaluation.caution is not None:
        caution = without_few(caution_of(evaluation.n_cases, overall, tumours) or evaluation.caution)
    return evaluation.model_copy(
        update={
            "overall": overall,
            "caution": caution,
            "by_site": of_groups(evaluation.by_site),
            "by_modalities": of_groups(evaluation.by_modalities),
            "who": None if evaluation.who is None else _of_classes(evaluation.who),
            "segmentation": tumours,
            "segmentation_by_site": _of_outlined_groups(evaluation.segmentation_by_site),
        }
    )


def of_marker(metrics: GeneMetrics) -> GeneMetrics:
    """Return what may be printed of a marker over all patients."""
    if metrics.withheld or not _few_of_a_status(metrics):
        return metrics
    caution = None if metrics.caution is None else without_few(metrics.caution)
    if is_few(metrics.n_patients):
        why = f"fewer than {PASSED_ON} patients with a known status"
        return _without(metrics, _FIGURES, why, caution=caution, withheld="row", **_scrubbed(1))
    why = f"fewer than {PASSED_ON} patients of one status"
    return _without(
        metrics, _FIGURES, why, caution=caution, withheld="statuses", positives=0, class_patients=None
    )


def of_groups(groups: Groups) -> dict[str, dict[Gene, GeneMetrics]]:
    """Return what may be printed of markers by site or by sequences, whose sums stand elsewhere."""
    found = {name: dict(metrics) for name, metrics in groups.items()}
    for gene in Gene:
        rows = {name: metrics[gene] for name, metrics in found.items() if gene in metrics}
        few = [name for name, metrics in rows.items() if _few_of_a_status(metrics)]
        if not few or any(metrics.withheld for metrics in rows.values()):
            continue
        numbers = [metrics.n_patients for metrics in rows.values()]
        codes = coded(numbers) or [PASSED_ON if n >= PASSED_ON else 1 for n in numbers]
        for (name, metrics), code in zip(rows.items(), codes, strict=True):
            found[name][gene] = _of_row(metrics, code)
    return found


def who_cells(who: WhoTable) -> dict[WhoClass, dict[WhoClass, str]]:
    """Return the WHO table's cells as they may be printed; their rows' sums as ``who_totals``.

    Counts of a copy that was passed on are codes already.
    """
    return {
        row: {column: roughly(n) if who.withheld else f"{n:,}" for column, n in cells.items()}
        for row, cells in who.counts.items()
    }


def who_totals(who: WhoTable) -> dict[WhoClass, str]:
    """Return how many cases have each measured class, a dash for all where cells were kept back."""
    totals = [sum(cells.values()) for cells in who.counts.values()]
    texts = [DASH] * len(totals) if who.withheld else shown_cells(totals)
    return dict(zip(who.counts, texts, strict=True))


def _few_of_a_status(metrics: GeneMetrics) -> bool:
    patients = metrics.class_patients or (metrics.n - metrics.positives, metrics.positives)
    return any(is_few(number) for number in (*patients, metrics.n_patients))


def _scrubbed(code: int) -> dict[str, object]:
    return {"n": code, "n_patients": code, "positives": 0, "unknown": 0, "class_patients": None}


def _of_row(metrics: GeneMetrics, code: int) -> GeneMetrics:
    own = of_marker(metrics)
    caution = None if own.caution is None else f"too few patients, or one group has fewer than {PASSED_ON}"
    if own is metrics:
        why = "it would tell how few another group has"
        return _without(metrics, _COUNTING, why, caution=caution, withheld="row", **_scrubbed(code))
    return own.model_copy(update={"caution": caution, "withheld": "row", **_scrubbed(code)})


def _without(metrics: GeneMetrics, names: Iterable[str], why: str, **changes: object) -> GeneMetrics:
    gone: dict[str, object] = {name: Measure(value=None, reason=why) for name in names}
    return metrics.model_copy(update=gone | changes)


def _of_outlines(found: SegmentationMetrics) -> SegmentationMetrics:
    if found.withheld or not is_few(found.n - found.no_dice):
        return found
    why = f"fewer than {PASSED_ON} outlined patients"
    gone = {name: Measure(value=None, reason=why) for name in _OUTLINES}
    return found.model_copy(update=gone | _uncounted(1))


def _uncounted(code: int) -> dict[str, object]:
    return {"n": code, "n_patients": code, "no_dice": 0, "no_hd95": 0, "no_volume": 0, "withheld": True}


def _of_outlined_groups(groups: Mapping[str, SegmentationMetrics]) -> dict[str, SegmentationMetrics]:
    codes = coded([found.n - found.no_dice for found in groups.values()])
    if codes is None or any(found.withheld for found in groups.values()):
        return dict(groups)
    return {
        name: _of_outlines(found).model_copy(update=_uncounted(code))
        for (name, found), code in zip(groups.items(), codes, strict=True)
    }


def _of_classes(who: WhoTable) -> WhoTable:
    cells = [n for row in who.counts.values() for n in row.values()]
    if who.withheld or not any(is_few(n) for n in cells):
        return who
    # One list of all cells: rows and columns both add up to numbers that stand elsewhere.
    codes = coded(cells) or cells
    by_row = iter(codes)
    counts = {row: {column: next(by_row) for column in found} for row, found in who.counts.items()}
    why = f"fewer than {PASSED_ON} cases have one of the classes"
    gone = {}
    if any(is_few(sum(who.counts[known].values())) for known in CLASSES):
        gone = {name: Measure(value=None, reason=why) for name in ("agreement", "majority")}
    return who.model_copy(update={"counts": counts, "withheld": True, **gone})
