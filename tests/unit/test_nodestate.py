"""What a site still answers: the newest question, and nothing that was given up."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity

from fedglioma_client.nodestate import SiteNodeState


@pytest.fixture
def state() -> SiteNodeState:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 1, 1
    return SiteNodeState(InMemoryObjectStore())


def question(state: SiteNodeState, words: str) -> Message:
    message = Message(
        RecordDict({"a": ConfigRecord({"b": words})}), dst_node_id=5, message_type="train", group_id="1"
    )
    put(state, message)
    state.store_message(message)
    return message


def put(state: SiteNodeState, message: Message) -> None:
    message.metadata.__dict__["_message_id"] = message.object_id
    state.object_store.preregister(7, get_object_tree(message))
    for number, item in get_all_nested_objects(message).items():
        state.object_store.put(number, item.deflate())


def answer(state: SiteNodeState, message: Message) -> str | None:
    reply = Message(RecordDict({"a": ConfigRecord({"b": "yes"})}), reply_to=message)
    put(state, reply)
    return state.store_message(reply)


def waiting(state: SiteNodeState, *, replies: bool) -> int:
    return len(state.get_messages_legacy(is_reply=replies))


def test_the_newest_question_is_answered(state: SiteNodeState) -> None:
    asked = question(state, "one")
    assert waiting(state, replies=False) == 1
    assert answer(state, asked) is not None
    assert waiting(state, replies=True) == 1


def test_a_new_question_drops_the_one_that_was_given_up_with_all_its_objects(state: SiteNodeState) -> None:
    question(state, "one")
    newer = question(state, "two")
    (found,) = state.get_messages_legacy(is_reply=False)
    assert found.metadata.message_id == newer.metadata.message_id
    assert len(state.object_store) == len(get_all_nested_objects(newer))


def test_an_answer_to_a_question_that_was_given_up_is_dropped(state: SiteNodeState) -> None:
    older = question(state, "one")
    newer = question(state, "two")
    before = len(state.object_store)
    assert answer(state, older) is None
    assert waiting(state, replies=True) == 0
    assert len(state.object_store) == before
    assert answer(state, newer) is not None


def test_an_answer_that_was_not_sent_yet_goes_when_the_next_question_comes(state: SiteNodeState) -> None:
    older = question(state, "one")
    assert answer(state, older) is not None
    question(state, "two")
    assert waiting(state, replies=True) == 0
