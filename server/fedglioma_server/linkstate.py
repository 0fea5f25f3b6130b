"""What Flower's SuperLink knows of nodes and messages, with what our rounds need to know besides.

Flower notes when a node was last active, but not whether a message that it took was lost. A node asks
for its next message only when it has nothing to do. One that asks while a message it took is without
a reply has therefore lost it, whatever the cause: it was restarted, the answer to its request did not
arrive, its own reply could not be sent.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import (
    FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE,
    HEARTBEAT_MIN_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    Status,
    SubStatus,
)
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import is_valid_sha256_hash, iterate_object_tree
from flwr.supercore.run import RunStatus
from flwr.superlink.federation import FederationManager, NoOpFederationManager

from fedglioma.errors import FedGliomaError
from fedglioma.seeds import derive_seed
from fedglioma_server.gate import CALLER
from fedglioma_server.objects import SpoolStore
from fedglioma_server.sitewords import site_words

logger = logging.getLogger(__name__)

LONGEST_GROUP = 20
_HEARTBEAT_S = 20.0

Refused = Callable[[str, str, str], None]
"""Told of a site's message that was refused: site, round, reason."""


@dataclass(frozen=True)
class NodeView:
    """A site's connection."""

    site: str
    node: int
    online: bool


class SiteLinkState(InMemoryLinkState):
    """Flower's state in memory: nodes are sites with known keys, one run at a time.

    A site's node number follows from its key, so that it stays the same when the server is started
    again and sites that are still connected are recognised at their next heartbeat.

    Parameters
    ----------
    store : SpoolStore
        Where the messages' objects wait.
    most_objects : int
        Objects that one reply may consist of; one with more is refused before any of it is taken.
    refused : callable
        Told of every reply that is not taken.
    """

    def __init__(
        self,
        store: SpoolStore,
        *,
        most_objects: int,
        refused: Refused = lambda _site, _round, _reason: None,
        federation_manager: FederationManager | None = None,
    ) -> None:
        super().__init__(federation_manager or NoOpFederationManager(), store)
        self.spool = store
        self.most_objects = most_objects
        self.most_bytes = most_objects * FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
        self._refused = refused
        self._site_of: dict[int, str] = {}
        self._asked_at: dict[int, float] = {}
        self._delivered_at: dict[str, float] = {}
        self._trees: dict[str, list[str]] = {}
        self._run_id: int | None = None
        self._closing = threading.Event()

    def admit(self, site: str, public_key: bytes) -> int:
        """Return the node number of a site, which from now on may connect with this key."""
        with self.lock:
            known = self.node_public_key_to_node_id.get(public_key)
            if known is not None:
                if self.nodes[known].status == NodeStatus.UNREGISTERED:
                    self.nodes[known].status = NodeStatus.REGISTERED
                self._site_of[known] = site
                return known
            drawn = self.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0, name=site)
            node = derive_seed("node", public_key.hex())
            info = self.nodes.pop(drawn)
            info.node_id = node
            self.nodes[node] = info
            self.node_public_key_to_node_id[public_key] = node
            owned = self.owner_to_node_ids[NOOP_FLWR_AID]
            owned.discard(drawn)
            owned.add(node)
            self._site_of[node] = site
            return node

    def expel(self, public_key: bytes) -> None:
        """Refuse a key from now on; what it sent and what waits for it is dropped."""
        with self.lock:
            node = self.get_node_id_by_public_key(public_key)
            if node is None:
                return
            self.delete_node(NOOP_FLWR_AID, node)
            self.withdraw(
                [number for number, m in self.message_ins_store.items() if m.metadata.dst_node_id == node]
            )

    def site_of(self, node: int) -> str:
        """Return a node's site."""
        return self._site_of.get(node, "unknown")

    def sites(self) -> list[NodeView]:
        """Return all sites that may connect, by name, and whether they are connected."""
        with self.lock:
            return sorted(
                (
                    NodeView(self.site_of(info.node_id), info.node_id, info.status == NodeStatus.ONLINE)
                    for info in self.get_node_info()
                    if info.status != NodeStatus.UNREGISTERED
                ),
                key=lambda view: view.site,
            )

    def begin_run(self, fab_hash: str, fab_version: str) -> int:
        """Return the number of a new run that is marked as running, and stays so until ``close``.

        Raises
        ------
        FedGliomaError
            Flower did not take the run.
        """
        run_id = self.create_run(
            fab_id="fedglioma/fedglioma",
            fab_version=fab_version,
            fab_hash=fab_hash,
            override_config={},
            federation_id=next(iter(self.federation_manager.get_federations(NOOP_FLWR_AID))).id,
            federation_config=None,
            flwr_aid=NOOP_FLWR_AID,
            primary_task_type=TaskType.SERVER_APP,
        )
        task = self.run_ids[run_id].run.primary_task_id if run_id else None
        if task is None or self.claim_task(task) is None or not self.activate_task(task):
            raise FedGliomaError("Flower refused to start the run")
        self._run_id = run_id
        threading.Thread(target=self._keep_alive, args=(task,), name="run-heartbeat", daemon=True).start()
        return run_id

    def _keep_alive(self, task: int) -> None:
        while not self._closing.wait(_HEARTBEAT_S):
            self.acknowledge_task_heartbeat(task)

    def close(self) -> None:
        """End the run's heartbeat."""
        self._closing.set()

    def running(self) -> bool:
        """Whether the run is still marked as running."""
        with self.lock:
            return self._run_id is not None and self._get_run(self._run_id).status.status == Status.RUNNING

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Return what waits for a node, noting that it asked and what it took."""
        with self.lock:
            # Who asks for work is there: a node that outlived the server need not wait for its heartbeat.
            self.acknowledge_node_heartbeat(node_id, HEARTBEAT_MIN_INTERVAL)
            self._asked_at[node_id] = time.monotonic()
            taken = super().get_message_ins(node_id, limit, run_id=run_id)
            for message in taken:
                self._delivered_at[message.metadata.message_id] = time.monotonic()
            return taken

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """Take a site's reply; its objects follow one by one."""
        objects = [tree.object_id for tree in iterate_object_tree(object_tree)]
        sent = message.metadata
        site = self.site_of(sent.src_node_id)
        caller = CALLER.get()
        if caller and caller != site:
            self._refuse(caller, sent.group_id, f"it names {site} as its sender")
            return False, []
        if object_tree.object_id != sent.message_id:
            self._refuse(site, sent.group_id, "its objects belong to another message")
            return False, []
        if len(objects) > self.most_objects:
            self._refuse(site, sent.group_id, f"a reply of {len(objects)} objects is too large")
            return False, []
        if not all(map(is_valid_sha256_hash, objects)):  # Flower would take the reply, and then fail
            self._refuse(site, sent.group_id, "its objects have no digests for names")
            return False, []
        with self.lock:
            stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            if stored:
                self._trees[sent.message_id] = objects
                return stored, missing
        self._refuse(site, sent.group_id, "the reply is late, a duplicate, or to a question never asked")
        return stored, missing

    def _refuse(self, site: str, group: str, reason: str) -> None:
        told = site_words(group)[:LONGEST_GROUP] or "?"
        logger.warning("round %s: a reply of %s is refused: %s", told, site, reason)
        self._refused(site, told, reason)

    def get_run_status(self, run_ids: set[int]) -> dict[int, RunStatus]:
        """Return the runs' statuses; one that an earlier start of the server began counts as finished.

        Flower would fail on it, and a site that still works for it would not learn that nobody waits.
        """
        found = super().get_run_status(run_ids)
        earlier = RunStatus(Status.FINISHED, SubStatus.STOPPED, "the server was started again")
        return {run_id: found.get(run_id, earlier) for run_id in run_ids}

    def cleanup_run(self, run_id: int) -> None:
        """Forget a finished run's messages; there are none of a run that an earlier start began."""
        if run_id in self.run_ids:
            super().cleanup_run(run_id)

    def _on_push_session_expired(self, message_object_ids: set[str]) -> None:
        """Forget what an upload that was given up had begun.

        Flower calls this with its upload lock held, and takes the two locks in the other order elsewhere:
        another thread must do it.
        """
        forget = super()._on_push_session_expired
        threading.Thread(target=forget, args=(set(message_object_ids),), daemon=True).start()

    def belongs(self, node: int) -> bool:
        """Whether a node may still connect."""
        with self.lock:
            info = self.nodes.get(node)
            return info is not None and info.status != NodeStatus.UNREGISTERED

    def lost(self, message_id: str) -> bool:
        """Whether a message was taken by its node, which then came back for another without a reply."""
        with self.lock:
            message = self.message_ins_store.get(message_id)
            if message is None:
                return True
            if self.complete_reply(message_id) is not None:
                return False
            delivered = self._delivered_at.get(message_id)
            asked = self._asked_at.get(message.metadata.dst_node_id)
            return delivered is not None and asked is not None and asked > delivered

    def phase(self, message_id: str) -> str:
        """Return what a site does with a message: waiting, download, train, upload."""
        with self.lock:
            if message_id not in self._delivered_at:
                return "waiting"
            if self.message_ins_id_to_message_res_id.get(message_id):
                return "upload"
            return "download" if message_id in self.spool else "train"

    def complete_reply(self, message_id: str) -> Message | None:
        """Return the head of the reply to a message once everything that it consists of is here."""
        with self.lock:
            number = self.message_ins_id_to_message_res_id.get(message_id)
            if number is None:
                return None
            whole = self.spool.has_all(self._trees.get(number, []))
            return self.message_res_store[number] if whole else None

    def withdraw(self, message_ids: Sequence[str]) -> None:
        """Forget messages, their replies and all their objects; a reply that comes later is refused."""
        with self.lock:
            for number in message_ids:
                reply = self.message_ins_id_to_message_res_id.get(number)
                self.delete_messages({number})
                self.spool.delete(number)
                self._delivered_at.pop(number, None)
                if reply is not None:
                    self.spool.delete(reply)
                    self._trees.pop(reply, None)
