"""The statistics round under masks: the run is the same, and no site's count can be read."""

import json

import numpy as np
import pytest

from fedglioma.case import GENES
from fedglioma.errors import QuorumError
from fedglioma.weights import GROUPS
from fedglioma.wire import STATISTICS, StatisticsReply, body_of, reply_to
from fedglioma_server.report import write_report
from tests.federation_fixture import TINY, final_weights, make_plan, run

SITES = {"anyang": 6, "henan": 7, "kaifeng": 9, "ningxia": 8}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def settings(**changed):
    table = {"rounds": 1, "quorum": 3, "secure_statistics": True, "secure_aggregation": True}
    table |= {"payload": "masked", "norm_limit": 0.0}
    return TINY.model_validate(TINY.model_dump() | table | changed)


def test_counts_and_scale_are_those_of_the_plain_round(tmp_path):
    one = run(make_plan(tmp_path / "one", settings(secure_statistics=False), sites=SITES, limit=2)).read()
    other = run(make_plan(tmp_path / "other", settings(), sites=SITES, limit=2)).read()
    assert other.class_counts == one.class_counts
    assert other.scale.sites == one.scale.sites
    assert other.scale.cases == one.scale.cases
    for modality, landmarks in one.scale.landmarks.items():
        assert other.scale.landmarks[modality] == pytest.approx(landmarks, abs=0.02)
    assert other.pooled.cases == sum(data.cases for data in one.sites.values())


def test_every_group_of_weights_moves_as_in_the_plain_round(tmp_path):
    own = {"standardize": "zscore"}  # the common scale of a masked sum is rounded
    one = make_plan(tmp_path / "one", settings(secure_statistics=False, **own), sites=SITES, limit=1)
    other = make_plan(tmp_path / "other", settings(**own), sites=SITES, limit=1)
    run(one)
    run(other)
    for group in GROUPS:
        near = np.isclose(final_weights(one)[group], final_weights(other)[group], rtol=0, atol=1e-5)
        assert near.mean() > 0.999 if len(near) else True


def test_no_message_and_no_record_has_a_sites_count(tmp_path):
    told = []

    def keep(message, reply):
        if message.metadata.message_type == STATISTICS:
            told.append(body_of(reply.content, StatisticsReply))
        return reply

    folder = run(make_plan(tmp_path, settings(), sites=SITES, limit=2), meddle=keep)
    assert len(told) == len(SITES)
    for body in told:
        assert (body.cases, body.masks, body.modalities, body.landmarks) == (0, None, {}, {})
        assert set(body.labels.values()) == {(None, None, None)}
        assert body.weights == {"trunk": 1.0}
        assert len(body.masked) % 4 == 0
    assert len({body.masked for body in told}) == len(SITES)
    record = folder.read()
    for site in SITES:
        assert record.sites[site].masked
        assert record.sites[site].cases == 0
    for line in folder.rounds()[1:]:
        assert {tuple(entry.weights.items()) for entry in line.sites.values()} == {(("trunk", 1.0),)}
        assert {(entry.steps, entry.loss) for entry in line.sites.values()} == {(0, None)}


def test_run_is_resumed_with_the_sums_of_its_start(tmp_path):
    plan = make_plan(tmp_path, settings(rounds=2), sites=SITES)

    def cut(line):
        if line.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=cut)
    asked = []

    def keep(message, reply):
        if message.metadata.message_type == STATISTICS:
            asked.append(json.loads(message.content["fedglioma"]["json"])["masking"])
        return reply

    assert run(plan, meddle=keep).read().status == "completed"
    assert asked == [None] * len(SITES)


def test_site_that_tells_its_counts_all_the_same_is_left_out(tmp_path):
    def tell(message, reply):
        if message.metadata.message_type != STATISTICS:
            return reply
        body = body_of(reply.content, StatisticsReply)
        if body.site != "henan":
            return reply
        labels = dict.fromkeys(GENES, (5, 5, 0))
        return reply_to(message, body.model_copy(update={"cases": 10, "labels": labels}))

    folder = run(make_plan(tmp_path, settings(), sites=SITES), meddle=tell)
    assert set(folder.read().sites) == set(SITES) - {"henan"}


def test_two_sites_make_no_masked_statistics(tmp_path):
    two = {"anyang": 6, "henan": 7}
    with pytest.raises(QuorumError, match="can hide among each other"):
        run(make_plan(tmp_path, settings(), sites=two))


def test_report_and_card_show_the_sums_and_no_site(tmp_path):
    folder = run(make_plan(tmp_path, settings(), sites=SITES, limit=2))
    write_report(folder.path)
    page = folder.report.read_text(encoding="utf-8")
    card = (folder.model / "README.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert "4 sites together" in text
    assert "under masks" in page
