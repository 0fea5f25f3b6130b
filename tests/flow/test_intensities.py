"""The common intensity scale over a whole run: who decides it, who is refused, who comes late."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.plan import PLAN_KEY, SimulationPlan, SitePlan
from fedglioma.landmarks import published_sums
from fedglioma.scale import fit_scale
from fedglioma.training.released import load_model
from fedglioma.wire import STATISTICS, StatisticsReply, TrainRequest, body_of, is_refusal
from fedglioma_client.app import app as client_app
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import run_federation
from fedglioma_server.inline import InlineGrid
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from tests.federation_fixture import TINY, final_weights, make_plan, run

ONE_ROUND = TINY.model_copy(update={"rounds": 1})
SITES = {"henan": 5, "ningxia": 5, "zhengzhou": 5}
OFF = (-1.3, -1.2, -1.1, -1.0, 2.0)
"""Percentiles of a brain most of which is dark: nothing that MRI of a head looks like."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, most of a tiny run's time."""
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def changed(plan: SimulationPlan, name: str, how: Callable[[SitePlan], SitePlan]) -> SimulationPlan:
    """Return the plan with one hospital changed, on disk too."""
    sites = tuple(how(site) if site.settings.site == name else site for site in plan.sites)
    other = plan.model_copy(update={"sites": sites})
    plan_file(RunFolder(plan.run_folder)).write_text(other.model_dump_json())
    return other


def dark(site: SitePlan) -> SitePlan:
    cases = tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, OFF)) for case in site.cases)
    return site.model_copy(update={"cases": cases})


def setting(**values: Any) -> Callable[[SitePlan], SitePlan]:
    return lambda site: site.model_copy(update={"settings": site.settings.model_copy(update=values)})


def sums_of(plan: SimulationPlan, name: str) -> Any:
    (site,) = (site for site in plan.sites if site.settings.site == name)
    return published_sums([case.landmarks() for case in site.cases], site.settings.small_cell_limit)


def scales_on_disk(plan: SimulationPlan, name: str) -> set[str]:
    """Return the ids of the scales that a hospital's cases were laid on."""
    inputs = [json.loads(case.array.with_suffix(".json").read_text()) for case in site_cases(plan, name)]
    own = [entry["record"]["inputs"] for entry in inputs]
    files = (plan.run_folder.parent / "data").glob("*.json")
    entries = [json.loads(path.read_text())["record"] for path in files]
    return {entry["scale"] for entry in entries if entry["inputs"] in own and entry["scale"]}


def site_cases(plan: SimulationPlan, name: str) -> tuple[Any, ...]:
    return next(site.cases for site in plan.sites if site.settings.site == name)


def test_site_that_is_off_decides_nothing_and_is_refused_with_its_distance(tmp_path):
    plan = changed(make_plan(tmp_path, ONE_ROUND, sites=SITES), "henan", dark)
    folder = run(plan)
    record, line = folder.read(), folder.rounds()[1]
    assert record.status == "completed"
    assert record.scale == fit_scale([sums_of(plan, name) for name in ("ningxia", "zhengzhou")])
    assert [(doubt.kind, doubt.sites) for doubt in record.scale_doubts] == [("left_out", ["henan"])]
    assert [line.sites[name].status for name in sorted(SITES)] == ["refused", "ok", "ok"]
    refused = line.sites["henan"]
    assert refused.code == "scale"
    assert refused.reason is not None
    assert refused.reason.startswith("ScaleError: intensities: the mean landmarks of ")
    assert "points from the consortium's, 20 of 100 are allowed" in refused.reason


def test_two_sites_that_lie_apart_are_both_used_and_named(tmp_path, caplog):
    sites = {"henan": 5, "ningxia": 5}
    plan = changed(make_plan(tmp_path, ONE_ROUND, sites=sites), "henan", dark)
    with pytest.raises(Exception, match="0 usable updates"):
        run(plan)
    record = RunFolder(plan.run_folder).read()
    assert record.scale == fit_scale([sums_of(plan, name) for name in sites])
    assert [(doubt.kind, doubt.sites) for doubt in record.scale_doubts] == [("apart", ["henan", "ningxia"])]
    assert "henan and ningxia: the mean landmarks of" in caplog.text


def heard(plan: SimulationPlan) -> dict[str, StatisticsReply]:
    """Return what each hospital of a run said of itself."""
    told = []

    def listen(message: Message) -> None:
        asked = message.metadata.message_type == STATISTICS
        if asked and message.metadata.reply_to_message_id and not is_refusal(message.content):
            told.append(body_of(message.content, StatisticsReply))

    run(plan, tap=listen)
    return {reply.site: reply for reply in told}


def test_noise_of_a_site_is_told_and_recorded(tmp_path):
    plan = make_plan(tmp_path, ONE_ROUND, sites=SITES)
    first = heard(changed(plan, "henan", setting(landmark_epsilon=2.0)))
    assert first["henan"].landmark_epsilon == 2.0
    assert first["ningxia"].landmark_epsilon is None
    assert first["henan"].landmarks != sums_of(plan, "henan")
    assert first["ningxia"].landmarks == sums_of(plan, "ningxia")
    record = RunFolder(plan.run_folder).read()
    assert record.sites["henan"].landmark_epsilon == 2.0
    told = (plan.run_folder / "privacy.json").read_text()
    assert "with Gaussian noise at henan (epsilon 2), delta 1e-05" in told


class Arriving(InlineGrid):
    """Hospitals of which one connects late."""

    def __init__(self, plan: SimulationPlan, late: int, seen: list[Message]) -> None:
        nodes: list[dict[str, str | int]] = [{"partition-id": index} for index in range(len(plan.sites))]
        config = {PLAN_KEY: str(plan_file(RunFolder(plan.run_folder)))}
        super().__init__(client_app, nodes, config, tap=seen.append)
        self.away = {late}

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.away]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at="now") for node in self.get_node_ids()]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        return super().send_and_receive(
            [message for message in messages if message.metadata.dst_node_id not in self.away]
        )


def test_site_that_joins_late_trains_on_the_scale_that_stands(tmp_path):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 2}), sites=SITES)
    seen: list[Message] = []
    grid = Arriving(plan, late=1, seen=seen)
    members = {index + 1: site.settings.site for index, site in enumerate(plan.sites)}
    coordinator = replace(
        Coordinator.of_plan(plan), members=lambda: members, expected=("ningxia", "zhengzhou")
    )
    run_federation(grid, coordinator, lambda line: grid.away.clear() if line.round == 1 else None)
    folder = RunFolder(plan.run_folder)
    record, rounds = folder.read(), folder.rounds()
    assert set(rounds[1].sites) == {"ningxia", "zhengzhou"}
    assert rounds[2].sites["henan"].status == "ok"
    assert record.scale == fit_scale([sums_of(plan, name) for name in ("ningxia", "zhengzhou")])
    assert scales_on_disk(plan, "henan") == scales_on_disk(plan, "ningxia") == {record.scale_id}
    requests = [
        body_of(message.content, TrainRequest)
        for message in seen
        if message.metadata.message_type == "train" and not message.metadata.reply_to_message_id
    ]
    assert {request.scale for request in requests} == {record.scale}
    told = [
        body_of(message.content, StatisticsReply)
        for message in seen
        if message.metadata.message_type == STATISTICS and message.metadata.reply_to_message_id
    ]
    assert {reply.site: bool(reply.landmarks) for reply in told} == {
        "henan": False,
        "ningxia": True,
        "zhengzhou": True,
    }, "a scale that stands asks for nobody's landmarks"


def test_resumed_run_keeps_its_scale_to_the_bit_whatever_sites_hold_by_then(tmp_path):
    plan = make_plan(tmp_path, TINY, sites=SITES)

    def stop(line: Any) -> None:
        if line.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=stop)
    folder = RunFolder(plan.run_folder)
    before = folder.read()
    assert before.scale is not None
    fewer = changed(plan, "henan", lambda site: site.model_copy(update={"cases": site.cases[:2]}))
    run(fewer)
    after = folder.read()
    assert after.status == "completed"
    assert after.scale == before.scale
    assert after.scale_id == before.scale_id == before.scale.id
    for modality in CHANNELS:
        one, other = (record.scale.landmarks[modality] for record in (before, after))
        assert [value.hex() for value in one] == [value.hex() for value in other]


def test_scale_and_its_id_go_with_the_released_model(tmp_path):
    plan = make_plan(tmp_path, ONE_ROUND, sites=SITES)
    folder = run(plan)
    record = folder.read()
    assert load_model(folder.model).scale == record.scale
    assert json.loads((folder.model / "config.json").read_text())["scale_id"] == record.scale_id
    assert final_weights(plan)
    assert record.scale is not None
    assert f"{Modality.T1} 15 cases of 3 sites" in (folder.model / "README.md").read_text()


def test_without_a_common_scale_no_landmark_travels(tmp_path):
    plan = make_plan(tmp_path, ONE_ROUND.model_copy(update={"standardize": "zscore"}), sites=SITES)
    assert all(not reply.landmarks for reply in heard(plan).values())
    assert RunFolder(plan.run_folder).read().scale_id is None
    assert "landmarks" not in (plan.run_folder / "privacy.json").read_text()
