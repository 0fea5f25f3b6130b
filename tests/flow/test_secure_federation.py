"""Secure aggregation through the two apps: the same weights as without, and nothing else to be read."""

import json
from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import chisquare

from fedglioma.errors import ConfigError, QuorumError
from fedglioma.weights import GROUPS, TRUNK
from fedglioma.wire import (
    SECURE,
    TRAIN,
    Refusal,
    TrainReply,
    TrainRequest,
    body_of,
    reply_to,
    request_record,
    weights_of,
)
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.runfolder import RunFolder
from tests.federation_fixture import TINY, final_weights, make_plan, run

NAMES = ("anyang", "henan", "kaifeng", "luoyang", "ningxia", "pingdingshan", "xinxiang", "zhengzhou")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def plain(**changed):
    return TINY.model_validate(TINY.model_dump() | {"rounds": 1, "norm_limit": 0.0} | changed)


def secure(**changed):
    table = {"payload": "masked", "quorum": 3, "secure_aggregation": True}
    return plain(**(table | changed))


def sites(number):
    return {name: 2 + place % 3 for place, name in enumerate(NAMES[:number])}


def assert_near(one, other, atol=2e-7):
    for group in GROUPS:
        np.testing.assert_allclose(one[group], other[group], rtol=0, atol=atol)


def asked_for(message):
    """Return which exchange a message is: its kind, or which field of a secure request is set."""
    if message.metadata.message_type != SECURE:
        return message.metadata.message_type
    body = json.loads(message.content["fedglioma"]["json"])
    return next(name for name in ("begin", "roster", "survivors", "unmask") if body[name])


def is_answer(message):
    return "settings" not in json.loads(message.content["fedglioma"]["json"])


def failing(site, when, times=1):
    """Return a meddler by which a site's answers to an exchange are lost, the first so many times."""
    left = [times]

    def meddle(message, reply):
        body = json.loads(reply.content["fedglioma"]["json"])
        if body["site"] == site and asked_for(message) == when and left[0] > 0:
            left[0] -= 1
            lost = Refusal(site=site, error="FedGliomaError", exit_code=1, reason="lost")
            return reply_to(message, lost)
        return reply

    return meddle


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedbn", "fedavgm", "fedyogi"])
def test_masked_round_ends_where_the_plain_round_ends(tmp_path, strategy):
    one = make_plan(tmp_path / "one", plain(strategy=strategy), sites=sites(5))
    other = make_plan(tmp_path / "other", secure(strategy=strategy), sites=sites(5))
    run(one)
    lines = run(other).rounds()
    # Yogi divides by the root of a square: what is nearly nothing may become anything up to its step.
    assert_near(final_weights(one), final_weights(other), 1e-3 if strategy == "fedyogi" else 2e-7)
    assert {entry.status for entry in lines[1].sites.values()} == {"ok"}
    assert {entry.update_norm for entry in lines[1].sites.values()} == {None}
    for site in sites(5):  # what was masked stays known, or the same update could be asked for as it is
        kept = other.run_folder / "work" / "sites" / site / "secure"
        assert len(list(kept.glob("*.masked"))) == len(lines) - 1


def test_curious_server_finds_no_update_in_anything_that_it_sees(tmp_path):
    truth, seen = {}, defaultdict(list)

    def keep_truth(message, reply):
        if message.metadata.message_type == TRAIN:
            body = body_of(reply.content, TrainReply)
            truth[body.site] = {g: a.copy() for g, a in weights_of(reply.content).items()}
        return reply

    run(make_plan(tmp_path / "one", plain(), sites=sites(4)), meddle=keep_truth)

    def keep(message):
        seen[message.metadata.message_type].append(message)

    plan = make_plan(tmp_path / "other", secure(), sites=sites(4))
    folder = run(plan, tap=keep)
    before = next(weights_of(message.content) for message in seen[TRAIN] if not is_answer(message))
    updates = {
        body_of(message.content, TrainReply).site: message for message in seen[TRAIN] if is_answer(message)
    }
    assert set(updates) == set(sites(4))
    for site, message in updates.items():
        forms = {group: ("uint32", array.size + 1) for group, array in before.items()}
        masked = weights_of(message.content, forms)[TRUNK]
        counts = np.bincount(masked.view(np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-10
        step = (truth[site][TRUNK] - before[TRUNK]).astype(np.float64)
        found = masked[:-1].view(np.int32).astype(np.float64)
        assert abs(np.corrcoef(step, found)[0, 1]) < 7 / np.sqrt(step.size)  # of random keys
        others = sum(updates[name].content["weights"][TRUNK].numpy()[:-1] for name in updates if name != site)
        assert abs(np.corrcoef(step, (masked[:-1] + others).view(np.int32))[0, 1]) < 7 / np.sqrt(step.size)
    said = [str(message.content["fedglioma"]["json"]) for kind in seen for message in seen[kind]]
    secrets = list((folder.work / "sites").glob("*/secure/*.json"))
    assert len(secrets) == 4
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0
        assert json.loads(path.read_text())["secrets"] is None
    assert not any('"secrets"' in text for text in said)
    assert not list((folder.work).glob("updates/*"))


def test_secrets_of_a_sum_that_was_given_up_go_with_the_next(tmp_path):
    plan = make_plan(tmp_path, secure(rounds=2), sites=sites(4))
    run(plan, meddle=failing("henan", "roster"))
    for site in sites(4):
        kept = [
            json.loads(path.read_text())
            for path in (plan.run_folder / "work" / "sites" / site).glob("secure/*.json")
        ]
        assert [state["secrets"] for state in kept] == [None]


@pytest.mark.parametrize(
    ("number", "when", "dropped"),
    [
        (4, "begin", 1),
        (4, "roster", 1),
        (4, "train", 1),
        (4, "survivors", 1),
        (5, "train", 1),
        (8, "begin", 2),
        (8, "roster", 2),
        (8, "train", 2),
        (8, "unmask", 2),
    ],
)
def test_sites_that_drop_out_are_left_out_of_an_exact_sum(tmp_path, number, when, dropped):
    lost = NAMES[1 : 1 + dropped]
    after_masking = when in ("survivors", "unmask")
    kept = {name: count for name, count in sites(number).items() if after_masking or name not in lost}
    one = make_plan(tmp_path / "one", plain(), sites=kept)
    run(one)
    meddlers = [failing(name, when) for name in lost]

    def meddle(message, reply):
        for one_of in meddlers:
            reply = one_of(message, reply)
        return reply

    other = make_plan(tmp_path / "other", secure(), sites=sites(number))
    lines = run(other, meddle=meddle).rounds()
    taken = {name for name, entry in lines[1].sites.items() if entry.status == "ok"}
    assert taken == set(kept)
    # The class counts behind the loss are of all sites in one run and of those kept in the other.
    if after_masking:
        assert_near(final_weights(one), final_weights(other))


def test_three_sites_repeat_the_round_with_new_keys_when_one_is_lost_in_it(tmp_path):
    one = make_plan(tmp_path / "one", plain(), sites=sites(3))
    other = make_plan(tmp_path / "other", secure(), sites=sites(3))
    run(one)
    run(other, meddle=failing("henan", "survivors"))
    assert_near(final_weights(one), final_weights(other))


def test_round_without_enough_sites_ends_in_words_and_can_be_resumed(tmp_path):
    plan = make_plan(tmp_path, secure(rounds=2), sites=sites(3))
    with pytest.raises(QuorumError, match="3 are needed"):
        run(plan, meddle=failing("henan", "roster", times=100))
    one = make_plan(tmp_path / "one", plain(rounds=2), sites=sites(3))
    run(one)
    assert [line.round for line in run(plan).rounds()] == [0, 1, 2]
    # Adam makes what rounding left of nothing as large as a step: a few numbers of the second round differ.
    apart = np.abs(final_weights(one)[TRUNK] - final_weights(plan)[TRUNK])
    assert np.median(apart) < 1e-7


@pytest.fixture
def cut_before_saving(monkeypatch):
    """Run a plan until round 1 is to be saved, and stop there as a crash would."""

    def run_and_cut(plan):
        save = Checkpoints.save

        def cut(self, number, arrays):
            if number == 1:
                raise KeyboardInterrupt
            return save(self, number, arrays)

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "save", cut)
            with pytest.raises(KeyboardInterrupt):
                run(plan)

    return run_and_cut


def test_server_that_was_stopped_after_unmasking_unmasks_the_same_sum_again(tmp_path, cut_before_saving):
    plan = make_plan(tmp_path, secure(rounds=2), sites=sites(4))
    cut_before_saving(plan)
    assert [line.round for line in RunFolder(plan.run_folder).rounds()] == [0]
    assert [line.round for line in run(plan).rounds()] == [0, 1, 2]


def test_no_site_helps_to_unmask_a_round_over_other_sites_a_second_time(tmp_path, cut_before_saving):
    plan = make_plan(tmp_path, secure(rounds=2), sites=sites(5))
    cut_before_saving(plan)
    with pytest.raises(QuorumError):
        run(plan, meddle=failing("henan", "train", times=100))


def test_two_sites_cannot_hide_among_each_other(tmp_path):
    with pytest.raises((QuorumError, ConfigError)):
        run(make_plan(tmp_path, secure(), sites=sites(2)))


@pytest.mark.parametrize("cheat", ["totals", "lr", "weights", "class_counts"])
def test_server_that_asks_one_site_otherwise_gets_no_sum(tmp_path, cheat):
    """With the others' parts made nothing the sum would be one site's update."""
    plan = make_plan(tmp_path, secure(), sites=sites(3))

    def cheating(message):
        if message.metadata.message_type != TRAIN or is_answer(message):
            return
        if message.metadata.dst_node_id == 1:
            return
        body = body_of(message.content, TrainRequest)
        if cheat == "totals":
            others = body.masking.model_copy(update={"totals": dict.fromkeys(body.masking.totals, 1e12)})
            body = body.model_copy(update={"masking": others})
        elif cheat == "lr":
            body = body.model_copy(update={"settings": body.settings.model_copy(update={"lr": 1e-30})})
        elif cheat == "class_counts":
            body = body.model_copy(update={"class_counts": dict.fromkeys(body.class_counts, (1.0, 9.0))})
        else:
            zeros = {group: array * 0 for group, array in weights_of(message.content).items()}
            message.content["weights"] = request_record(body, zeros)["weights"]
        message.content["fedglioma"]["json"] = body.model_dump_json()

    with pytest.raises(QuorumError, match="PrivacyError"):
        run(plan, tap=cheating)


def test_round_that_was_begun_under_masks_does_not_leave_without_them(tmp_path):
    plan = make_plan(tmp_path, secure(rounds=2), sites=sites(3))

    def bare(message):
        if message.metadata.message_type == TRAIN and not is_answer(message):
            body = body_of(message.content, TrainRequest)
            settings = body.settings.model_copy(
                update={"secure_aggregation": False, "payload": "float32", "quorum": 1}
            )
            message.content["fedglioma"]["json"] = body.model_copy(
                update={"settings": settings, "masking": None}
            ).model_dump_json()

    with pytest.raises(QuorumError, match="PrivacyError"):
        run(plan, tap=bare)
