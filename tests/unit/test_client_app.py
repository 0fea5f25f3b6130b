"""A hospital's answers at the door of its app: its policy comes before its data, whatever is asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Message, RecordDict

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.training.learner import layout_of
from fedglioma.wire import (
    FINISHED,
    STATISTICS,
    TRAIN,
    Noted,
    Refusal,
    RunFinished,
    StatisticsRequest,
    TrainRequest,
    body_of,
    request_record,
)
from fedglioma_client.app import app
from fedglioma_client.site import SITE_CONFIG_KEY
from fedglioma_server.inline import InlineGrid

ASKED = RunConfig(width=1, crop=16, rounds=5, local_epochs=2, payload="int8", strategy="fedavg")


def answer(folder: Path, content: RecordDict, kind: str, **settings: Any) -> Message:
    """Return what a hospital whose data folder is not there answers."""
    path = folder / "henan.yaml"
    table = {"site": "henan", "data": "nowhere/patient-17", **settings}
    path.write_text(yaml.safe_dump(table), encoding="utf-8")
    grid = InlineGrid(app, [{SITE_CONFIG_KEY: str(path)}], {})
    message = Message(content, dst_node_id=1, message_type=kind, group_id="1")
    (reply,) = grid.send_and_receive([message])
    return reply


def questions() -> dict[str, RecordDict]:
    train = TrainRequest(
        run="seven",
        round=1,
        settings=ASKED,
        proximal_mu=0.0,
        class_counts=dict.fromkeys(GENES, (1.0, 1.0)),
        layout="0" * 64,
    )
    return {
        STATISTICS: request_record(StatisticsRequest(run="r", settings=ASKED)),
        TRAIN: request_record(train),
    }


@pytest.mark.parametrize("kind", [STATISTICS, TRAIN])
@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"models": []}, "policy: model mdpnet is not among none"),
        ({"strategies": ["fedprox"]}, "policy: strategy fedavg is not among fedprox"),
        ({"payloads": ["float32"]}, "policy: payload int8 is not among float32"),
        ({"purposes": ["clinical"]}, "policy: purpose research is not among clinical"),
        ({"max_rounds": 4}, "policy: 5 rounds asked for, at most 4 allowed"),
        ({"max_local_epochs": 1}, "policy: 2 local epochs asked for, at most 1 allowed"),
    ],
)
def test_policy_refuses_with_5_before_any_data_are_looked_for(policy, reason, kind, tmp_path):
    reply = answer(tmp_path, questions()[kind], kind, policy=policy)
    refusal = body_of(reply.content, Refusal)
    assert (refusal.site, refusal.error, refusal.exit_code) == ("henan", "PolicyError", 5)
    assert refusal.reason == reason


def test_site_has_the_name_of_its_settings_and_not_of_their_file(tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text("site: henan\ndata: nowhere\n", encoding="utf-8")
    node = InlineGrid(app, [{SITE_CONFIG_KEY: str(path)}], {})
    told = request_record(RunFinished(run="seven", status="completed"))
    (reply,) = node.send_and_receive([Message(told, dst_node_id=1, message_type=FINISHED, group_id="1")])
    assert body_of(reply.content, Noted).site == "henan"


def test_site_whose_settings_became_unreadable_still_says_no(tmp_path):
    refusal = body_of(answer(tmp_path, questions()[TRAIN], TRAIN, colour="red").content, Refusal)
    assert (refusal.site, refusal.error, refusal.exit_code) == ("unknown", "ConfigError", 2)


def test_site_without_its_data_says_so_without_a_path(tmp_path):
    refusal = body_of(answer(tmp_path, questions()[STATISTICS], STATISTICS).content, Refusal)
    assert (refusal.error, refusal.exit_code) == ("DataError", 4)
    assert "patient" not in refusal.model_dump_json()
    assert str(tmp_path) not in refusal.model_dump_json()


@pytest.mark.parametrize("kind", [STATISTICS, TRAIN, FINISHED])
def test_message_that_is_none_of_ours_is_refused(kind, tmp_path):
    refusal = body_of(answer(tmp_path, RecordDict(), kind).content, Refusal)
    assert (refusal.error, refusal.exit_code) == ("ProtocolError", 1)
    assert "do both ends run the same version?" in refusal.reason


def test_weights_of_another_size_are_refused_before_any_data_are_looked_for(tmp_path):
    content = questions()[TRAIN]
    arrays = layout_of(ASKED).empty()
    arrays["trunk"] = np.zeros(3, np.float32)
    content["weights"] = request_record(StatisticsRequest(run="r", settings=ASKED), arrays)["weights"]
    refusal = body_of(answer(tmp_path, content, TRAIN).content, Refusal)
    assert (refusal.error, refusal.exit_code) == ("ProtocolError", 1)
    assert "weights: group trunk should be" in refusal.reason


def test_end_of_a_run_is_noted_without_any_data(tmp_path):
    told = request_record(RunFinished(run="seven", status="completed"))
    assert body_of(answer(tmp_path, told, FINISHED).content, Noted).site == "henan"
