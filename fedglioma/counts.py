"""Counts that may leave a site: small cells are suppressed, totals are coarse.

A cell of 1 to ``limit - 1`` cases is published as None, larger ones rounded to the nearest multiple of the
limit, zero as zero; a total is rounded up. Exact cells would add up to the exact number of cases, and a
suppressed cell of another table would follow by subtraction. A limit of 1 changes nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from fedglioma.case import GENES, UNKNOWN, Case, Frozen, Gene, subset_name

Cells = tuple[int | None, int | None, int | None]
"""Wild-type or intact, mutant or codeleted, unknown; None where suppressed."""


class SiteCounts(Frozen):
    """What a site publishes of its training cases."""

    cases: int
    labels: dict[Gene, Cells]
    modalities: dict[str, int | None]
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


def gene_weights(labels: Mapping[Gene, Cells], limit: int) -> dict[str, float]:
    """Return each gene's weight: the sum of its two published cells, a suppressed one half the limit."""
    return {gene.value: estimate(labels[gene][0], limit) + estimate(labels[gene][1], limit) for gene in GENES}


def count_cases(cases: Sequence[Case], limit: int) -> SiteCounts:
    """Return a site's publishable counts and the aggregation weights that follow from them alone.

    The trunk's weight is the rounded number of cases with any known label; a gene's weight follows from
    its published cells.
    """
    labels: dict[Gene, Cells] = {}
    trunk = round_up(sum(case.genotype.known for case in cases), limit)
    for gene in GENES:
        tally = Counter(case.genotype.label(gene) for case in cases)
        wild, mutant, unknown = (suppress(tally[label], limit) for label in (0, 1, UNKNOWN))
        labels[gene] = (wild, mutant, unknown)
    subsets = Counter(subset_name(case.present) for case in cases)
    return SiteCounts(
        cases=round_up(len(cases), limit),
        labels=labels,
        modalities={name: suppress(count, limit) for name, count in sorted(subsets.items())},
        weights={"trunk": float(trunk)} | gene_weights(labels, limit),
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
