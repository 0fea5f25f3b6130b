"""Rounds over the SuperLink's own state: what is lost is sent again, and every site gets one answer."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedglioma.audit import AuditLog
from fedglioma.config.run import RunConfig
from fedglioma.config.server import ServerConfig
from fedglioma.errors import FedGliomaError
from fedglioma.wire import STATISTICS
from fedglioma_server import linkgrid
from fedglioma_server.evaluation_cohort import EvaluationCohort
from fedglioma_server.linkgrid import MOST_SENDINGS, LinkGrid
from fedglioma_server.runstatus import Stopped
from fedglioma_server.serve import Server
from tests.link_fixture import LARGE, Clock, FakeNode, Link, content, link, messages, nodes


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(linkgrid, "time", found)
    return found


@pytest.fixture
def made(tmp_path) -> Link:
    return link(tmp_path)


@pytest.fixture
def sites(made) -> list[FakeNode]:
    """All three, connected."""
    found = nodes(made)
    for site in found:
        site.connect()
    return found


def by_site(made: Link, replies: list[Message]) -> dict[str, Message]:
    return {made.state.site_of(reply.metadata.src_node_id): reply for reply in replies}


def reason_of(reply: Message) -> tuple[int, str]:
    assert reply.has_error()
    return reply.error.code, reply.error.reason


def usable(made: Link, grid: LinkGrid, *, unusable: tuple[str, ...] = ()) -> list[Message]:
    """Return a round's answers, each judged as it comes."""
    replies = []
    for reply in grid.send_and_receive(messages(made), timeout=60):
        site = made.state.site_of(reply.metadata.src_node_id)
        if site not in unusable and not reply.has_error():
            grid.usable(site)
        replies.append(reply)
    return replies


def nothing() -> None:
    """A turn in which no site does anything."""


def test_every_site_gets_its_message_and_gives_one_answer(made, sites):
    grid = made.grid(*[site.work for site in reversed(sites)])
    replies = list(grid.send_and_receive(messages(made), timeout=20))
    assert [made.state.site_of(r.metadata.src_node_id) for r in replies] == ["zhengzhou", "ningxia", "henan"]
    for site, reply in by_site(made, replies).items():
        assert reply.content["words"]["said"] == [site]
        assert reply.metadata.group_id == "7"
    assert {site: grid.watch.phases[site] for site in made.nodes} == dict.fromkeys(made.nodes, "done")


def test_message_arrives_as_it_was_sent(made, sites):
    seen = []
    grid = made.grid(*[lambda site=site: seen.append(site.take()) or site for site in sites])
    list(grid.send_and_receive(messages(made), timeout=1))
    assert len(seen) == 3
    for message in seen:
        array = message.content["weights"]["trunk"].numpy()
        np.testing.assert_array_equal(array, np.arange(LARGE, dtype=np.float32))


def test_answers_are_given_while_others_still_work(made, sites):
    grid = made.grid(sites[0].work)
    replies = grid.send_and_receive(messages(made), timeout=20)
    assert made.state.site_of(next(replies).metadata.src_node_id) == "henan"


def test_nothing_of_a_round_is_left_in_the_superlink(made, sites):
    list(made.grid(*[site.work for site in sites]).send_and_receive(messages(made), timeout=20))
    assert len(made.state.spool) == 0
    assert not list(made.state.spool.folder.iterdir())
    assert made.state.num_message_ins() == made.state.num_message_res() == 0


def test_grid_keeps_no_reply_that_was_taken(made, sites):
    replies = made.grid(*[site.work for site in sites]).send_and_receive(messages(made), timeout=20)
    first = weakref.ref(next(replies))
    next(replies)
    gc.collect()
    assert first() is None


def test_no_messages_are_no_round(made):
    assert list(made.grid().send_and_receive([], timeout=20)) == []


def test_site_that_comes_while_the_round_waits_is_asked_then(made):
    late = FakeNode(made, "ningxia")
    grid = made.grid(nothing, nothing, late.connect, late.work)
    (reply,) = grid.send_and_receive(messages(made, ["ningxia"]), timeout=20)
    assert not reply.has_error()


def test_site_that_asks_again_without_an_answer_has_lost_the_message_and_gets_it_again(made, sites):
    told = []
    grid = made.grid(
        sites[0].take,
        sites[0].ask,  # it was started again: it asks for work while its last is unanswered
        nothing,
        sites[0].work,
        sent=lambda *facts: told.append(facts),
    )
    (reply,) = grid.send_and_receive(messages(made, ["henan"]), timeout=20)
    assert not reply.has_error()
    assert [(site, group, again) for site, group, _, again in told] == [
        ("henan", "7", False),
        ("henan", "7", True),
    ]


def test_site_that_only_works_long_is_not_sent_the_message_again(made, sites):
    told = []
    taken = []
    grid = made.grid(
        lambda: taken.append(sites[0].take()),
        *[nothing] * 5,
        lambda: sites[0].push(sites[0].reply(taken[0])),
        sent=lambda *facts: told.append(facts),
    )
    (reply,) = grid.send_and_receive(messages(made, ["henan"]), timeout=20)
    assert not reply.has_error()
    assert len(told) == 1


def test_half_an_answer_is_none_and_the_site_is_asked_again(made, sites):
    site = sites[0]
    grid = made.grid(lambda: site.announce(site.reply(site.take())), site.ask, nothing, site.work)
    (reply,) = grid.send_and_receive(messages(made, ["henan"]), timeout=20)
    assert reply.content["words"]["said"] == ["henan"]


def test_message_that_is_lost_again_and_again_is_given_up(made, sites):
    told = []
    turns = [step for _ in range(MOST_SENDINGS) for step in (sites[0].take, sites[0].ask, nothing)]
    grid = made.grid(*turns, sent=lambda *facts: told.append(facts))
    (reply,) = grid.send_and_receive(messages(made, ["henan"]), timeout=20)
    code, reason = reason_of(reply)
    assert code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert f"lost the message {MOST_SENDINGS} times" in reason
    assert len(told) == MOST_SENDINGS


@pytest.mark.parametrize("code", sorted(linkgrid.RETRIED))
def test_site_whose_app_crashed_is_asked_again(code, made, sites):
    site = sites[0]

    def crash() -> None:
        head = site.take()
        reply = site.reply(head)
        error = Message(Error(code, "it crashed"), reply_to=head)
        error.metadata.__dict__["_message_id"] = error.object_id
        assert reply.metadata.reply_to_message_id == error.metadata.reply_to_message_id
        assert site.push(error)

    grid = made.grid(crash, nothing, site.work)
    (reply,) = grid.send_and_receive(messages(made, ["henan"]), timeout=20)
    assert not reply.has_error()


def test_site_that_fails_for_another_reason_is_not_asked_again(made, sites):
    site = sites[0]

    def fail() -> None:
        head = site.take()
        site.reply(head)
        error = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError"), reply_to=head)
        error.metadata.__dict__["_message_id"] = error.object_id
        assert site.push(error)

    (reply,) = made.grid(fail).send_and_receive(messages(made, ["henan"]), timeout=20)
    assert reason_of(reply) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError")


def test_deadline_gives_every_site_its_reason(made, sites, clock):
    sites[2].leave()
    grid = made.grid(sites[0].take)
    replies = by_site(made, list(grid.send_and_receive(messages(made), timeout=1)))
    assert clock.now == pytest.approx(1, abs=0.1)
    assert reason_of(replies["henan"]) == (
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        "no reply before the deadline (phase: train)",
    )
    for site in ("ningxia", "zhengzhou"):
        assert reason_of(replies[site]) == (ErrorCode.NODE_UNAVAILABLE, "not connected")
    assert made.state.num_message_ins() == 0


def test_answer_after_the_deadline_is_refused_and_told(made, sites):
    site, taken = sites[0], []
    grid = made.grid(lambda: taken.append(site.take()))
    list(grid.send_and_receive(messages(made, ["henan"]), timeout=1))
    assert not site.push(site.reply(taken[0]))
    assert made.refused == [("henan", "7", "the reply is late, a duplicate, or to a question never asked")]
    assert len(made.state.spool) == 0


def test_round_waits_for_the_grace_after_the_quorum_and_no_longer(made, sites, clock):
    grid = made.grid(sites[0].work, sites[1].work, sites[2].take, quorum=2, grace_s=1)
    replies = by_site(made, usable(made, grid))
    assert clock.now == pytest.approx(1, abs=0.1)
    assert reason_of(replies.pop("zhengzhou"))[1] == (
        "no reply before the grace after the quorum (phase: train)"
    )
    assert not any(reply.has_error() for reply in replies.values())


def test_answer_within_the_grace_counts(made, sites):
    grid = made.grid(*[site.work for site in sites], quorum=1, grace_s=20)
    assert not any(reply.has_error() for reply in usable(made, grid))


def test_without_a_grace_the_round_waits_for_everybody(made, sites):
    turns = [sites[0].work, sites[1].work, *[nothing] * 20, sites[2].work]
    replies = usable(made, made.grid(*turns, quorum=1))
    assert len(replies) == 3


def test_answers_that_cannot_be_used_do_not_fill_the_quorum(made, sites):
    turns = [sites[0].work, sites[1].work, *[nothing] * 10, sites[2].work]
    replies = usable(made, made.grid(*turns, quorum=2, grace_s=0), unusable=("henan",))
    assert not any(reply.has_error() for reply in replies)


def test_servers_grace_begins_with_as_many_updates_as_the_strategy_needs(made, tmp_path):
    config = ServerConfig(insecure=True, out=tmp_path, run=RunConfig(strategy="multikrum", quorum=2))
    audit = AuditLog(tmp_path / "audit.jsonl")
    grid = Server(config, EvaluationCohort())._make_grid(made, made.run, audit)
    assert grid.terms.quorum == 5


def test_updates_of_an_earlier_round_do_not_fill_the_quorum(made, sites):
    grid = made.grid(*[site.work for site in sites], quorum=3, grace_s=0)
    usable(made, grid)
    grid.steps = [sites[0].work, *[nothing] * 10, sites[1].work, sites[2].work]
    assert not any(reply.has_error() for reply in usable(made, grid))


def test_statistics_round_knows_no_grace(made, sites):
    turns = [sites[0].work, sites[1].work, *[nothing] * 10, sites[2].work]
    asked = messages(made, kind=STATISTICS)
    replies = list(made.grid(*turns, quorum=1, grace_s=0).send_and_receive(asked, timeout=60))
    assert not any(reply.has_error() for reply in replies)


def test_answer_that_names_another_sender_inside_is_no_answer(made, sites):
    site, other = sites[0], sites[1]

    def forge() -> None:
        assert site.push(site.reply(site.take(), sender=other.number), sender=site.number)

    (reply,) = made.grid(forge).send_and_receive(messages(made, ["henan"]), timeout=20)
    assert "names another sender inside than outside" in reason_of(reply)[1]


def test_revoked_site_is_answered_for_at_once_and_the_others_go_on(made, sites):
    grid = made.grid(
        sites[0].take,
        lambda: made.state.expel(made.keys["henan"]),
        sites[1].work,
        sites[2].work,
    )
    replies = by_site(made, list(grid.send_and_receive(messages(made), timeout=20)))
    assert reason_of(replies.pop("henan")) == (ErrorCode.NODE_UNAVAILABLE, "its key was revoked")
    assert not any(reply.has_error() for reply in replies.values())


def test_site_that_is_revoked_while_it_is_asked_leaves_nothing_behind(made, sites, monkeypatch):
    asked = messages(made, ["henan"])
    store = made.state.store_message_ins

    def revoked_first(message: Message) -> str | None:
        made.state.expel(made.keys["henan"])
        return store(message)

    monkeypatch.setattr(made.state, "store_message_ins", revoked_first)
    (reply,) = made.grid().send_and_receive(asked, timeout=20)
    assert reason_of(reply) == (ErrorCode.NODE_UNAVAILABLE, "its key was revoked")
    assert len(made.state.spool) == 0


def test_group_that_a_site_names_cannot_forge_a_line_of_the_log(made, sites, caplog):
    site, other = sites[0], sites[1]

    def forge() -> None:
        reply = site.reply(site.take(), sender=other.number)
        reply.metadata.group_id = "7\nWARNING all is well\x1b[2J"
        reply.metadata.__dict__["_message_id"] = reply.object_id
        assert site.push(reply, sender=site.number)

    list(made.grid(forge).send_and_receive(messages(made, ["henan"]), timeout=20))
    (said,) = [record.getMessage() for record in caplog.records if record.name == linkgrid.__name__]
    assert said.isprintable()


def test_full_disk_ends_the_wait_with_words(made, sites, monkeypatch):
    made.state.spool.failure = OSError(28, "No space left on device")
    with pytest.raises(FedGliomaError, match=r"No space left on device; free some space and start again"):
        list(made.grid().send_and_receive(messages(made), timeout=20))


def test_run_that_flower_ended_is_said_so(made, sites):
    grid = made.grid(lambda: made.state.stop_run(made.run))
    with pytest.raises(FedGliomaError, match="Flower ended the run; start the server again"):
        list(grid.send_and_receive(messages(made), timeout=20))


def test_stop_ends_the_wait_for_sites_but_not_a_training_round(made, sites):
    asked: list[bool] = []
    grid = made.grid(sites[0].work, stopping=lambda: bool(asked))
    asked.append(True)
    with pytest.raises(Stopped):
        list(grid.send_and_receive(messages(made, ["henan"], STATISTICS), timeout=20))
    made.state.withdraw(list(made.state.message_ins_store))
    grid = made.grid(sites[0].work, stopping=lambda: True)
    (reply,) = grid.send_and_receive(messages(made, ["henan"]), timeout=20)
    assert not reply.has_error()


def test_phase_of_a_site_is_followed_to_its_answer(made, sites):
    site, seen, held = sites[0], [], {}
    grid = made.grid(
        nothing,
        lambda: seen.append(grid.watch.phases["henan"]),
        lambda: held.update(head=site.ask()),
        lambda: seen.append(grid.watch.phases["henan"]),
        lambda: held.update(message=site.read(held["head"])) or site.received(held["head"]),
        lambda: seen.append(grid.watch.phases["henan"]),
        lambda: held.update(reply=site.reply(held["message"])) or site.announce(held["reply"]),
        lambda: seen.append(grid.watch.phases["henan"]),
    )
    list(grid.send_and_receive(messages(made, ["henan"]), timeout=1))
    assert seen == ["waiting", "download", "train", "upload"]
    assert grid.watch.phases["henan"] == "missed"


def test_strategy_can_still_push_and_pull_by_itself(made, sites):
    grid = made.grid()
    numbers = list(grid.push_messages(messages(made)))
    assert len(set(numbers)) == 3
    assert sorted(grid.get_node_ids()) == sorted(made.nodes.values())
    sites[1].work()
    (reply,) = grid.pull_messages(numbers)
    assert reply.metadata.src_node_id == sites[1].number
    assert list(grid.pull_messages(numbers)) == []
    assert grid.run.run_id == made.run
    message = grid.create_message(content("hello"), "train", sites[0].number, "8")
    assert message.metadata.group_id == "8"
