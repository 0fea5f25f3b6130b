"""What the SuperLink of this process knows of sites and their messages, beyond Flower's own."""

import pytest
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, Status
from flwr.proto.message_pb2 import ObjectTree

from fedglioma_server.gate import CALLER
from tests.link_fixture import FakeNode, Link, content, link, messages, nodes


@pytest.fixture
def made(tmp_path) -> Link:
    return link(tmp_path)


@pytest.fixture
def henan(made) -> FakeNode:
    site = nodes(made)[0]
    site.connect()
    return site


def send(made: Link) -> str:
    """Send henan a message, and return its number."""
    (number,) = made.grid().push_messages(messages(made, ["henan"]))
    return number


def test_number_of_a_site_follows_from_its_key_alone(made, tmp_path):
    again = link(tmp_path / "again", ["zhengzhou", "henan"])
    assert again.nodes["henan"] == made.nodes["henan"]
    assert len(set(made.nodes.values())) == 3
    assert made.state.admit("henan", made.keys["henan"]) == made.nodes["henan"]


def test_site_is_connected_once_it_says_so_and_away_when_it_leaves(made, henan):
    assert {view.site: view.online for view in made.state.sites()} == {
        **{"henan": True, "ningxia": False, "zhengzhou": False}
    }
    henan.leave()
    assert not any(view.online for view in made.state.sites())


def test_site_that_asks_for_work_is_there_even_after_the_server_was_started_again(made):
    site = FakeNode(made, "henan")
    assert site.ask() is None
    assert made.state.sites()[0].online
    assert made.state.nodes[site.number].heartbeat_interval == HEARTBEAT_MIN_INTERVAL


def test_revoked_site_is_gone_with_what_waited_for_it(made, henan):
    send(made)
    made.state.expel(made.keys["henan"])
    assert "henan" not in {view.site for view in made.state.sites()}
    assert not made.state.belongs(henan.number)
    assert made.state.get_node_id_by_public_key(made.keys["henan"]) is None
    assert made.state.num_message_ins() == 0
    made.state.expel(made.keys["henan"])
    made.state.expel(b"of nobody")


def test_revoked_site_leaves_nothing_of_its_reply(made, henan):
    send(made)
    assert henan.push(henan.reply(henan.take()))
    made.state.expel(made.keys["henan"])
    assert len(made.state.spool) == 0
    assert not list(made.state.spool.folder.iterdir())
    assert made.state.num_message_res() == 0


def test_key_whose_file_was_renamed_speaks_for_the_new_name(made, henan):
    assert made.state.admit("xinyang", made.keys["henan"]) == henan.number
    assert made.state.site_of(henan.number) == "xinyang"
    assert [view.site for view in made.state.sites() if view.online] == ["xinyang"]


def test_site_that_never_connected_can_be_revoked_too(made):
    made.state.expel(made.keys["zhengzhou"])
    assert "zhengzhou" not in {view.site for view in made.state.sites()}


def test_site_that_is_let_in_again_is_the_same_node(made, henan):
    made.state.expel(made.keys["henan"])
    assert made.state.admit("henan", made.keys["henan"]) == henan.number
    assert made.state.belongs(henan.number)
    henan.connect()


def test_run_counts_as_running_until_flower_ends_it(made):
    assert made.state.running()
    made.state.stop_run(made.run)
    assert not made.state.running()


def test_run_of_an_earlier_start_counts_as_finished(made):
    found = made.state.get_run_status({made.run, 4711})
    assert found[made.run].status == Status.RUNNING
    assert found[4711].status == Status.FINISHED
    made.state.cleanup_run(4711)


def test_message_is_lost_once_its_node_asks_again_without_an_answer(made, henan):
    number = send(made)
    assert not made.state.lost(number)
    head = henan.ask()
    assert head is not None
    assert not made.state.lost(number)
    assert henan.ask() is None
    assert made.state.lost(number)
    assert made.state.lost("unknown")


def test_reply_is_complete_when_all_of_it_is_here(made, henan):
    number = send(made)
    reply = henan.reply(henan.take())
    assert made.state.complete_reply(number) is None
    assert henan.announce(reply) is not None
    assert made.state.complete_reply(number) is None
    assert made.state.phase(number) == "upload"
    assert henan.push(reply)
    found = made.state.complete_reply(number)
    assert found is not None
    assert found.metadata.reply_to_message_id == number


def test_withdrawn_message_leaves_nothing_and_its_reply_is_refused(made, henan):
    number = send(made)
    reply = henan.reply(henan.take())
    assert henan.push(reply)
    made.state.withdraw([number])
    assert len(made.state.spool) == 0
    assert made.state.num_message_res() == 0
    assert not henan.push(reply)
    assert made.refused == [("henan", "7", "the reply is late, a duplicate, or to a question never asked")]


def test_second_reply_is_refused(made, henan):
    send(made)
    message = henan.take()
    assert henan.push(henan.reply(message))
    assert not henan.push(henan.reply(message, content("another")))
    assert len(made.refused) == 1


def test_reply_in_anothers_name_is_refused_by_the_key_that_sent_it(made, henan):
    send(made)
    message = henan.take()
    token = CALLER.set("ningxia")
    try:
        assert not henan.push(henan.reply(message))
    finally:
        CALLER.reset(token)
    assert made.refused == [("ningxia", "7", "it names henan as its sender")]
    assert henan.push(henan.reply(message))


def test_reply_to_anothers_message_is_refused(made, henan):
    send(made)
    message = henan.take()
    ningxia = FakeNode(made, "ningxia")
    assert not ningxia.push(ningxia.reply(message))
    assert made.refused[0][0] == "ningxia"


def test_reply_whose_objects_are_not_named_by_digests_is_refused(made, henan):
    number = send(made)
    reply = henan.reply(henan.take())
    reply.metadata.__dict__["_message_id"] = "x"
    session = made.state.start_session(made.run)
    stored, _ = made.state.store_message_and_object_tree(reply, ObjectTree(object_id="x"), session)
    assert not stored
    assert made.state.complete_reply(number) is None
    assert made.refused == [("henan", "7", "its objects have no digests for names")]


def test_reply_of_too_many_objects_is_refused_before_any_is_taken(tmp_path):
    made = link(tmp_path, most=4)
    henan = nodes(made)[0]
    henan.connect()
    send(made)
    reply = henan.reply(henan.take())
    before = len(made.state.spool)
    assert not henan.push(reply)
    assert made.refused == [("henan", "7", "a reply of 6 objects is too large")]
    assert len(made.state.spool) == before
    tree = ObjectTree(object_id=reply.object_id)
    for _ in range(5000):
        tree.children.append(ObjectTree(object_id="0" * 64))
    assert (
        made.state.store_message_and_object_tree(reply, tree, made.state.start_session(made.run))[0] is False
    )
