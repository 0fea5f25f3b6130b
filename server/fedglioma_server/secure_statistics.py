"""The statistics round under masks: what all sites' counts and landmarks add up to, and nobody's own."""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from flwr.serverapp import Grid

from fedglioma.errors import AggregationError, ProtocolError, QuorumError
from fedglioma.masked_update import statistics_parts, summed_statistics
from fedglioma.pooled import Pooled, pooled
from fedglioma.privacy.masked_wire import FEWEST_SITES
from fedglioma.wire import Masking, StatisticsReply, StatisticsRequest
from fedglioma_server.secure import SecureSum
from fedglioma_server.sitewords import site_words

logger = logging.getLogger(__name__)

TRIES: Final = 3

Send = Callable[[Mapping[int, StatisticsRequest], float], list[StatisticsReply]]
"""Asks nodes with a time limit in seconds, and returns the answers of the sites that take part."""


def summed(
    grid: Grid,
    asked: StatisticsRequest,
    sites: Mapping[int, str | None],
    *,
    run: str,
    wait_s: float,
    send: Send,
) -> Pooled:
    """Return what the numbers of all sites that answer add up to.

    Where too few help to unmask the sum, all is done again with new keys; a site that was in a sum which
    was unmasked is in no other one.

    Parameters
    ----------
    asked : StatisticsRequest
        What the sites are asked, but for what they need to mask their answers.
    sites : mapping
        Node -> site, the name None where it is not known yet.
    run : str
        What tells the run from every other.
    wait_s : float
        Seconds for the first exchange and for the answers.

    Raises
    ------
    QuorumError
        Too few sites took part, several times over.
    """
    for left in reversed(range(TRIES)):
        try:
            return _summed(grid, asked, sites, run=run, wait_s=wait_s, send=send)
        except (AggregationError, QuorumError, ProtocolError) as error:
            if left == 0 or len(sites) < FEWEST_SITES:
                raise QuorumError(f"masked statistics: {error}") from None
            logger.warning("masked statistics: %s; done again with new keys", error)
    raise AssertionError("unreachable")


def _summed(
    grid: Grid,
    asked: StatisticsRequest,
    sites: Mapping[int, str | None],
    *,
    run: str,
    wait_s: float,
    send: Send,
) -> Pooled:
    settings = asked.settings
    total = SecureSum(
        grid,
        settings,
        "statistics",
        about=asked.agreed(),
        parts=statistics_parts(),
        sites=sites,
        run=run,
        round_number=0,
    )
    inboxes = total.open(wait_s)
    requests = {
        node: asked.model_copy(update={"masking": Masking(subject=total.session.subject, inbox=inbox)})
        for node, inbox in inboxes.items()
    }
    for answer in send(requests, wait_s):
        try:
            total.add(answer.site, np.frombuffer(answer.masked or b"", "<u4").astype(np.uint32))
        except (ProtocolError, ValueError) as error:
            logger.warning("%s is not in the masked statistics: %s", answer.site, site_words(str(error)))
    numbers, survivors = total.close()
    found = pooled(summed_statistics(numbers, total.session.sites, len(survivors)))
    return found.model_copy(update={"sites": survivors})
