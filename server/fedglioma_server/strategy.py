"""Who takes part in a round, and how replies become weights.

A strategy decides; ``aggregation.py`` computes and the sites pull (``losses/proximal.py``). A new
algorithm is one class that overrides what differs.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedglioma.case import Gene
from fedglioma.config.run import RunConfig
from fedglioma.errors import AggregationError, FedGliomaError, ProtocolError, QuorumError
from fedglioma.weights import TRUNK, FlatArrays, Layout, from_record, to_record
from fedglioma.wire import (
    TRAIN,
    Refusal,
    StatisticsReply,
    TrainReply,
    TrainRequest,
    body_of,
    is_refusal,
    payload_bytes,
    request_record,
    weights_of,
)
from fedglioma_server.aggregation import update_norm, weighted_mean
from fedglioma_server.records import SiteRound

logger = logging.getLogger(__name__)


@dataclass
class RoundLedger:
    """What a round's replies left for the record: per site its line, and seconds by phase."""

    sites: dict[str, SiteRound] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class FedAvg(Strategy):
    """Mean of the sites' weights, by labelled cases (McMahan et al. 2017).

    The trunk is weighted by cases with any known label, each gene's head by the cases whose label of
    that gene is known. Sites without a labelled case are idle. A refused, wrong-shaped or non-finite
    update leaves its site out of the round, with the reason recorded.

    Parameters
    ----------
    settings : RunConfig
        Terms of the run.
    nodes : dict
        Flower's node number -> what the site said in the statistics round.
    class_counts : dict
        Global training counts per gene.
    layout : Layout
        What an update must look like.
    done : int
        Rounds already completed before this start (resume).
    """

    def __init__(
        self,
        settings: RunConfig,
        nodes: dict[int, StatisticsReply],
        class_counts: dict[Gene, tuple[float, float]],
        layout: Layout,
        *,
        done: int = 0,
    ) -> None:
        self.settings = settings
        self.nodes = nodes
        self.class_counts = class_counts
        self.layout = layout
        self.done = done
        self.ledger = RoundLedger()
        self._previous: FlatArrays = {}
        self._sent_bytes = 0
        self._sent_at = 0.0

    def proximal_mu(self) -> float:
        """Return the pull towards the global weights that sites apply; none here."""
        return 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request per site that has something to train on, in the order of their names."""
        self._previous = from_record(arrays)
        self.ledger = RoundLedger()
        request = TrainRequest(
            round=server_round + self.done,
            settings=self.settings,
            proximal_mu=self.proximal_mu(),
            class_counts=self.class_counts,
            layout=self.layout.digest,
        )
        online = set(grid.get_node_ids())
        messages = []
        for node, site in sorted(self.nodes.items(), key=lambda item: item[1].site):
            if site.weights.get(TRUNK, 0.0) == 0:
                self.ledger.sites[site.site] = SiteRound(status="idle", reason="no labelled training case")
            elif node not in online:
                self.ledger.sites[site.site] = SiteRound(status="no_reply", reason="not connected")
            else:
                content = request_record(request)
                content["weights"] = arrays
                messages.append(
                    Message(content, dst_node_id=node, message_type=TRAIN, group_id=str(request.round))
                )
                self._sent_bytes = payload_bytes(content)
                self.ledger.sites[site.site] = SiteRound(
                    status="no_reply", reason="no reply within the round's time", bytes_down=self._sent_bytes
                )
        self._sent_at = time.perf_counter()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global weights; replies are summed in the order of the sites' names.

        Raises
        ------
        QuorumError
            Fewer sites than the quorum sent a usable update.
        """
        arrived = list(replies)
        self.ledger.seconds["sites"] = time.perf_counter() - self._sent_at
        started = time.perf_counter()
        number = server_round + self.done
        updates: dict[str, tuple[FlatArrays, dict[str, float]]] = {}
        for reply in arrived:
            self._judge(reply, number, updates)
        if len(updates) < self.settings.quorum:
            reasons = "; ".join(
                f"{name}: {line.reason}"
                for name, line in sorted(self.ledger.sites.items())
                if line.status != "ok"
            )
            raise QuorumError(
                f"round {number}: {len(updates)} usable updates, {self.settings.quorum} needed ({reasons})"
            )
        ordered = [updates[name] for name in sorted(updates)]
        result = self.combine(ordered, self._previous)
        self.ledger.seconds["aggregate"] = time.perf_counter() - started
        return to_record(result), None

    def combine(self, updates: list[tuple[FlatArrays, dict[str, float]]], previous: FlatArrays) -> FlatArrays:
        """Return the global weights that follow from the sites' updates."""
        return weighted_mean(updates, previous)

    def _judge(
        self, message: Message, number: int, updates: dict[str, tuple[FlatArrays, dict[str, float]]]
    ) -> None:
        node = message.metadata.src_node_id
        known = self.nodes.get(node)
        if known is None:
            logger.warning("round %d: a reply from a node that did not join is ignored", number)
            return
        sent = self.ledger.sites[known.site].bytes_down
        try:
            if message.has_error():
                raise ProtocolError(f"the site's app failed (Flower error {message.error.code})")
            if is_refusal(message.content):
                refusal = body_of(message.content, Refusal)
                line = SiteRound(
                    status="refused", reason=f"{refusal.error}: {refusal.reason}", bytes_down=sent
                )
            else:
                reply, arrays = self._check(message, number, known.site)
                updates[known.site] = (arrays, known.weights)
                line = SiteRound(
                    status="ok",
                    weights=known.weights,
                    steps=reply.steps,
                    loss=reply.loss,
                    loss_by_gene=reply.loss_by_gene,
                    seconds=reply.seconds,
                    bytes_down=sent,
                    bytes_up=payload_bytes(message.content),
                    update_norm=update_norm(arrays, self._previous),
                )
        except FedGliomaError as error:
            line = SiteRound(status="error", reason=str(error), bytes_down=sent)
        self.ledger.sites[known.site] = line
        if line.status != "ok":
            logger.warning("round %d: %s left out: %s", number, known.site, line.reason)

    def _check(self, message: Message, number: int, site: str) -> tuple[TrainReply, FlatArrays]:
        reply = body_of(message.content, TrainReply)
        if reply.site != site or reply.round != number or reply.layout != self.layout.digest:
            raise ProtocolError(f"reply of {reply.site} for round {reply.round} does not belong here")
        arrays = weights_of(message.content)
        self.layout.named(arrays)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise AggregationError("the update holds numbers that are not finite")
        return reply, arrays

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: the held-out evaluation is the coordinator's."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: no site was asked."""
        return None

    def summary(self) -> None:
        """Log what the strategy will do."""
        logger.info(
            "%s over %d sites, %d of %d rounds done",
            type(self).__name__,
            len(self.nodes),
            self.done,
            self.settings.rounds,
        )


class FedProx(FedAvg):
    """FedAvg whose sites are pulled towards the global weights (Li et al. 2020, equation 2)."""

    def proximal_mu(self) -> float:
        """Return mu of the run's settings."""
        return self.settings.proximal_mu


STRATEGIES: dict[str, Callable[..., FedAvg]] = {"fedavg": FedAvg, "fedprox": FedProx}
