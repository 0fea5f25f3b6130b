"""Counts that may leave a site: small cells are suppressed, totals are coarse.

A cell of 1 to ``limit - 1`` cases is published as None, larger ones rounded to the nearest multiple of the
limit, zero as zero; a total is rounded up. Exact cells would add up to the exact number of cases, and a
suppressed cell of another table would follow by subtraction. A limit of 1 changes nothing.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from fedglioma.case import GENES, TASKS, UNKNOWN, Case, Frozen, Gene, Task, subset_name
from fedglioma.config.site import SMALL_CELL_LIMIT

Cells = tuple[int | None, int | None, int | None]
"""Wild-type or intact, mutant or codeleted, unknown; None where suppressed."""

PASSED_ON: Final = SMALL_CELL_LIMIT
"""Patients below which the centre prints neither their number nor a figure of them in what it passes on."""
AT_LEAST: Final = "\N{GREATER-THAN OR EQUAL TO}"
DASH: Final = "\N{EN DASH}"
_IN_WORDS: Final = re.compile(r"(?<![\w.,<-])(?<!grade )(\d+)(?= [a-z])")


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


def is_few(count: int, limit: int = PASSED_ON) -> bool:
    """Whether a number of patients is so small that it may point at one of them."""
    return 0 < count < limit


def shown(count: int, limit: int = PASSED_ON) -> str:
    """Return a number of patients as it may be printed: ``1,204``, ``0``, or ``<5``."""
    return f"<{limit}" if is_few(count, limit) else f"{count:,}"


def roughly(code: int, limit: int = PASSED_ON) -> str:
    """Return what ``coded`` left of a count: ``<5``, at least 5, or a dash."""
    if code < 0:
        return DASH
    return f"<{limit}" if code < limit else f"{AT_LEAST}{limit}"


def coded(cells: Sequence[int], limit: int = PASSED_ON) -> list[int] | None:
    """Return what may be told of cells whose sum is known, for ``roughly``; None where all can be told.

    Where one cell is few, of each cell only on which side of the limit it lies, an empty one counting as
    few: 1 or the limit. At the two sums at which that could still give a few one away, nothing: -1.
    """
    if not any(is_few(cell, limit) for cell in cells):
        return None
    number, total = len(cells), sum(cells)
    if total in ((limit - 1) * number, limit * (number - 1) + 1):
        return [-1] * number
    return [1 if cell < limit else limit for cell in cells]


def shown_cells(cells: Sequence[int], limit: int = PASSED_ON) -> list[str]:
    """Return the cells of a table as they may be printed beside their sum, which is not itself few."""
    codes = coded(cells, limit)
    if codes is None:
        return [f"{cell:,}" for cell in cells]
    return [roughly(code, limit) for code in codes]


def without_few(sentence: str, limit: int = PASSED_ON) -> str:
    """Return a sentence with each number of patients in it as it may be printed: ``<5 patients``.

    What counts as one is a whole number before a word in small letters; a tumour's grade does not.
    """

    def coarse(found: re.Match[str]) -> str:
        return shown(int(found[1]), limit) if is_few(int(found[1]), limit) else found[1]

    return _IN_WORDS.sub(coarse, sentence)
