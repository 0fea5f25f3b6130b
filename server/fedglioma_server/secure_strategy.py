"""A round under secure aggregation: the server adds masked updates up, and reads nothing but their sum.

Before the training request come two short exchanges, after the updates two more (``secure.py``). Where too
few sites help to unmask the sum, the round is done again with new keys: what was masked before stays
unreadable.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedglioma.errors import AggregationError, QuorumError
from fedglioma.masked_update import moved, one_vector, update_parts
from fedglioma.payload import Sliceable
from fedglioma.weights import GROUPS, TRUNK, Packed, digest_of
from fedglioma.wire import Masking, StatisticsReply, TrainRequest
from fedglioma_server.aggregation import Update
from fedglioma_server.combiner import Combined
from fedglioma_server.records import SiteRound
from fedglioma_server.replies import Sink
from fedglioma_server.secure import SecureSum
from fedglioma_server.strategy import RoundStrategy

logger = logging.getLogger(__name__)

TRIES: Final = 3
TOGETHER: Final = "all sites"
"""Whose update a masked sum is."""


class SecureStrategy(RoundStrategy):
    """The rounds of a run under secure aggregation; ``totals`` are all sites' weights by group.

    Where the statistics round was masked too they are what it summed up to, else what the sites said.
    """

    totals: Mapping[str, float] | None = None
    _trained: tuple[int, set[str]] = (0, set())
    """A round, and the sites that trained for it, also where its sum was begun anew without them."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request per site that exchanged keys and shares, with what it needs to mask its update.

        Raises
        ------
        QuorumError
            Too few sites did, several times over.
        """
        self._arrays, self._grid = arrays, grid
        for _ in range(TRIES - 1):
            try:
                return super().configure_train(server_round, arrays, config, grid)
            except QuorumError as error:
                logger.warning("%s; begun anew", error)
        return super().configure_train(server_round, arrays, config, grid)

    def _own(self, request: TrainRequest, grid: Grid) -> dict[int, TrainRequest]:
        own = super()._own(request, grid)
        parts = update_parts(self.layout.sizes, self.settings.secure_range)
        totals = self._totals()
        self._sum = SecureSum(
            grid,
            self.settings,
            "train",
            about=request.agreed(digest_of(self._sent), totals),
            parts=parts,
            sites={node: self.nodes[node].site for node in own},
            run=self.run,
            round_number=request.round,
        )
        inboxes = self._sum.open()
        if self._trained[0] != request.round:
            self._trained = (request.round, set())
        for node in set(own) - set(inboxes):
            site = self.nodes[node].site
            reason = self._sum.left_out.get(site, "it did not take part in the exchange of keys")
            code = "no_reply" if site in self._trained[1] else "not_masked"  # it trained when asked before
            self.ledger.sites[site] = SiteRound(status="no_reply", code=code, reason=reason)
        self._trained[1].update(self.nodes[node].site for node in inboxes)
        return {
            node: asked.model_copy(
                update={
                    "masking": Masking(subject=self._sum.session.subject, inbox=inboxes[node], totals=totals)
                }
            )
            for node, asked in own.items()
            if node in inboxes
        }

    def _totals(self) -> dict[str, float]:
        if self.totals is not None:
            return dict(self.totals)
        trained = [site for site in self.nodes.values() if site.weights.get(TRUNK, 0.0) > 0]
        return {group: _total(group, trained) for group in GROUPS}

    def _sink(self) -> Sink:
        return _Adding(self._sum)

    def _combined(self, number: int, updates: dict[str, Update]) -> Combined:
        for left in reversed(range(TRIES)):
            try:
                total, survivors = self._sum.close()
                break
            except (AggregationError, QuorumError) as error:
                if left == 0:
                    raise QuorumError(f"round {number}: {error}") from None
                logger.warning("round %d: %s; the round is done again with new keys", number, error)
            self._repeat(number, updates)
        parts = update_parts(self.layout.sizes, self.settings.secure_range)
        arrays, shares = moved(self._sent, total, parts, self._sum.session.sites, len(survivors))
        together = Update(TOGETHER, shares, "float32", arrays)
        return self.combiner.combine([together], self._sent)

    def _repeat(self, number: int, updates: dict[str, Update]) -> None:
        """Ask all sites again, with new keys, and take their updates in place of those before."""
        messages = list(self.configure_train(number - self.done, self._arrays, ConfigRecord(), self._grid))
        updates.clear()
        replies = self._grid.send_and_receive(messages, timeout=self.settings.round_timeout_s)
        updates.update(self._take_all(iter(replies), number))
        self._require_quorum(number, updates)


class _Adding:
    """A sink that adds masked updates up and keeps none."""

    def __init__(self, total: SecureSum) -> None:
        self._total = total

    def put(self, site: str, packed: Packed, metadata: Mapping[str, str]) -> Mapping[str, Sliceable]:
        """Add a masked update."""
        self._total.add(site, one_vector(packed))
        return {}


def _total(group: str, sites: Iterable[StatisticsReply]) -> float:
    return sum(site.weights.get(group, 0.0) for site in sites)
