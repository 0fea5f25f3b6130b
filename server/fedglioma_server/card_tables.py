"""The model card's tables, as Markdown: sites, sequences, results per marker and of the outline."""

from collections.abc import Iterable, Sequence

from fedglioma.case import CHANNELS, GENE_TITLES, Gene
from fedglioma.counts import shown
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.genotype import GeneMetrics
from fedglioma.metrics.segmentation import SegmentationMetrics
from fedglioma.metrics.small_cells import outlined, told
from fedglioma.metrics.tables import Evaluation
from fedglioma.words import one_line
from fedglioma_server.records import RunRecord, SiteData

NONE = "-"


def measure_text(measure: Measure, *, interval: bool = True) -> str:
    """Return ``0.86 [0.78-0.93]``, or a dash where the measure is undefined."""
    if measure.value is None:
        return NONE
    if not interval or measure.low is None or measure.high is None:
        return f"{measure.value:.2f}"
    return f"{measure.value:.2f} [{measure.low:.2f}-{measure.high:.2f}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [list(heads), ["---"] * len(heads), *([plain(str(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """Return a name from outside as a cell or a sentence can hold it."""
    return one_line(text).replace("|", "/").replace("`", "'").replace("<", "&lt;")


def sites_text(record: RunRecord) -> str:
    """Return who trained on what: cases rounded up, labels suppressed, as the sites told them."""
    if not record.told:
        return "The sites' counts are not on record."
    genes = record.settings.genes
    rows = [
        [name, str(site.cases), *(_labels(site, gene) for gene in genes), _cell(site.masks, site)]
        for name, site in sorted(record.told.items())
    ]
    heads = [
        "site",
        "training cases",
        *(f"{GENE_TITLES[gene]} 0 / 1 / unknown" for gene in genes),
        "outlined",
    ]
    return table(heads, rows)


def sequences_text(record: RunRecord) -> str:
    """Return which sequences the training cases of each site have."""
    if not record.told:
        return "Not on record."
    subsets = sorted(
        {subset for site in record.told.values() for subset in site.modalities},
        key=lambda subset: (-len(subset.split("+")), subset),
    )
    names = sorted(record.told)
    rows = [
        [
            subset,
            *(_cell(record.told[name].modalities.get(subset, 0), record.told[name]) for name in names),
        ]
        for subset in subsets
    ]
    return table(["sequences", *(plain(name) for name in names)], rows)


def never_seen(record: RunRecord) -> list[str]:
    """Return sequences that no site said to have trained without: what their absence does is unknown."""
    if not record.told:
        return []
    missed = {
        modality
        for site in record.told.values()
        for subset, count in site.modalities.items()
        for modality in CHANNELS
        if modality.value not in subset.split("+") and count != 0
    }
    return [modality.value for modality in CHANNELS if modality not in missed]


def results_text(evaluation: Evaluation) -> str:
    """Return per marker AUC and accuracy with intervals, the majority class beside."""
    heads = ["gene", "known", "AUC", "accuracy", "sensitivity", "specificity", "majority class"]
    rows = [
        [
            GENE_TITLES[gene],
            told(found).known,
            measure_text(found.auc),
            measure_text(found.accuracy),
            measure_text(found.sensitivity),
            measure_text(found.specificity),
            measure_text(found.majority, interval=False),
        ]
        for gene, found in evaluation.overall.items()
    ]
    return table(heads, rows)


def groups_text(groups: dict[str, dict[Gene, GeneMetrics]], head: str) -> str:
    """Return each marker's AUC and number of known cases per group."""
    genes = [gene for gene in Gene if any(gene in found for found in groups.values())]
    rows = [
        [name, *(f"{measure_text(found[gene].auc)} ({told(found[gene]).known})" for gene in genes)]
        for name, found in groups.items()
    ]
    return table([head, *(f"{GENE_TITLES[gene]} AUC (known)" for gene in genes)], rows)


def outline_text(evaluation: Evaluation) -> str:
    """Return how well the tumour was outlined, overall and by site."""
    heads = ["cases", "outlined", "mean Dice", "median Dice", "HD95, mm", "without HD95", "volume error, mL"]
    groups = {"all": evaluation.segmentation, **evaluation.segmentation_by_site}
    rows = [[name, *_outline(found)] for name, found in groups.items() if found is not None]
    return table(heads, rows)


def _outline(found: SegmentationMetrics) -> list[object]:
    return [
        outlined(found),
        measure_text(found.mean_dice),
        measure_text(found.median_dice),
        measure_text(found.mean_hd95_mm),
        NONE if found.withheld else shown(found.no_hd95),
        measure_text(found.mean_volume_error_ml),
    ]


def _labels(site: SiteData, gene: Gene) -> str:
    return " / ".join(_cell(count, site) for count in site.labels.get(gene, (0, 0, 0)))


def _cell(count: int | None, site: SiteData) -> str:
    return f"<{site.small_cell_limit}" if count is None else str(count)
