"""A round as Flower's ``Strategy`` sees it: who is asked, which replies count, when there are enough.

What the updates become is ``combiner.py``'s; what a reply must be, ``replies.py``'s. Replies are taken one
at a time: each is judged, written to disk and dropped before the next is asked for.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedglioma.case import Gene
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError, QuorumError
from fedglioma.scale import Scale
from fedglioma.weights import TRUNK, FlatArrays, Layout, from_record, to_record
from fedglioma.wire import TRAIN, StatisticsReply, TrainRequest, payload_bytes, request_record
from fedglioma_server.aggregation import Update
from fedglioma_server.combiner import Combined, Combiner, ServerState
from fedglioma_server.records import SiteRound
from fedglioma_server.replies import Sink, Terms, judge
from fedglioma_server.strategies import combiner_of
from fedglioma_server.updates import Spool

logger = logging.getLogger(__name__)

ENOUGH_FOR_A_MEDIAN = 3


@dataclass
class RoundLedger:
    """What a round's replies left for the record: per site its line, and seconds by phase."""

    sites: dict[str, SiteRound] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class RoundStrategy(Strategy):
    """The rounds of a run, whatever combines the updates.

    The trunk is weighted by cases with any known label, each gene's head by the cases whose label of that
    gene is known. Sites without a labelled case are idle. An update that is refused, late, of another
    shape, not finite or far longer than the others leaves its site out of the round, with the reason.

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
    spool : Spool
        Where updates lie until they are combined.
    run : str
        What tells this run from every other at the sites.
    scale : Scale, optional
        The consortium's intensities; without it each case is on its own scale.
    shared : mapping, optional
        Site -> those of its own linkage tags that came from another site too; looked into every round.
    done : int
        Rounds already completed before this start (resume).
    usable : callable, optional
        Told of each site whose update can be used, as soon as that is known and from another thread.

    Raises
    ------
    ConfigError
        Fewer sites can train than the strategy needs.
    """

    def __init__(
        self,
        settings: RunConfig,
        nodes: dict[int, StatisticsReply],
        class_counts: dict[Gene, tuple[float, float]],
        layout: Layout,
        *,
        spool: Spool,
        run: str,
        scale: Scale | None = None,
        shared: Mapping[str, tuple[str, ...]] | None = None,
        done: int = 0,
        usable: Callable[[str], None] = lambda _site: None,
    ) -> None:
        self.settings = settings
        self.nodes = nodes
        self.class_counts = class_counts
        self.layout = layout
        self.spool = spool
        self.run = run
        self.scale = scale
        self.shared = {} if shared is None else shared
        self.done = done
        self.usable = usable
        self.combiner = combiner_of(settings)
        self.ledger = RoundLedger()
        self._sent: FlatArrays = {}
        self._asked: set[str] = set()
        self._sent_at = 0.0
        self.audit_head: Callable[[], str] = lambda: ""
        self.ledger_heads: dict[str, str] = {}
        require_enough(self.combiner, sum(bool(site.weights.get(TRUNK)) for site in nodes.values()))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request per site that has something to train on, in the order of their names.

        All of them share one record of the weights. A site that is not connected is asked too: the grid
        keeps its message until it is.
        """
        self.spool.begin()
        self._sent = from_record(arrays)
        self.ledger = RoundLedger()
        self._asked = set()
        request = TrainRequest(
            run=self.run,
            round=server_round + self.done,
            settings=self.settings,
            proximal_mu=self.settings.proximal_mu if self.settings.strategy == "fedprox" else 0.0,
            class_counts=self.class_counts,
            layout=self.layout.digest,
            scale=self.scale,
            audit_head=self.audit_head(),
        )
        for site in self.nodes.values():
            if site.weights.get(TRUNK, 0.0) == 0:
                self.ledger.sites[site.site] = SiteRound(
                    status="idle", code="idle", reason="no labelled training case"
                )
        messages = []
        for node, own in self._own(request, grid).items():
            site = self.nodes[node]
            content = _content(own, arrays)
            messages.append(Message(content, dst_node_id=node, message_type=TRAIN, group_id=str(own.round)))
            self._asked.add(site.site)
            self.ledger.sites[site.site] = SiteRound(
                status="no_reply",
                code="no_reply",
                reason="no reply within the round's time",
                bytes_down=payload_bytes(content),
            )
        self._sent_at = time.perf_counter()
        return messages

    def _own(self, request: TrainRequest, grid: Grid) -> dict[int, TrainRequest]:
        """Return what each node that has something to train on is asked, in the order of the sites' names.

        It is the same for all, but for what a site alone is told of itself.
        """
        asked = {}
        for node, site in sorted(self.nodes.items(), key=lambda item: item[1].site):
            if site.weights.get(TRUNK, 0.0) > 0:
                told = {
                    "shared": self.shared.get(site.site, ()),
                    "ledger_head": self.ledger_heads.get(site.site, ""),
                }
                asked[node] = request.model_copy(update=told)
        return asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global weights; the updates are combined in the order of the sites' names.

        Raises
        ------
        QuorumError
            Fewer sites than the quorum, or than the strategy needs, sent a usable update.
        """
        number = server_round + self.done
        updates = self._take_all(iter(replies), number)
        started = time.perf_counter()
        self.ledger.seconds["sites"] = started - self._sent_at
        self._leave_out_the_far(number, updates)
        self._require_quorum(number, updates)
        combined = self._combined(number, updates)
        for name in combined.passed_over:
            self._enter(number, name, self.ledger.sites[name], code="passed_over", reason="not chosen")
        self.spool.end(number)
        record = to_record(combined.arrays)
        self.ledger.seconds["aggregate"] = time.perf_counter() - started
        return record, None

    def _combined(self, number: int, updates: dict[str, Update]) -> Combined:
        """Return the new weights, from the usable updates."""
        return self.combiner.combine([updates[name] for name in sorted(updates)], self._sent)

    def _take_all(self, replies: Iterator[Message], number: int) -> dict[str, Update]:
        """Return the usable updates; one is judged while the next site trains or sends.

        So two replies are in memory at most, however many sites there are.
        """
        updates: dict[str, Update] = {}
        terms = Terms(number, self.layout, self.settings.payload, self._sent)
        with ThreadPoolExecutor(1, thread_name_prefix="judge") as beside:
            judging: tuple[str, Future[tuple[SiteRound, Update | None]]] | None = None
            while (reply := next(replies, None)) is not None:
                if judging is not None:
                    self._note(number, judging[0], judging[1].result(), updates)
                    judging = None
                known = self._asked_site(reply, number, updates)
                if known is not None:
                    judging = known.site, beside.submit(self._judge, reply, known, terms)
                reply = None  # or its arrays would stay in memory while the next site answers
            if judging is not None:
                self._note(number, judging[0], judging[1].result(), updates)
        return updates

    def _judge(self, reply: Message, known: StatisticsReply, terms: Terms) -> tuple[SiteRound, Update | None]:
        # The grid waits for the next site meanwhile: it must hear now what may end its wait.
        line, update = judge(reply, known, terms, self._sink())
        if update is not None:
            self.usable(known.site)
        return line, update

    def _sink(self) -> Sink:
        """Return where an update goes once it was judged."""
        return self.spool

    def _asked_site(
        self, message: Message, number: int, updates: dict[str, Update]
    ) -> StatisticsReply | None:
        known = self.nodes.get(message.metadata.src_node_id)
        if known is None or known.site not in self._asked:
            logger.warning("round %d: a reply from a node that was not asked is ignored", number)
            return None
        if known.site in updates:
            logger.warning("round %d: a second reply of %s is ignored", number, known.site)
            return None
        return known

    def _note(
        self,
        number: int,
        site: str,
        judged: tuple[SiteRound, Update | None],
        updates: dict[str, Update],
    ) -> None:
        line, update = judged
        if update is not None:
            updates[site] = update
        if line.ledger_head:
            self.ledger_heads[site] = line.ledger_head
        self._enter(number, site, line)

    def _enter(self, number: int, site: str, line: SiteRound, **changes: str) -> None:
        sent = {"bytes_down": self.ledger.sites[site].bytes_down}
        self.ledger.sites[site] = line.model_copy(update=sent | changes)
        entered = self.ledger.sites[site]
        if entered.status != "ok":
            logger.warning("round %d: %s left out: %s", number, site, entered.reason)

    def _leave_out_the_far(self, number: int, updates: dict[str, Update]) -> None:
        """Leave out every update that is much longer than the round's usual one.

        Short ones stay: a site with few cases takes few steps, and a step of nearly nothing moves nothing.
        """
        norms = {site: self.ledger.sites[site].update_norm or 0.0 for site in updates}
        limit = self.settings.norm_limit
        if limit == 0 or len(norms) < ENOUGH_FOR_A_MEDIAN or (usual := median(norms.values())) == 0:
            return
        for site, norm in norms.items():
            if norm > limit * usual:
                del updates[site]
                reason = (
                    f"the update is {norm / usual:.3g} times as long as the round's median, {limit:g} allowed"
                )
                self._enter(number, site, self.ledger.sites[site], status="error", code="norm", reason=reason)

    def _require_quorum(self, number: int, updates: dict[str, Update]) -> None:
        needed = self.combiner.quorum()
        if len(updates) >= needed:
            return
        reasons = "; ".join(
            f"{name}: {line.reason}"
            for name, line in sorted(self.ledger.sites.items())
            if line.status != "ok"
        )
        raise QuorumError(f"round {number}: {len(updates)} usable updates, {needed} needed ({reasons})")

    def state(self) -> ServerState | None:
        """Return what the strategy remembers after the round, to be saved with its weights."""
        return self.combiner.state()

    def restore(self, state: ServerState | None) -> None:
        """Take up what was saved with the weights that the run continues from."""
        self.combiner.restore(state)

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
            self.settings.strategy,
            len(self.nodes),
            self.done,
            self.settings.rounds,
        )


def _content(request: TrainRequest, arrays: ArrayRecord) -> RecordDict:
    """Return a request with the weights beside it; the arrays are the same object in every message."""
    content = request_record(request)
    content["weights"] = arrays
    return content


def require_enough(combiner: Combiner, sites: int) -> None:
    """Raise ``ConfigError`` where fewer sites can train than the strategy needs in every round."""
    if sites >= combiner.least():
        return
    settings = combiner.settings
    knob = {"multikrum": f"byzantine {settings.byzantine}", "trimmed_mean": f"trim {settings.trim:g}"}
    raise ConfigError(
        f"strategy {settings.strategy} with {knob.get(settings.strategy, 'these settings')} needs "
        f"{combiner.least()} sites that train, there are {sites}; change it, or choose another strategy"
    )
