"""Which heads of a masked round enough hospitals teach, so that their sum hides each of them.

Every group of weights is a sum of its own. A head that one hospital alone has labels for would be summed to
that hospital's own step; with two, each would know the other's. Such a head is frozen: nobody's step of it is
summed, and it stays as it was. Only hospitals whose numbers are in the sum count.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from fedglioma.case import TASK_TITLES, Task
from fedglioma.masked_update import nearly_alone
from fedglioma.pooled import Pooled
from fedglioma.privacy.masked_wire import FEWEST_SITES
from fedglioma.weights import GROUPS, TRUNK
from fedglioma.wire import StatisticsReply

TITLES: Final = TASK_TITLES | {Task.SEGMENTATION: "the tumour's outline"}


def totals_of(sites: Iterable[StatisticsReply], pooled: Pooled | None) -> dict[str, float]:
    """Return the weight per group of all sites that train: as they said, or as their masked counts sum up."""
    if pooled is not None:
        return dict(pooled.weights)
    trained = [site for site in sites if site.weights.get(TRUNK, 0.0) > 0]
    return {group: sum(site.weights.get(group, 0.0) for site in trained) for group in GROUPS}


def too_few(
    totals: Mapping[str, float],
    present: Collection[str],
    sites: Iterable[StatisticsReply],
    pooled: Pooled | None,
) -> set[str]:
    """Return the heads among ``totals`` to which fewer than ``FEWEST_SITES`` of the sites present add.

    So are those in which one of them is nearly alone: it would refuse the round. Where counts were told under
    masks it is known how many sites teach a head, not which: then each that was counted and is not present is
    taken for one of them, and one that is nearly alone refuses.

    Parameters
    ----------
    totals : mapping
        Weight per group, as the sites are told it.
    present : collection of str
        The sites whose numbers are, or will be, in the sum.
    sites : iterable of StatisticsReply
        What each site of the run said of itself.
    pooled : Pooled, optional
        The sums of their masked counts.
    """
    if pooled is not None:
        missing = len(set(pooled.sites) - set(present))
        counted = {group: pooled.having.get(group, 0) - missing for group in totals}
    else:
        here = [site.weights for site in sites if site.site in present]
        counted = {
            group: 0
            if any(nearly_alone(weights.get(group, 0.0), total) for weights in here)
            else sum(weights.get(group, 0.0) > 0 for weights in here)
            for group, total in totals.items()
        }
    return {group for group, number in counted.items() if group != TRUNK and number < FEWEST_SITES}


def frozen_words(frozen: Mapping[Task, Sequence[int]]) -> str:
    """Return which heads stayed as they were, and in which rounds, in a sentence; empty where none did."""
    if not any(frozen.values()):
        return ""
    named = [f"{TITLES[task]} in {_ranges(rounds)}" for task, rounds in frozen.items() if rounds]
    return (
        f"Under masks a head of the network is trained only where {FEWEST_SITES} or more hospitals teach it, "
        "or the sum could show one hospital's own step. Fewer did, and the head stayed as it was: "
        f"{'; '.join(named)}."
    )


def _ranges(rounds: Sequence[int]) -> str:
    """Return ascending numbers as ``round 4`` or ``rounds 1-3, 5``."""
    starts = [rounds[0], *(b for a, b in pairwise(rounds) if b != a + 1)]
    ends = [*(a for a, b in pairwise(rounds) if b != a + 1), rounds[-1]]
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return f"round{'s' * (len(rounds) > 1)} {', '.join(spans)}"
