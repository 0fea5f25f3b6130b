"""The SuperNode's memory with one rule more: only the newest question is answered.

A SuperNode takes a message, waits for a reply, any reply, and sends it. When it gives a message up
half-way (the server was started again while the weights came down), Flower leaves what it had of it: a
worker that waits for the rest would wait for ever, and one that answers it nevertheless would be one
question behind from then on. The SuperNode takes a message only when it has done with the one before, so
whatever is here when a new one comes was given up.
"""

from flwr.app import Message
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState


class SiteNodeState(InMemoryNodeState):
    """Flower's state in memory that holds one question and its answer."""

    def __init__(self, object_store: ObjectStore) -> None:
        super().__init__(object_store)
        self._question = ""

    def store_message(self, message: Message) -> str | None:
        """Store a question, and forget the one before; or the answer to the question that is here.

        None for the answer to another question: nobody waits for it, and its objects are dropped.
        """
        number, answers = message.metadata.message_id, message.metadata.reply_to_message_id
        with self.lock_msg_store:
            if not answers:
                if number != self._question:
                    self._forget()
                    self._question = number
            elif answers != self._question:
                self.object_store.delete(number)
                return None
            return super().store_message(message)

    def _forget(self) -> None:
        for number in list(self.msg_store):
            self.object_store.delete(number)
        self.delete_messages()
