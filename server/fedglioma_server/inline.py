"""The inline engine: Flower's Grid in one process, without network, Ray or polling.

The same ServerApp and ClientApp objects run as in a deployment; only the road between them is short.
Sites answer one after the other in the caller's thread, which makes a run repeatable to the bit, keeps
one network in memory at a time and lets Ctrl-C end it at once. A round's time limit does not apply: a
site that hangs hangs the run.
"""

import copy
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedglioma.wire import SECURE
from fedglioma_server.grid import OwnGrid

FIRST_NODE = 1
Tap = Callable[[Message], None]
"""Told of every message as it would travel, both ways."""


class InlineGrid(OwnGrid):
    """A grid whose nodes are contexts of this process.

    Parameters
    ----------
    client_app : ClientApp
        What every site runs.
    node_configs : sequence of dict
        One per virtual site; node numbers count from 1 in this order.
    run_config : dict
        Flower's run configuration, the same for all.
    tap : callable, optional
        Sees every message; tests look for leaks here.
    replied : callable, optional
        Called after each reply; drives the progress bar.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Sequence[dict[str, str | int]],
        run_config: dict[str, str],
        *,
        tap: Tap | None = None,
        replied: Callable[[], None] | None = None,
    ) -> None:
        self._app = client_app
        self._tap = tap
        self._replied = replied
        self._run = Run.create_empty(run_id=secrets.randbits(62))
        # Flower lets a message be made only inside a task; outside its runtime the task is ours to name.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = self._run.run_id, 1, 1
        self._contexts = {
            FIRST_NODE + index: Context(
                run_id=self._run.run_id,
                node_id=FIRST_NODE + index,
                node_config=dict(config),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for index, config in enumerate(node_configs)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Replace the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of all nodes; they never disconnect."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes as Flower describes them."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the site's app on each message, one after the other, and keep the replies."""
        numbers = []
        for message in messages:
            number = secrets.token_hex(16)
            self._replies[number] = self._exchange(message, number)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, each once."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield a reply for every message; a site works when its reply is asked for."""
        for message in messages:
            yield self._exchange(message, secrets.token_hex(16))

    def _exchange(self, message: Message, number: str) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        sent = message.metadata
        delivered = Message(
            _copied(message.content),
            sent.dst_node_id,
            sent.message_type,
            ttl=sent.ttl,
            group_id=sent.group_id,
        )
        delivered.metadata.__dict__["_message_id"] = number
        if self._tap is not None:
            self._tap(delivered)
        try:
            reply = self._app(delivered, context)
        except (
            Exception
        ) as error:  # as Flower's own runtime does: a failed app is an error reply, not a failed run
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code, type(error).__name__), reply_to=delivered)
        if self._tap is not None:
            self._tap(reply)
        if self._replied is not None and delivered.metadata.message_type != SECURE:
            self._replied()
        return reply


def _copied(content: RecordDict) -> RecordDict:
    """Return a copy whose records are the receiver's own; an array's bytes cannot change and are shared."""
    return RecordDict(
        {
            key: ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else copy.deepcopy(record)
            for key, record in content.items()
        }
    )


def run_inline(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    sites: int,
    run_config: dict[str, str],
    tap: Tap | None = None,
    replied: Callable[[], None] | None = None,
) -> None:
    """Run a federation of virtual sites to its end, in this process."""
    nodes: list[dict[str, str | int]] = [
        {"partition-id": index, "num-partitions": sites} for index in range(sites)
    ]
    grid = InlineGrid(client_app, nodes, run_config, tap=tap, replied=replied)
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server_app(grid, context)
