"""The exchanges around a masked sum over the sites of a grid: keys, shares, then who is in it, and the end.

The sum itself is ``privacy/masked_server.py``'s. Whoever does not answer an exchange is left out, with the
reason, and the sum goes on as long as there are enough.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedglioma.config.run import RunConfig
from fedglioma.errors import AggregationError, ProtocolError, QuorumError
from fedglioma.masked_update import subject
from fedglioma.privacy.fixed_point import Part, Words
from fedglioma.privacy.masked_server import MaskedSum
from fedglioma.privacy.masked_wire import FEWEST_SITES, MOST_SITES, Inbox, Session
from fedglioma.wire import SECURE, Refusal, SecureReply, SecureRequest, body_of, is_refusal, request_record
from fedglioma_server.sitewords import site_words

logger = logging.getLogger(__name__)


class SecureSum:
    """One masked sum, from the first key to the total.

    Parameters
    ----------
    grid : Grid
        Carries the messages.
    settings : RunConfig
        Terms of the run, which every site checks against its policy each time.
    purpose : {"statistics", "train"}
    about : str
        What all sites must agree on besides.
    parts : sequence of Part
        What is added up.
    sites : mapping
        Node -> site, of those who are asked; a site's name is None where it is not known before it answers.
    run : str
        What tells the run from every other.
    round_number : int
        Of the round, 0 for the statistics.

    Raises
    ------
    QuorumError
        There are too few sites for any masked sum.
    """

    def __init__(
        self,
        grid: Grid,
        settings: RunConfig,
        purpose: str,
        *,
        about: str,
        parts: Sequence[Part],
        sites: Mapping[int, str | None],
        run: str,
        round_number: int,
    ) -> None:
        if not FEWEST_SITES <= len(sites) <= MOST_SITES:
            raise QuorumError(
                f"secure sum: {len(sites)} sites, {FEWEST_SITES} to {MOST_SITES} can hide among each other"
            )
        self._grid, self._settings, self._purpose = grid, settings, purpose
        self._round = round_number
        self._nodes: dict[int, str | None] = dict(sites)
        self.session = Session(
            subject=subject(purpose, run, round_number),
            # Later than any before, also of a server that was started again.
            attempt=time.time_ns() // 1_000_000,
            parts=tuple(parts),
            sites=len(sites),
            minimum=max(FEWEST_SITES, min(settings.quorum, len(sites))),
            about=about,
        )
        self._sum = MaskedSum(self.session)
        self.left_out: dict[str, str] = {}

    def open(self, first_wait_s: float | None = None) -> dict[int, Inbox]:
        """Exchange keys and shares, and return what each site needs to mask its answer, by node.

        Parameters
        ----------
        first_wait_s : float, optional
            Seconds for the first exchange, where sites may still be on their way.

        Raises
        ------
        QuorumError
            Too few sites answered.
        """
        self._ask({"begin": True}, self._take_offer, first_wait_s)
        roster = self._sum.roster()
        self._keep({offer.site for offer in roster.offers})
        self._ask({"roster": roster}, self._take_shares)
        self._keep(set(self._sum.state.shares))
        return {node: self._sum.inbox(site) for node, site in self._nodes.items() if site is not None}

    def add(self, site: str, vector: Words) -> None:
        """Add a site's masked vector to the sum.

        Raises
        ------
        ProtocolError
            It is not of this sum, or not the first.
        """
        self._sum.add_vector(site, vector)

    @property
    def added(self) -> tuple[str, ...]:
        """The sites whose vectors are in the sum so far."""
        return self._sum.state.added

    def close(self) -> tuple[Words, tuple[str, ...]]:
        """Let the survivors unmask the sum, and return it and who is in it.

        Raises
        ------
        QuorumError
            Too few sites are in it, or helped to unmask it.
        AggregationError
            What they sent does not unmask it.
        """
        survivors = self._sum.survivors()
        self._keep(set(survivors.survivors))
        self._ask({"survivors": survivors}, self._take_consent)
        self._ask({"unmask": self._sum.request()}, self._take_revealed)
        return self._sum.total(), survivors.survivors

    def _keep(self, sites: set[str]) -> None:
        self._nodes = {node: site for node, site in self._nodes.items() if site in sites}

    def _ask(
        self, asked: dict[str, object], take: Callable[[SecureReply], None], wait_s: float | None = None
    ) -> None:
        """Ask all sites that are still in it, and take what they answer; who does not is noted."""
        request = SecureRequest.model_validate(
            {"settings": self._settings, "purpose": self._purpose, "session": self.session, **asked}
        )
        content = request_record(request)
        messages = [
            Message(content, dst_node_id=node, message_type=SECURE, group_id=str(self._round))
            for node in self._nodes
        ]
        wait = self._settings.secure_wait_s if wait_s is None else wait_s
        for reply in self._grid.send_and_receive(messages, timeout=wait):
            node = reply.metadata.src_node_id
            try:
                take(self._answer(reply))
            except (ProtocolError, AggregationError) as error:
                self._note(node, str(error))

    def _answer(self, reply: Message) -> SecureReply:
        node = reply.metadata.src_node_id
        if node not in self._nodes:
            raise ProtocolError("it was not asked")
        if reply.has_error():
            raise ProtocolError(str(reply.error.reason or f"Flower error {reply.error.code}"))
        if is_refusal(reply.content):
            refusal = body_of(reply.content, Refusal)
            raise ProtocolError(f"{refusal.error}: {refusal.reason}")
        answer = body_of(reply.content, SecureReply)
        known = self._nodes[node]
        if known is None:
            self._nodes[node] = answer.site
        elif answer.site != known:
            raise ProtocolError(f"it calls itself {answer.site}, its key is that of {known}")
        return answer

    def _note(self, node: int, reason: str) -> None:
        site, words = site_words(self._nodes.get(node) or f"node {node}"), site_words(reason)
        self.left_out[site] = words
        logger.warning("round %d: %s is not in the masked sum: %s", self._round, site, words)

    def _take_offer(self, reply: SecureReply) -> None:
        if reply.offer is None or reply.offer.site != reply.site:
            raise ProtocolError("it sent no keys of its own")
        self._sum.add_offer(reply.offer)

    def _take_shares(self, reply: SecureReply) -> None:
        if reply.shares is None or reply.shares.site != reply.site:
            raise ProtocolError("it sent no shares of its own")
        self._sum.add_shares(reply.shares)

    def _take_consent(self, reply: SecureReply) -> None:
        if reply.consent is None or reply.consent.site != reply.site:
            raise ProtocolError("it sent no consent of its own")
        self._sum.add_consent(reply.consent)

    def _take_revealed(self, reply: SecureReply) -> None:
        if reply.revealed is None or reply.revealed.site != reply.site:
            raise ProtocolError("it sent no shares of its own")
        self._sum.add_revealed(reply.revealed)
