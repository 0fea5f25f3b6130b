"""A round under secure aggregation: the server adds masked updates up, and reads nothing but their sum.

Before the training request come two short exchanges, after the updates two more (``secure.py``). Where too
few sites help to unmask the sum, the round is done again with new keys: what was masked before stays
unreadable. So it is where a site drops out without which a head has too few sites (``company.py``): then the
head is frozen for the round.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedglioma.case import Task
from fedglioma.errors import AggregationError, QuorumError
from fedglioma.masked_update import moved, one_vector, update_parts
from fedglioma.payload import Sliceable
from fedglioma.pooled import Pooled
from fedglioma.privacy.masked_wire import FEWEST_SITES, Inbox
from fedglioma.weights import GROUPS, Packed, digest_of
from fedglioma.wire import Masking, TrainRequest
from fedglioma_server.aggregation import Update
from fedglioma_server.combiner import Combined
from fedglioma_server.company import TITLES, too_few, totals_of
from fedglioma_server.records import SiteRound
from fedglioma_server.replies import Sink
from fedglioma_server.secure import SecureSum
from fedglioma_server.strategy import RoundStrategy

logger = logging.getLogger(__name__)

TRIES: Final = 3
TOGETHER: Final = "all sites"
"""Whose update a masked sum is."""


class SecureStrategy(RoundStrategy):
    """The rounds of a run under secure aggregation.

    ``pooled`` is what the statistics round summed up to, where that was masked too. ``froze`` is told of each
    round done, and which heads stayed as they were in it for want of sites.
    """

    pooled: Pooled | None = None
    froze: Callable[[int, list[str]], None] = staticmethod(lambda _number, _heads: None)
    _trained: tuple[int, set[str]] = (0, set())
    """A round, and the sites that trained for it, also where its sum was begun anew without them."""
    _short: frozenset[str] = frozenset()
    """Heads for which a sum of this round had too few sites: they stay frozen in it."""
    _totals: Mapping[str, float] = {}
    """Of the sum that was begun last: only of groups that are in it."""
    _said: frozenset[str] = frozenset()
    """The heads that were frozen in the round before."""

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
        if self._trained[0] != request.round:
            self._trained, self._short = (request.round, set()), frozenset()
        inboxes = self._opened(request, grid, {node: self.nodes[node].site for node in own})
        for node in set(own) - set(inboxes):
            site = self.nodes[node].site
            reason = self._sum.left_out.get(site, "it did not take part in the exchange of keys")
            code = "no_reply" if site in self._trained[1] else "not_masked"  # it trained when asked before
            self.ledger.sites[site] = SiteRound(status="no_reply", code=code, reason=reason)
        self._trained[1].update(self.nodes[node].site for node in inboxes)
        return {
            node: asked.model_copy(
                update={
                    "masking": Masking(
                        subject=self._sum.session.subject, inbox=inboxes[node], totals=dict(self._totals)
                    )
                }
            )
            for node, asked in own.items()
            if node in inboxes
        }

    def _opened(self, request: TrainRequest, grid: Grid, sites: dict[int, str]) -> dict[int, Inbox]:
        """Begin a sum of the trunk and of each head to which enough of the sites that answer add."""
        self._freeze(sites.values())
        while True:
            self._sum = SecureSum(
                grid,
                self.settings,
                "train",
                about=request.agreed(digest_of(self._sent), self._totals),
                parts=update_parts(self.layout.sizes, self.settings.secure_range),
                sites=sites,
                run=self.run,
                round_number=request.round,
            )
            inboxes = self._sum.open()
            if not self._freeze(sites[node] for node in inboxes):
                return inboxes

    def _freeze(self, present: Iterable[str]) -> frozenset[str]:
        """Take the heads to which too few of the sites add out of the totals; return those of now."""
        totals = totals_of(self.nodes.values(), self.pooled)
        told = {group: total for group, total in totals.items() if group not in self._short}
        found = frozenset(too_few(told, set(present), self.nodes.values(), self.pooled))
        self._short |= found
        self._totals = {group: total for group, total in told.items() if group not in found}
        return found

    def _sink(self) -> Sink:
        return _Adding(self._sum)

    def _combined(self, number: int, updates: dict[str, Update]) -> Combined:
        for left in reversed(range(TRIES)):
            try:
                self._require_company()
                total, survivors = self._sum.close()
                break
            except (AggregationError, QuorumError) as error:
                if left == 0:
                    raise QuorumError(f"round {number}: {error}") from None
                logger.warning("round %d: %s; the round is done again with new keys", number, error)
            self._repeat(number, updates)
        parts = update_parts(self.layout.sizes, self.settings.secure_range)
        arrays, shares = moved(self._sent, total, parts, self._sum.session.sites, len(survivors))
        self._tell(number)
        together = Update(TOGETHER, shares, "float32", arrays)
        return self.combiner.combine([together], self._sent)

    def _require_company(self) -> None:
        """Refuse to have a sum unmasked that a site dropped out of without which a head has too few."""
        if lost := self._freeze(self._sum.added):
            raise QuorumError(
                f"fewer than {FEWEST_SITES} hospitals that teach {', '.join(sorted(lost))} are in the sum"
            )

    def _tell(self, number: int) -> None:
        """Say which heads of the network stayed as they were in a round."""
        heads = [group for group in GROUPS if group not in self._totals and self.layout.sizes[group]]
        if heads and frozenset(heads) != self._said:
            logger.warning(
                "round %d: %s stays as it was: fewer than %d hospitals teach it, and under masks the sum "
                "could show one hospital's own step",
                number,
                ", ".join(TITLES[Task(group)] for group in heads),
                FEWEST_SITES,
            )
        self._said = frozenset(heads)
        self.froze(number, heads)

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
