"""What a hospital tells of its training loss: nothing beside masks, little under a small-cell limit."""

import pytest

from fedglioma.case import Genotype, Task
from fedglioma.config.run import RunConfig
from fedglioma.training.fit import FitSummary
from fedglioma.wire import TRAIN, TrainReply, body_of
from fedglioma_client.round import told_losses
from tests.federation_fixture import TINY, make_plan, prepared_case, run

SITES = {"anyang": 6, "henan": 7, "ningxia": 8}
ONE = RunConfig.model_validate(TINY.model_dump() | {"rounds": 1, "quorum": 3})


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def replies(folder, settings, limit):
    """Return what the hospitals answered to the first training request."""
    told = []

    def keep(message, reply):
        if message.metadata.message_type == TRAIN:
            told.append(body_of(reply.content, TrainReply))
        return reply

    run(make_plan(folder, settings, sites=SITES, limit=limit), meddle=keep)
    assert len(told) == len(SITES)
    return told


@pytest.mark.parametrize("limit", [1, 5])
def test_masked_round_tells_no_loss_though_the_counts_are_told(limit, tmp_path):
    masked = {"secure_aggregation": True, "payload": "masked", "norm_limit": 0.0}
    for reply in replies(tmp_path, RunConfig.model_validate(ONE.model_dump() | masked), limit):
        assert (reply.loss, reply.loss_by_task) == (None, {})
        assert reply.steps > 0


def test_under_a_small_cell_limit_a_plain_round_tells_the_total_to_two_digits(tmp_path):
    for reply in replies(tmp_path, ONE, 5):
        assert reply.loss == float(f"{reply.loss:.2g}")
        assert reply.loss_by_task == {}


def test_without_a_limit_every_loss_is_told_to_four_digits(tmp_path):
    for reply in replies(tmp_path, ONE, 1):
        assert set(reply.loss_by_task) == set(ONE.tasks)
        assert reply.loss is not None


def test_total_tells_no_single_patient_who_was_not_measured_and_the_genes_are_not_told(tmp_path):
    """The total is the sum of the genes' means by how many have each measured: beside them it has those."""
    cases = [prepared_case(tmp_path, "henan", n, genotype=Genotype(idh=1, atrx=1)) for n in range(5)]

    def told(atrx_known, known=230):
        sums = {Task.IDH: 0.8123 * known, Task.ATRX: 0.6312 * atrx_known}
        total = (sums[Task.IDH] + sums[Task.ATRX]) / 2
        return told_losses(
            FitSummary(1, known, total, sums, {Task.IDH: known, Task.ATRX: atrx_known}), cases, 5
        )

    assert told(228) == told(229) == {"loss": 0.72, "loss_by_task": {}}
    assert told_losses(FitSummary(1, 4, 4.0), cases[:4], 5)["loss"] is None
