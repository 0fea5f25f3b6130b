"""The roll call: which sites take part in a run, and what each says of itself before any training."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from fedglioma.errors import ProtocolError, QuorumError
from fedglioma.training.learner import layout_of
from fedglioma.wire import (
    FINISHED,
    STATISTICS,
    Refusal,
    RunFinished,
    StatisticsReply,
    StatisticsRequest,
    body_of,
    is_refusal,
    payload_bytes,
    request_record,
)
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.linkage import linkage_record, shared_tags, words_of
from fedglioma_server.records import Record, SiteData, read_json, write_json
from fedglioma_server.replies import believed, hidden
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.secure_statistics import summed
from fedglioma_server.sitewords import site_words

logger = logging.getLogger(__name__)

POLL_S = 0.1
LATE_S = 60.0
LONGEST_PAUSE = 32
GOODBYE_S = 15.0


class Roll:
    """Which sites take part, and what each said of itself in the statistics round.

    ``nodes`` is shared with the strategy: a site that joins late is asked between two rounds and takes
    part from the next. So is ``shared``: each site's linkage tags that came from another one too. What a
    site said is kept with the run, so that a server that was started again goes on with the same sites and
    the same counts.
    """

    def __init__(self, grid: Grid, coordinator: Coordinator) -> None:
        self._grid = grid
        self._coordinator = coordinator
        self._layout = layout_of(coordinator.settings).digest
        self.nodes: dict[int, StatisticsReply] = {}
        self.shared: dict[str, tuple[str, ...]] = {}
        self._said_no: set[int] = set()
        self._patience = _Patience()
        self._refused: dict[int, str | None] = {}

    @property
    def answers(self) -> dict[str, StatisticsReply]:
        """The sites that take part and what each said."""
        return {reply.site: reply for reply in self.nodes.values()}

    def call(self) -> None:
        """Ask every site once; sites that refuse are named in the log and left out.

        Raises
        ------
        QuorumError
            Fewer sites than the quorum joined.
        ProtocolError
            In a simulation, two nodes claim the same site, or a site builds another network.
        """
        coordinator, settings = self._coordinator, self._coordinator.settings
        members = coordinator.members
        if members is None:
            asked = connected(self._grid, coordinator.sites, wait_s=coordinator.join_timeout_s)
            timeout = settings.round_timeout_s
        else:
            self._remember(members())
            waited_for = coordinator.expected or tuple(members().values())
            asked = [n for n, site in members().items() if site in waited_for and n not in self.nodes]
            timeout = coordinator.join_timeout_s
        self._ask(asked, timeout)
        self._note_refusals(asked)
        names = [reply.site for reply in self.nodes.values()]
        if len(set(names)) != len(names):
            raise ProtocolError(f"two nodes claim to be the same site: {', '.join(sorted(names))}")
        if len(self.nodes) < settings.quorum:
            raise QuorumError(
                f"{len(self.nodes)} of {max(len(asked), len(self.nodes))} sites joined, "
                f"{settings.quorum} are needed"
            )
        if members is None:
            self._require_same_layout()
        self._keep()
        self._look_for_shared()
        self.call_late()

    def call_late(self) -> None:
        """Ask the sites that have come since; one that answers takes part from the next round."""
        members = self._coordinator.members
        if members is None:
            return
        online = {info.node_id: info.last_activated_at for info in self._grid.get_nodes()}
        self._move_to_new_keys(members())
        late = [
            node
            for node in members()
            if node in online
            and node not in self.nodes
            and (node not in self._refused or self._refused[node] != online[node])
            and self._patience.due(node)
        ]
        if not late:
            return
        before = set(self.nodes)
        self._ask(late, LATE_S)
        self._note_refusals(late)
        if set(self.nodes) != before:
            names = ", ".join(sorted(self.nodes[node].site for node in set(self.nodes) - before))
            logger.info("%s joined late; class counts and intensity scale stay those of the start", names)
            self._keep()
            self._look_for_shared()
            folder = self._coordinator.folder
            folder.update(sites={reply.site: site_data(reply) for reply in self.nodes.values()})

    def _note_refusals(self, asked: list[int]) -> None:
        """Remember who said no: it is asked again once it has connected anew, with another policy perhaps."""
        active = {info.node_id: info.last_activated_at for info in self._grid.get_nodes()}
        self._refused |= {n: active[n] for n in asked if n in self._said_no and n in active}

    def _move_to_new_keys(self, members: Mapping[int, str]) -> None:
        """Let a site that came back with a new key go on with what it said under the old one."""
        old = {reply.site: node for node, reply in self.nodes.items() if node not in members}
        for node, site in members.items():
            if node not in self.nodes and site in old:
                self.nodes[node] = self.nodes.pop(old.pop(site))
                logger.info("%s goes on with its new key", site)
        self._sort()

    def dismiss(self) -> None:
        """Tell the connected sites that the run is over, and forget what was only for it."""
        self._forget_tags()
        members = self._coordinator.members
        if members is None:
            return
        online = set(self._grid.get_node_ids())
        told = RunFinished(run=self._coordinator.folder.path.name, status="completed")
        messages = [
            Message(request_record(told), dst_node_id=node, message_type=FINISHED, group_id="end")
            for node in self.nodes
            if node in online
        ]
        for _reply in self._grid.send_and_receive(messages, timeout=GOODBYE_S):
            pass

    def _ask(self, nodes: list[int], timeout: float) -> None:
        record = self._coordinator.folder.read()
        settings, known = record.settings, record.scale
        # A scale that stands changes no more: what a late site's landmarks are stays with it.
        asked = StatisticsRequest(
            run=record.key, settings=settings, landmarks=settings.common_scale and known is None
        )
        if settings.secure_statistics and record.pooled is None and nodes:
            members = self._coordinator.members
            names = dict.fromkeys(nodes) if members is None else {n: members()[n] for n in nodes}
            run = record.key
            told = summed(self._grid, asked, names, run=run, wait_s=timeout, send=self._send)
            self._coordinator.folder.update(pooled=told)
        else:
            self._send(dict.fromkeys(nodes, asked), timeout)
        self._sort()

    def _send(self, asked: Mapping[int, StatisticsRequest], timeout: float) -> list[StatisticsReply]:
        """Ask the nodes, note what they answer, and return the answers of those who take part."""
        messages = [
            Message(request_record(own), dst_node_id=node, message_type=STATISTICS, group_id="0")
            for node, own in asked.items()
        ]
        found = (self._hear(reply) for reply in self._grid.send_and_receive(messages, timeout=timeout))
        return [answer for answer in found if answer is not None]

    def _hear(self, reply: Message) -> StatisticsReply | None:
        node = reply.metadata.src_node_id
        members = self._coordinator.members
        site = None if members is None else members().get(node, "unknown")
        name = site or f"node {node}"
        try:
            if reply.has_error():
                raise ProtocolError(f"{reply.error.reason or f'Flower error {reply.error.code}'}")
            if is_refusal(reply.content):
                refusal = body_of(reply.content, Refusal)
                name = site or refusal.site
                raise ProtocolError(f"{refusal.error}: {refusal.reason}")
            told = body_of(reply.content, StatisticsReply)
            answer = hidden(told) if self._coordinator.settings.secure_statistics else believed(told)
            if site is not None and answer.site != site:
                raise ProtocolError(f"it calls itself {answer.site}, its key is that of {site}")
            if site is not None and answer.layout != self._layout:
                raise ProtocolError(
                    "it builds another network than the coordinator; install one version everywhere"
                )
        except ProtocolError as error:
            if reply.has_error():
                self._patience.missed(node)
            else:
                self._said_no.add(node)
            self._left_out(name, error)
            return None
        self.nodes[node] = answer.model_copy(update={"masked": None})
        if self._coordinator.settings.secure_statistics:
            logger.info("%s takes part", answer.site)
        else:
            logger.info("%s takes part: about %d cases", answer.site, answer.cases)
        self._coordinator.audit("site_joined", site=answer.site, bytes=payload_bytes(reply.content))
        return answer

    def _left_out(self, name: str, error: ProtocolError) -> None:
        site, reason = site_words(name), site_words(str(error))
        logger.warning("%s did not join: %s", site, reason)
        self._coordinator.audit("site_refused", site=site, reason=reason)

    def _require_same_layout(self) -> None:
        other = sorted(reply.site for reply in self.nodes.values() if reply.layout != self._layout)
        if other:
            raise ProtocolError(
                f"{', '.join(other)}: builds another network than the coordinator; "
                "install one version everywhere"
            )

    def _remember(self, members: Mapping[int, str]) -> None:
        """Take what sites said when this run was first started; a site that said nonsense is asked anew."""
        path = _answers_file(self._coordinator.folder)
        if not path.exists():
            return
        kept = read_json(path, Answers).answers
        for node, site in members.items():
            if site not in kept:
                continue
            try:
                secure = self._coordinator.settings.secure_statistics
                self.nodes[node] = hidden(kept[site]) if secure else believed(kept[site])
            except ProtocolError as error:
                self._left_out(site, error)
        self._sort()

    def _sort(self) -> None:
        """Put the nodes in the order of their sites' names; in place, the strategy holds the same table."""
        ordered = sorted(self.nodes.items(), key=lambda item: item[1].site)
        self.nodes.clear()
        self.nodes.update(ordered)

    def _look_for_shared(self) -> None:
        """Find the patients who are at two sites, tell of pairs that are new, and note how many there are."""
        if not self._coordinator.settings.find_duplicates:
            return
        folder, replies = self._coordinator.folder, self.nodes.values()
        before = folder.read().linkage
        self.shared.clear()  # in place, the strategy holds the same table
        self.shared.update(shared_tags(replies))
        found = linkage_record(replies, self.shared, before)
        folder.update(linkage=found)
        for pair in found.pairs:
            if before is None or pair not in before.pairs:
                one, other = pair.sites
                logger.warning(
                    "%s and %s: %s at both; the hospitals can name them", one, other, words_of(pair)
                )

    def _forget_tags(self) -> None:
        """Take the tags off the disk: nobody needs them after the run."""
        path = _answers_file(self._coordinator.folder)
        if path.exists():
            kept = read_json(path, Answers).answers
            bare = {site: reply.model_copy(update={"linkage": ()}) for site, reply in kept.items()}
            write_json(path, Answers(answers=bare))

    def _keep(self) -> None:
        if self._coordinator.members is not None:
            write_json(_answers_file(self._coordinator.folder), Answers(answers=self.answers))


class _Patience:
    """Who did not answer in time is asked again after 1, 2, 4 ... rounds: each question costs a wait."""

    def __init__(self) -> None:
        self._pause: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def missed(self, node: int) -> None:
        """Note that a node did not answer."""
        self._pause[node] = min(2 * self._pause.get(node, 0) or 1, LONGEST_PAUSE)
        self._left[node] = self._pause[node]

    def due(self, node: int) -> bool:
        """Whether a node may be asked now; each question counts a round."""
        if self._left.get(node, 0) > 0:
            self._left[node] -= 1
            return False
        return True


class Answers(Record):
    """``work/answers.json``: what each site said of itself."""

    answers: dict[str, StatisticsReply]


def _answers_file(folder: RunFolder) -> Path:
    return folder.work / "answers.json"


def connected(grid: Grid, expected: int, *, wait_s: float) -> list[int]:
    """Return the nodes that are there once all expected ones are, or when the wait is over.

    Engines with processes of their own start the server's app while nodes still register.
    """
    end = time.monotonic() + wait_s
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < end:
        time.sleep(POLL_S)
    return nodes


def site_data(reply: StatisticsReply) -> SiteData:
    """Return a site's counts as the run record keeps them."""
    return SiteData(
        cases=reply.cases,
        labels=reply.labels,
        modalities=reply.modalities,
        masks=reply.masks,
        small_cell_limit=reply.small_cell_limit,
        landmark_epsilon=reply.landmark_epsilon,
        counts_epsilon=reply.counts_epsilon,
        masked=not reply.modalities and not reply.cases,
    )
