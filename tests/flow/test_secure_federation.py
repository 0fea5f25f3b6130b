"""Secure aggregation through the two apps: the same weights as without, and a server that reads nothing else."""

import numpy as np
import pytest

from fedglioma.errors import QuorumError
from fedglioma.weights import GROUPS, pack
from fedglioma.wire import SECURE, TRAIN, Refusal, TrainReply, TrainRequest, body_of, reply_to, weights_of
from fedglioma_server.runfolder import RunFolder
from tests.federation_fixture import TINY, final_weights, make_plan, run

FIVE = {"anyang": 3, "henan": 2, "kaifeng": 4, "ningxia": 5, "zhengzhou": 2}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def plain(**changed):
    return TINY.model_validate(TINY.model_dump() | changed)


def secure(**changed):
    table = TINY.model_dump() | {"payload": "masked", "norm_limit": 0.0, "quorum": 3}
    return TINY.model_validate(table | {"secure_aggregation": True} | changed)


def assert_near(one, other, atol=2e-6):
    for group in GROUPS:
        np.testing.assert_allclose(one[group], other[group], rtol=0, atol=atol)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedbn", "fedavgm", "fedyogi"])
def test_masked_run_ends_where_the_plain_run_ends(tmp_path, strategy):
    changed = {"strategy": strategy, "server_lr": 0.001 if strategy == "fedyogi" else 0.0, "norm_limit": 0.0}
    one = make_plan(tmp_path / "one", plain(**changed), sites=FIVE)
    other = make_plan(tmp_path / "other", secure(**changed), sites=FIVE)
    run(one)
    lines = run(other).rounds()
    assert_near(final_weights(one), final_weights(other), 1e-5 if strategy == "fedyogi" else 2e-6)
    assert {entry.status for line in lines[1:] for entry in line.sites.values()} == {"ok"}
    assert {entry.update_norm for line in lines[1:] for entry in line.sites.values()} == {None}
