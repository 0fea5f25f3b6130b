"""The roll call of a deployed run: who takes part, who is left out; one site cannot stop the others."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from fedglioma.case import GENES
from fedglioma.errors import QuorumError
from fedglioma.training.learner import layout_of
from fedglioma.weights import GROUPS
from fedglioma.wire import FINISHED, Refusal, StatisticsReply, reply_to
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.inline import InlineGrid
from fedglioma_server.roll import Roll
from fedglioma_server.runfolder import RunFolder
from tests.federation_fixture import TINY, make_plan

MEMBERS = {11: "henan", 12: "ningxia", 13: "zhengzhou"}
LAYOUT = layout_of(TINY).digest


def said(site: str, **changes: Any) -> StatisticsReply:
    """Return what a site says of itself."""
    table = {
        **{"site": site, "version": "0", "layout": LAYOUT, "cases": 10, "small_cell_limit": 1},
        **{"labels": dict.fromkeys(GENES, (5, 5, 0)), "modalities": {}},
        "weights": dict.fromkeys(GROUPS, 10.0),
    }
    return StatisticsReply.model_validate(table | changes)


class Sites(InlineGrid):
    """Sites whose answers a test writes down; who is connected can change."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(lambda *_: None, [{}], {})  # type: ignore[arg-type]
        self.answers = answers
        self.online = set(MEMBERS)
        self.since = "then"
        self.asked: list[tuple[str, str]] = []

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.online)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at=self.since) for node in self.get_node_ids()]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            site = MEMBERS[message.metadata.dst_node_id]
            self.asked.append((site, message.metadata.message_type))
            answer = self.answers.get(site, said(site))
            body = (
                reply_to(message, answer)
                if isinstance(answer, StatisticsReply | Refusal)
                else Message(answer, reply_to=message)
            )
            body.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
            yield body


@pytest.fixture
def heard() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def coordinator(tmp_path: Path, heard: list[tuple[str, dict[str, Any]]]) -> Coordinator:
    plan = make_plan(tmp_path, TINY.model_copy(update={"quorum": 2}))
    return Coordinator(
        path=plan.run_folder,
        settings=plan.settings,
        members=lambda: MEMBERS,
        audit=lambda event, /, **facts: heard.append((event, facts)),
    )


def refused(heard: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    return {facts["site"]: facts["reason"] for event, facts in heard if event == "site_refused"}


def test_all_who_answer_take_part_in_the_order_of_their_names(coordinator, heard):
    roll = Roll(Sites(), coordinator)
    roll.call()
    assert list(roll.answers) == ["henan", "ningxia", "zhengzhou"]
    assert [facts["site"] for event, facts in heard if event == "site_joined"] == list(roll.answers)


BAD = {
    "another's name": (said("ningxia"), "it calls itself ningxia, its key is that of henan"),
    "another network": (said("henan", layout="0" * 64), "it builds another network than the coordinator"),
    "a refusal": (
        Refusal(site="henan", error="PolicyError", exit_code=5, reason="policy: no"),
        "PolicyError: policy: no",
    ),
    "an error": (Error(ErrorCode.NODE_UNAVAILABLE, "not connected"), "not connected"),
    "a gene too few": (
        said("henan", labels=dict.fromkeys(GENES[:2], (5, 5, 0))),
        "it counts labels of 2 genes, 3 are expected",
    ),
    "a huge count": (
        said("henan", labels=dict.fromkeys(GENES, (10**400, 5, 0))),
        "a count of it is not between 0 and its 10 cases",
    ),
    "a negative count": (
        said("henan", labels=dict.fromkeys(GENES, (-5, 5, 0))),
        "a count of it is not between 0 and its 10 cases",
    ),
    "a huge limit": (said("henan", small_cell_limit=10**400), "its cases or its small-cell limit are above"),
    "a huge weight": (said("henan", weights={"trunk": 1e308}), "its weight of the trunk is not between 0"),
    "no weight": (said("henan", weights={}), "its weight of the trunk is not between 0"),
    "unknown sequences": (said("henan", modalities={"\x1b[2J": 1}), "it counts cases of unknown sequences"),
    "something else": (RecordDict(), "message: not a StatisticsReply of fedglioma"),
}


@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD)
def test_site_with_a_bad_answer_is_left_out_with_its_reason_and_the_others_go_on(
    answer, reason, coordinator, heard
):
    roll = Roll(Sites(henan=answer), coordinator)
    roll.call()
    assert list(roll.answers) == ["ningxia", "zhengzhou"]
    assert refused(heard)["henan"].startswith(reason)


def test_weights_of_the_genes_follow_from_the_counts_whatever_a_site_says(coordinator):
    labels = dict.fromkeys(GENES, (5, None, 0))
    weights = {"trunk": 10.0, "idh": 1e308, "x": 3.0}
    told = said("henan", labels=labels, weights=weights, masks=None, small_cell_limit=3)
    roll = Roll(Sites(henan=told), coordinator)
    roll.call()
    genes = dict.fromkeys(GROUPS[1:4], 6.5)
    assert roll.answers["henan"].weights == {"trunk": 10.0, "segmentation": 1.5} | genes


def test_reason_of_a_site_is_one_short_printable_line(coordinator, heard, caplog):
    no = Refusal(site="henan", error="PolicyError", exit_code=5, reason="no\nWARNING\x1b[2J" * 1000)
    Roll(Sites(henan=no), coordinator).call()
    reason = refused(heard)["henan"]
    assert reason.isprintable()
    assert len(reason) <= 300
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_nonsense_that_was_kept_is_refused_and_the_site_asked_anew(coordinator, heard):
    Roll(Sites(), coordinator).call()
    path = RunFolder(coordinator.path).work / "answers.json"
    kept = json.loads(path.read_text())
    del kept["answers"]["henan"]["labels"]["idh"]
    path.write_text(json.dumps(kept))
    grid = Sites()
    roll = Roll(grid, coordinator)
    roll.call()
    assert refused(heard)["henan"] == "it counts labels of 2 genes, 3 are expected"
    assert grid.asked == [("henan", "query.statistics")]
    assert list(roll.answers) == ["henan", "ningxia", "zhengzhou"]


def test_too_few_who_join_are_no_quorum(coordinator):
    no = Refusal(site="x", error="PolicyError", exit_code=5, reason="no")
    with pytest.raises(QuorumError, match="1 of 3 sites joined, 2 are needed"):
        Roll(Sites(henan=no, ningxia=no), coordinator).call()


def test_run_that_is_resumed_asks_nobody_again(coordinator):
    Roll(Sites(), coordinator).call()
    grid = Sites()
    roll = Roll(grid, coordinator)
    roll.call()
    assert grid.asked == []
    assert list(roll.answers) == ["henan", "ningxia", "zhengzhou"]


def test_site_that_comes_late_takes_part_and_one_that_is_away_is_not_asked(coordinator):
    grid = Sites(henan=Error(ErrorCode.NODE_UNAVAILABLE, "not connected"))
    roll = Roll(grid, coordinator)
    roll.call()
    grid.asked.clear()
    grid.answers.clear()
    grid.online.discard(11)
    roll.call_late()
    assert grid.asked == []
    grid.online.add(11)
    nodes = roll.nodes
    roll.call_late()
    assert grid.asked == [("henan", "query.statistics")]
    assert list(roll.answers) == ["henan", "ningxia", "zhengzhou"]
    assert nodes is roll.nodes, "the strategy holds the same table"
    assert set(RunFolder(coordinator.path).read().sites) == set(MEMBERS.values())


def test_late_site_of_another_network_stays_out(coordinator, heard):
    grid = Sites(henan=said("henan", layout="0" * 64))
    roll = Roll(grid, coordinator)
    roll.call()
    roll.call_late()
    assert list(roll.answers) == ["ningxia", "zhengzhou"]


def test_those_who_are_there_are_told_that_the_run_is_over(coordinator):
    grid = Sites()
    roll = Roll(grid, coordinator)
    roll.call()
    grid.asked.clear()
    grid.online.discard(12)
    roll.dismiss()
    assert grid.asked == [("henan", FINISHED), ("zhengzhou", FINISHED)]


def test_site_that_refused_is_asked_again_when_it_has_connected_anew(coordinator):
    grid = Sites(henan=Refusal(site="henan", error="PolicyError", exit_code=5, reason="no"))
    roll = Roll(grid, coordinator)
    roll.call()
    grid.asked.clear()
    grid.answers.clear()
    roll.call_late()
    assert grid.asked == []
    grid.since = "now"
    roll.call_late()
    assert grid.asked == [("henan", "query.statistics")]
    assert "henan" in roll.answers


def test_start_waits_for_the_expected_sites_and_takes_the_others_when_they_are_there(coordinator):
    grid = Sites()
    grid.online.discard(11)
    Roll(grid, replace(coordinator, expected=("ningxia", "zhengzhou"))).call()
    assert [site for site, _ in grid.asked] == ["ningxia", "zhengzhou"]


def test_site_that_does_not_answer_is_asked_more_and_more_rarely(coordinator):
    grid = Sites(henan=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "no reply"))
    roll = Roll(grid, coordinator)
    roll.call()
    grid.asked.clear()
    asked = []
    for number in range(16):
        roll.call_late()
        asked += [number] * len(grid.asked)
        grid.asked.clear()
    assert asked == [0, 3, 8]
