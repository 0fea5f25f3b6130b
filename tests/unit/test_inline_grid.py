"""The inline engine's grid, with sites of three lines."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from fedglioma_server.inline import InlineGrid, run_inline

SITES = [{"partition-id": 0}, {"partition-id": 1}, {"partition-id": 2}]


def content(number: float = 1.0) -> RecordDict:
    weights = ArrayRecord({"trunk": Array(np.full(3, number, np.float32))})
    return RecordDict({"weights": weights, "words": ConfigRecord({"said": "hello", "list": [1, 2]})})


def grid_of(client_app: ClientApp, **options: object) -> InlineGrid:
    return InlineGrid(client_app, SITES, {"key": "value"}, **options)


def messages_to(grid: InlineGrid, nodes: list[int]) -> list[Message]:
    return [Message(content(), dst_node_id=node, message_type="train", group_id="7") for node in nodes]


def echo(context_seen: list[Context] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context_seen is not None:
            context_seen.append(context)
        return Message(message.content, reply_to=message)

    return app


def test_every_node_answers_its_message_in_order() -> None:
    grid = grid_of(echo())
    replies = list(grid.send_and_receive(messages_to(grid, [2, 1, 3])))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 1, 3]
    assert all(reply.metadata.group_id == "7" for reply in replies)
    assert not any(reply.has_error() for reply in replies)


def test_nodes_are_numbered_from_one_and_know_their_place() -> None:
    seen: list[Context] = []
    grid = grid_of(echo(seen))
    assert list(grid.get_node_ids()) == [1, 2, 3]
    assert [node.node_id for node in grid.get_nodes()] == [1, 2, 3]
    list(grid.send_and_receive(messages_to(grid, [1, 2, 3])))
    assert [context.node_id for context in seen] == [1, 2, 3]
    assert [context.node_config["partition-id"] for context in seen] == [0, 1, 2]
    assert [context.run_config for context in seen] == [{"key": "value"}] * 3


def test_site_keeps_its_own_state_between_messages_and_no_other_sees_it() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        before = context.state.config_records.get("count", ConfigRecord({"n": 0}))["n"]
        context.state["count"] = ConfigRecord({"n": before + 1})
        return Message(RecordDict({"count": ConfigRecord({"n": before})}), reply_to=message)

    grid = grid_of(app)
    replies = grid.send_and_receive(messages_to(grid, [1, 1, 2, 1]))
    assert [reply.content["count"]["n"] for reply in replies] == [0, 1, 0, 2]


def test_site_that_changes_its_message_does_not_change_the_servers() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        message.content["words"]["said"] = "changed"
        message.content["words"]["list"].append(3)
        message.content["weights"]["trunk"] = Array(np.zeros(3, np.float32))
        message.content["more"] = ConfigRecord({"a": 1})
        return Message(message.content, reply_to=message)

    grid = grid_of(app)
    (message,) = messages_to(grid, [1])
    (reply,) = grid.send_and_receive([message])
    assert reply.content["words"]["said"] == "changed"
    assert set(message.content) == {"weights", "words"}
    assert message.content["words"] == {"said": "hello", "list": [1, 2]}
    np.testing.assert_array_equal(message.content["weights"]["trunk"].numpy(), [1, 1, 1])


def test_sites_that_share_a_content_do_not_see_each_others_changes() -> None:
    app = ClientApp()
    seen = []

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        seen.append(message.content["words"]["said"])
        message.content["words"]["said"] = "changed"
        return Message(RecordDict(), reply_to=message)

    grid = grid_of(app)
    shared = content()
    messages = [Message(shared, dst_node_id=node, message_type="train", group_id="1") for node in (1, 2, 3)]
    list(grid.send_and_receive(messages))
    assert seen == ["hello"] * 3


def test_app_that_crashes_is_an_error_reply_without_its_words() -> None:
    app = ClientApp()

    @app.train()
    def train(_message: Message, context: Context) -> Message:
        if context.node_id == 2:
            raise RuntimeError("no room for /data/patient-17.nii.gz")
        return Message(RecordDict(), reply_to=_message)

    grid = grid_of(app)
    replies = list(grid.send_and_receive(messages_to(grid, [1, 2, 3])))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[1].metadata.src_node_id == 2
    assert "patient" not in replies[1].error.reason
    assert "RuntimeError" in replies[1].error.reason


def test_app_without_the_asked_for_handler_is_an_error_reply() -> None:
    grid = grid_of(ClientApp())
    (reply,) = grid.send_and_receive(messages_to(grid, [1]))
    assert reply.has_error()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interruption_is_not_an_answer(stop: type[BaseException]) -> None:
    app = ClientApp()

    @app.train()
    def train(_message: Message, _context: Context) -> Message:
        raise stop

    grid = grid_of(app)
    with pytest.raises(stop):
        list(grid.send_and_receive(messages_to(grid, [1])))


def test_site_works_only_when_its_reply_is_asked_for() -> None:
    seen: list[Context] = []
    grid = grid_of(echo(seen))
    replies = grid.send_and_receive(messages_to(grid, [1, 2, 3]))
    assert seen == []
    next(iter(replies))
    assert [context.node_id for context in seen] == [1]


def test_grid_keeps_no_reply_that_was_taken() -> None:
    grid = grid_of(echo())
    replies = iter(grid.send_and_receive(messages_to(grid, [1, 2])))
    first = weakref.ref(next(replies))
    next(replies)
    gc.collect()
    assert first() is None


def test_reply_is_given_once() -> None:
    grid = grid_of(echo())
    numbers = list(grid.push_messages(messages_to(grid, [1, 2])))
    assert len(set(numbers)) == 2
    assert len(list(grid.pull_messages(numbers))) == 2
    assert list(grid.pull_messages(numbers)) == []


def test_reply_to_an_unknown_message_is_not_there() -> None:
    assert list(grid_of(echo()).pull_messages(["unknown"])) == []


def test_replies_can_be_pulled_one_by_one() -> None:
    grid = grid_of(echo())
    first, second = grid.push_messages(messages_to(grid, [1, 2]))
    assert [reply.metadata.src_node_id for reply in grid.pull_messages([second])] == [2]
    assert [reply.metadata.src_node_id for reply in grid.pull_messages([first])] == [1]


def test_tap_sees_both_ways_and_the_counter_each_reply() -> None:
    seen: list[Message] = []
    replied: list[None] = []
    grid = grid_of(echo(), tap=seen.append, replied=lambda: replied.append(None))
    list(grid.send_and_receive(messages_to(grid, [3, 1])))
    assert [(m.metadata.src_node_id, m.metadata.dst_node_id) for m in seen] == [
        (1, 3),
        (3, 1),
        (1, 1),
        (1, 1),
    ]
    assert len(replied) == 2


def test_message_can_be_made_by_the_grid() -> None:
    grid = grid_of(echo())
    message = grid.create_message(content(), "train", 2, "5")
    (reply,) = grid.send_and_receive([message])
    assert (reply.metadata.src_node_id, reply.metadata.group_id) == (2, "5")
    assert reply.metadata.reply_to_message_id != ""


def test_server_app_runs_on_as_many_virtual_sites_as_asked_for() -> None:
    server_app = ServerApp()
    found = {}

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        found["nodes"] = list(grid.get_node_ids())
        found["run"] = (grid.run.run_id, context.run_id, context.run_config)

    run_inline(server_app, ClientApp(), sites=4, run_config={"a": "b"})
    assert found["nodes"] == [1, 2, 3, 4]
    assert found["run"][0] == found["run"][1]
    assert found["run"][2] == {"a": "b"}


def test_failure_of_the_server_app_is_the_callers() -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(_grid: Grid, _context: Context) -> None:
        raise ArithmeticError("one and one")

    with pytest.raises(ArithmeticError, match="one and one"):
        run_inline(server_app, ClientApp(), sites=1, run_config={})
