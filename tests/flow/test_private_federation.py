"""Differentially private runs through the two apps: what the ledger holds, whatever is asked and crashes."""

import json
import shutil
from contextlib import suppress

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant

from fedglioma.config.site import PrivacyLimits, SiteConfig
from fedglioma.counts import count_cases
from fedglioma.errors import Diverged, QuorumError
from fedglioma.privacy.accounting import Mechanism, epsilon_of, gaussian_equivalent
from fedglioma.privacy.ledger import Ledger
from fedglioma.weights import digest_of
from fedglioma.wire import STATISTICS, TRAIN, StatisticsReply, TrainReply, TrainRequest, body_of, weights_of
from fedglioma_client.budget import read_figures
from fedglioma_server.records import PrivacyRecord, read_json
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from tests.federation_fixture import SITES, TINY, make_plan, run

NOISE = 2.0
EIGHT = {"henan": 8, "ningxia": 8, "zhengzhou": 8}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def private(**changed):
    table = {"privacy": "site", "noise_multiplier": NOISE, "sampling_rate": 0.5, "counts_epsilon": 1.0}
    table |= {"standardize": "zscore"}  # the images of these patients look like no MRI
    return TINY.model_validate(TINY.model_dump() | table | {"weighting": "auto"} | changed)


def ledger_of(folder, site):
    return Ledger(folder.path / "work" / "sites" / site, site)


def expected_epsilon(rounds, *, steps=2, delta=1e-5):
    """Return epsilon as the accountants say it of the terms alone."""
    told = Mechanism(noise_multiplier=gaussian_equivalent(1.0, 1e-5), sampling_rate=1.0, steps=1)
    trained = Mechanism(noise_multiplier=NOISE, sampling_rate=0.5, steps=steps * rounds)
    return epsilon_of([told, trained] if rounds else [told], delta, "prv")


def with_limits(plan, **limits):
    """Write the plan anew with limits of the sites' own."""
    sites = tuple(
        site.model_copy(
            update={"settings": site.settings.model_copy(update={"privacy": PrivacyLimits(**limits)})}
        )
        for site in plan.sites
    )
    changed = plan.model_copy(update={"sites": sites})
    plan_file(RunFolder(plan.run_folder)).write_text(changed.model_dump_json())
    return changed


def test_private_run_says_what_the_accountant_and_every_ledger_say(tmp_path):
    plan = make_plan(tmp_path, private(), sites=EIGHT, limit=5)
    folder = run(plan)
    privacy = read_json(folder.path / "privacy.json", PrivacyRecord)
    assert privacy.differentially_private
    assert privacy.unit == "patient"
    assert privacy.epsilon == pytest.approx(expected_epsilon(2), rel=0.02)
    assert f"epsilon {privacy.epsilon:.3g} at delta 1e-05" in privacy.statement
    assert "expect a model that guesses" in privacy.statement
    lines = folder.rounds()
    for site in EIGHT:
        spent = ledger_of(folder, site).epsilon_spent(None, 1e-5, "prv")
        assert spent == pytest.approx(expected_epsilon(2), rel=0.02)
        assert privacy.ledger_run in {entry.key.run for entry in ledger_of(folder, site).entries()}
        assert lines[1].sites[site].epsilon == pytest.approx(expected_epsilon(1), rel=0.02)
        assert lines[2].sites[site].epsilon == pytest.approx(spent, rel=0.02)


def test_no_loss_and_no_true_count_leaves_a_private_site(tmp_path):
    told = {STATISTICS: {}, TRAIN: {}}

    def keep(message, reply):
        kind = message.metadata.message_type
        body = body_of(reply.content, StatisticsReply if kind == STATISTICS else TrainReply)
        told[kind].setdefault(body.site, []).append(body)
        return reply

    plan = make_plan(tmp_path, private(), sites=EIGHT, limit=1)
    run(plan, meddle=keep)
    for planned in plan.sites:
        site = planned.settings.site
        (counts,) = told[STATISTICS][site]
        assert counts.counts_epsilon == 1.0
        # Noise of several patients on each of 27 counts: one may be right by luck, never all of them.
        exact = count_cases([prepared.case for prepared in planned.cases], 1)
        assert sorted(counts.labels) == sorted(exact.labels)
        assert (counts.cases, counts.labels, counts.modalities) != (
            exact.cases,
            exact.labels,
            exact.modalities,
        )
        for reply in told[TRAIN][site]:
            assert (reply.loss, reply.loss_by_task) == (None, {})
            assert reply.weights == {}
            assert set(reply.seconds) == {"setup", "train", "pack"}


def test_private_sites_tell_their_landmarks_with_noise_that_the_ledger_has(tmp_path):
    told = []

    def hear(message, reply):
        if message.metadata.message_type == STATISTICS:
            told.append(body_of(reply.content, StatisticsReply))
        return reply

    plan = make_plan(tmp_path, private(standardize="federated"), sites=EIGHT, limit=5)
    with suppress(QuorumError):  # noise may lay such images off every scale
        run(plan, meddle=hear)
    assert len(told) == len(EIGHT)
    for body in told:
        assert body.landmark_epsilon == 1.0
        assert all(sums.cases <= body.cases for sums in body.landmarks.values())
        ledger = Ledger(plan.run_folder / "work" / "sites" / body.site, body.site)
        assert {entry.key.what.partition(":")[0] for entry in ledger.entries()} >= {"counts", "landmarks"}


def test_budget_that_is_spent_ends_a_sites_part_with_reply_6_whatever_the_server_asks(tmp_path):
    plan = make_plan(tmp_path, private(rounds=5), sites=EIGHT, limit=5)
    limit = expected_epsilon(2) * 1.05
    with_limits(plan, max_epsilon=limit)
    refusals = []

    def keep(message, reply):
        body = json.loads(reply.content["fedglioma"]["json"])
        if body["kind"] == "refusal":
            refusals.append(body)
        return reply

    with pytest.raises(QuorumError, match="BudgetExhausted"):
        run(plan, meddle=keep)
    assert {body["exit_code"] for body in refusals} == {6}
    assert {body["error"] for body in refusals} == {"BudgetExhausted"}
    assert not any("epsilon" in body["reason"] for body in refusals)
    for site in EIGHT:
        folder = plan.run_folder / "work" / "sites" / site
        assert Ledger(folder, site).epsilon_spent(None, 1e-5, "prv") <= limit


def test_two_crashes_and_restarts_spend_exactly_what_the_undisturbed_run_spends(tmp_path, monkeypatch):
    undisturbed = run(make_plan(tmp_path / "one", private(rounds=3), sites=EIGHT, limit=5))
    plan = make_plan(tmp_path / "two", private(rounds=3), sites=EIGHT, limit=5)
    from fedglioma_client import round as rounds

    train, calls = rounds.train_privately, []

    def cut_short(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # in the middle of a step: reserved, nothing committed
        return train(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(rounds, "train_privately", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run(plan)
    replies = []

    def lost(message, reply):
        replies.append(message.metadata.message_type)
        if replies.count(TRAIN) == 5:
            raise KeyboardInterrupt  # committed, and never arrived
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(plan, meddle=lost)
    folder = run(plan)
    for site in EIGHT:
        spent = [ledger_of(one, site).epsilon_spent(None, 1e-5, "prv") for one in (undisturbed, folder)]
        assert spent[0] == spent[1]


def test_round_that_is_asked_again_is_answered_with_the_same_bytes(tmp_path):
    plan = make_plan(tmp_path, private(rounds=1), sites=EIGHT, limit=5)
    digests = {}

    def keep(message, reply):
        if message.metadata.message_type == TRAIN:
            body = body_of(reply.content, TrainReply)
            digests.setdefault(body.site, []).append(digest_of(weights_of(reply.content)))
        return reply

    def cut(line):
        if line.round == 0:
            return
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, meddle=keep, finished=cut)
    shutil.rmtree(plan.run_folder / "checkpoints")  # the server lost everything that it had
    (plan.run_folder / "rounds.jsonl").unlink()
    run(plan, meddle=keep)
    assert all(len(seen) == 2 and seen[0] == seen[1] for seen in digests.values())


def test_older_copy_of_a_ledger_is_refused_because_the_server_remembers_its_head(tmp_path):
    plan = make_plan(tmp_path, private(rounds=3), sites=EIGHT, limit=5)
    state = plan.run_folder / "work" / "sites" / "henan"
    copy = tmp_path / "copy"

    def cut(line):
        if line.round == 1:
            shutil.copytree(state, copy)
        if line.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=cut)
    shutil.rmtree(state)
    shutil.copytree(copy, state)
    lines = run(plan).rounds()
    entry = lines[3].sites["henan"]
    assert (entry.status, entry.code) == ("refused", "privacy")


def test_private_and_masked_go_together(tmp_path):
    settings = private(rounds=1, secure_aggregation=True, payload="masked", norm_limit=0.0, quorum=3)
    folder = run(make_plan(tmp_path, settings, sites=EIGHT, limit=5))
    privacy = read_json(folder.path / "privacy.json", PrivacyRecord)
    assert (privacy.differentially_private, privacy.secure_aggregation) == (True, True)


def test_central_privacy_states_the_epsilon_of_a_hospital(tmp_path):
    settings = TINY.model_validate(
        TINY.model_dump()
        | {"privacy": "central", "noise_multiplier": 3.0, "clip_norm": 0.5, "norm_limit": 0.0, "quorum": 3}
    )
    folder = run(make_plan(tmp_path, settings, sites=SITES))
    privacy = read_json(folder.path / "privacy.json", PrivacyRecord)
    accountant = PLDAccountant().compose(GaussianDpEvent(3.0), 2)
    assert privacy.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)
    assert privacy.unit == "site"
    assert (folder.path / "model" / "model.safetensors").is_file()


def test_training_request_with_other_terms_gets_no_counts_for_nothing(tmp_path):
    plan = make_plan(tmp_path, private(rounds=1), sites=EIGHT, limit=5)
    with_limits(plan, max_counts_epsilon=10.0)
    asked = []

    def dearer(message):
        if message.metadata.message_type == TRAIN and not asked:
            asked.append(message.metadata.dst_node_id)
            body = body_of(message.content, TrainRequest)
            other = body.settings.model_copy(update={"counts_epsilon": 9.9})
            message.content["fedglioma"]["json"] = body.model_copy(
                update={"settings": other}
            ).model_dump_json()

    folder = run(plan, tap=dearer)
    entries = folder.rounds()[1].sites.values()
    assert sorted(entry.code or entry.status for entry in entries) == ["budget", "ok", "ok"]


def test_round_that_failed_after_its_first_step_is_paid_for(tmp_path, monkeypatch):
    from fedglioma_client import round as rounds

    plan = make_plan(tmp_path, private(rounds=1), sites=EIGHT, limit=5)
    train, calls = rounds.train_privately, []

    def diverging(*given, **named):
        calls.append(1)
        found = train(*given, **named)
        if len(calls) == 1:
            raise Diverged("training diverged")
        return found

    monkeypatch.setattr(rounds, "train_privately", diverging)
    folder = run(plan)
    for site in EIGHT:
        assert ledger_of(folder, site).epsilon_spent(None, 1e-5, "prv") == pytest.approx(
            expected_epsilon(1), rel=0.02
        )


def test_ledger_whose_patients_would_not_be_known_again_is_refused(tmp_path):
    plan = make_plan(tmp_path, private(rounds=2), sites=EIGHT, limit=5)

    def cut(line):
        if line.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=cut)
    (plan.run_folder / "work" / "sites" / "henan" / "site_secret").unlink()
    assert set(run(plan).rounds()[2].sites) == {"ningxia", "zhengzhou"}


def test_hospital_with_no_room_for_a_round_does_not_join_and_the_others_pay_nothing_with_it(tmp_path):
    plan = make_plan(tmp_path, private(rounds=2, quorum=3), sites=EIGHT, limit=5)
    sites = tuple(
        site.model_copy(
            update={"settings": site.settings.model_copy(update={"privacy": PrivacyLimits(max_epsilon=1.2)})}
        )
        if site.settings.site == "henan"
        else site
        for site in plan.sites
    )
    plan_file(RunFolder(plan.run_folder)).write_text(
        plan.model_copy(update={"sites": sites}).model_dump_json()
    )
    with pytest.raises(QuorumError, match="2 of 3 sites joined"):
        run(plan)
    for site in ("ningxia", "zhengzhou"):
        ledger = Ledger(plan.run_folder / "work" / "sites" / site, site)
        assert {entry.key.what.partition(":")[0] for entry in ledger.entries()} == {"counts"}


def test_masked_round_without_what_it_needs_for_masks_costs_nothing(tmp_path):
    changed = {"rounds": 1, "secure_aggregation": True, "payload": "masked", "norm_limit": 0.0, "quorum": 3}
    plan = make_plan(tmp_path, private(**changed), sites=EIGHT, limit=5)

    def bare(message):
        text = message.content["fedglioma"]["json"]
        if message.metadata.message_type == TRAIN and "settings" in json.loads(text):
            asked = body_of(message.content, TrainRequest).model_copy(update={"masking": None})
            message.content["fedglioma"]["json"] = asked.model_dump_json()

    with pytest.raises(QuorumError, match="nothing to mask the update with"):
        run(plan, tap=bare)
    for site in EIGHT:
        ledger = Ledger(plan.run_folder / "work" / "sites" / site, site)
        assert {entry.key.what.partition(":")[0] for entry in ledger.entries()} == {"counts"}


def test_hospitals_with_settings_of_their_own_count_over_all_runs_in_their_own_ledger(tmp_path):
    budget = expected_epsilon(1) * 1.02
    own = {site: tmp_path / "hospitals" / site for site in EIGHT}

    def run_of(name, seed):
        plan = make_plan(tmp_path / name, private(rounds=1, seed=seed), sites=EIGHT, limit=5)
        sites = [
            site.model_copy(
                update={
                    "described": site.settings.site != "zhengzhou",
                    "settings": site.settings.model_copy(
                        update={
                            "state": own[site.settings.site],
                            "privacy": PrivacyLimits(max_epsilon=budget),
                        }
                    ),
                }
            )
            for site in plan.sites
        ]
        plan_file(RunFolder(plan.run_folder)).write_text(
            plan.model_copy(update={"sites": tuple(sites)}).model_dump_json()
        )
        record = RunFolder(plan.run_folder).read()
        RunFolder(plan.run_folder).update(created=f"{record.created} {name}")
        return run(plan)

    folder = run_of("one", 1)
    config = SiteConfig(
        site="henan", data=tmp_path, state=own["henan"], privacy=PrivacyLimits(max_epsilon=budget)
    )
    assert read_figures(config).spent == pytest.approx(expected_epsilon(1), rel=0.02)
    in_run = folder.path / "work" / "sites"
    assert not (in_run / "henan" / "privacy").exists()
    assert list((in_run / "henan" / "outbox").iterdir()), "what may be sent again belongs to the run"
    assert not (own["henan"] / "privacy" / "outbox").exists()
    assert (in_run / "zhengzhou" / "privacy" / "ledger.jsonl").exists()
    assert not own["zhengzhou"].exists()
    before = read_figures(config)
    assert {one.run for one in before.runs} == {folder.read().key}
    assert set(run_of("two", 2).rounds()[1].sites) == {"zhengzhou"}
    assert read_figures(config) == before, "nothing is left for another run, and nothing was spent on it"
