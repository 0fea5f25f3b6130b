"""Counts that may leave a site: small cells are suppressed, totals are coarse.

A cell of 1 to ``limit - 1`` cases is published as None, larger ones rounded to the nearest multiple of the
limit, zero as zero; a total is rounded up. Exact cells would add up to the exact number of cases, and a
suppressed cell of another table would follow by subtraction. A limit of 1 changes nothing.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from fedglioma.case import GENES, TASKS, UNKNOWN, Case, Frozen, Gene, Task, subset_name

Cells = tuple[int | None, int | None, int | None]
"""Wild-type or intact, mutant or codeleted, unknown; None where suppressed."""


class SiteCounts(Frozen):
    """What a site publishes of its training cases."""

    cases: int
    labels: dict[Gene, Cells]
    modalities: dict[str, int | None]
    masks: int | None
    weights: dict[str, float]
    limit: int


def suppress(cell: int, limit: int) -> int | None:
    """Return the count to the nearest multiple of the limit, or None where it is small but not zero."""
    return None if 0 < cell < limit else (2 * cell + limit) // (2 * limit) * limit


def round_up(total: int, limit: int) -> int:
    """Return the total rounded up to a multiple of the limit."""
    return -(-total // limit) * limit


def estimate(cell: int | None, limit: int) -> float:
    """Return the count, or the middle of what a suppressed cell can be."""
    return limit / 2 if cell is None else float(cell)


def task_weights(labels: Mapping[Gene, Cells], masks: int | None, limit: int) -> dict[str, float]:
    """Return each task's weight: of its published cells, a suppressed one half the limit."""
    genes = {
        gene.value: estimate(labels[gene][0], limit) + estimate(labels[gene][1], limit) for gene in GENES
    }
    return genes | {Task.SEGMENTATION.value: estimate(masks, limit)}


def has_target(case: Case, tasks: Collection[Task]) -> bool:
    """Whether a case has anything that a network of these tasks can be trained on."""
    outlined = Task.SEGMENTATION in tasks and case.mask is not None
    return outlined or any(case.genotype.label(gene) != UNKNOWN for gene in GENES if Task(gene) in tasks)


def count_cases(cases: Sequence[Case], limit: int, tasks: Collection[Task] = TASKS) -> SiteCounts:
    """Return a site's publishable counts and the aggregation weights that follow from them alone.

    The trunk's weight is the rounded number of cases that can be trained on; a task's weight follows from
    its published cells.
    """
    labels: dict[Gene, Cells] = {}
    trunk = round_up(sum(has_target(case, tasks) for case in cases), limit)
    masks = suppress(sum(case.mask is not None for case in cases), limit)
    for gene in GENES:
        tally = Counter(case.genotype.label(gene) for case in cases)
        wild, mutant, unknown = (suppress(tally[label], limit) for label in (0, 1, UNKNOWN))
        labels[gene] = (wild, mutant, unknown)
    subsets = Counter(subset_name(case.present) for case in cases)
    return SiteCounts(
        cases=round_up(len(cases), limit),
        labels=labels,
        modalities={name: suppress(count, limit) for name, count in sorted(subsets.items())},
        masks=masks,
        weights={"trunk": float(trunk)} | task_weights(labels, masks, limit),
        limit=limit,
    )


def global_counts(sites: Sequence[tuple[dict[Gene, Cells], int]]) -> dict[Gene, tuple[float, float]]:
    """Return class counts over all sites, suppressed cells estimated; given each site's cells and limit."""
    totals = {}
    for gene in GENES:
        wild = sum(estimate(labels[gene][0], limit) for labels, limit in sites)
        mutant = sum(estimate(labels[gene][1], limit) for labels, limit in sites)
        totals[gene] = (wild, mutant)
    return totals
