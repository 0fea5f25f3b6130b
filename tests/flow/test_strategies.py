"""Every strategy and payload through the two apps: restarts, recomputation, norms that stay at home."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedglioma.errors import ConfigError, FedGliomaError, ProtocolError
from fedglioma.payload import packed_bytes
from fedglioma.training.learner import EQUAL_COUNTS, build_learner, layout_of
from fedglioma.training.released import load_model
from fedglioma.weights import GROUPS, Layout, local_state, pack, to_record
from fedglioma.wire import TRAIN, weights_of
from fedglioma_server.heldout import best_round
from fedglioma_server.recompute import recompute
from fedglioma_server.runfolder import RunFolder
from tests.federation_fixture import TINY, assert_same_bits, final_weights, make_plan, run

FIVE = {"anyang": 2, "henan": 2, "kaifeng": 3, "ningxia": 2, "zhengzhou": 2}
STATEFUL = ["fedavgm", "fedadam", "fedyogi"]
BATCH_NORM = {"preset": "reference", "strategy": "fedbn"}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def settings(**changed):
    return TINY.model_copy(update=changed)


def stopped_after(plan, number: int) -> RunFolder:
    def stop(line):
        if line.round == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=stop)
    return RunFolder(plan.run_folder)


@pytest.mark.parametrize("strategy", ["median", "trimmed_mean", "multikrum", "fedadam"])
def test_every_strategy_trains_five_sites_and_can_be_computed_again(tmp_path, strategy):
    plan = make_plan(tmp_path, settings(strategy=strategy, keep_updates=True), sites=FIVE)
    lines = run(plan).rounds()
    assert [line.round for line in lines] == [0, 1, 2]
    assert all((line.state_digest is not None) == (strategy in STATEFUL) for line in lines)
    for number in (1, 2):
        assert recompute(plan.run_folder, number) == lines[number].weights_digest


@pytest.mark.parametrize(
    ("strategy", "cut_after"), [("fedavgm", 1), ("fedadam", 1), ("fedyogi", 1), ("fedadam", 0)]
)
def test_server_that_was_killed_goes_on_with_its_moments(tmp_path, strategy, cut_after):
    chosen = settings(strategy=strategy)
    undisturbed, cut = make_plan(tmp_path / "one", chosen), make_plan(tmp_path / "two", chosen)
    run(undisturbed)
    stopped_after(cut, cut_after)
    run(cut)
    assert_same_bits(final_weights(undisturbed), final_weights(cut))
    one, two = (RunFolder(plan.run_folder).rounds() for plan in (undisturbed, cut))
    assert [line.state_digest for line in one] == [line.state_digest for line in two]
    assert [line.weights_digest for line in one] == [line.weights_digest for line in two]


def test_server_that_lost_its_moments_does_not_go_on_without_them(tmp_path):
    plan = make_plan(tmp_path, settings(strategy="fedadam"))
    folder = stopped_after(plan, 1)
    (folder.checkpoints / "round-0001.state.safetensors").unlink()
    with pytest.raises(ProtocolError, match="moments were not saved"):
        run(plan)


@pytest.mark.parametrize("payload", ["float32", "bfloat16", "int8"])
def test_weights_can_be_computed_again_from_files_alone(tmp_path, payload):
    plan = make_plan(tmp_path, settings(payload=payload, keep_updates=True))
    lines = run(plan).rounds()
    assert [recompute(plan.run_folder, n) for n in (1, 2)] == [line.weights_digest for line in lines[1:]]
    sizes = layout_of(plan.settings).sizes
    for site in lines[1].sites.values():
        assert packed_bytes(payload, sizes) < site.bytes_up < packed_bytes(payload, sizes) + 4096
        assert site.bytes_down < packed_bytes("float32", sizes) + 8192


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("updates/round-0002/henan.safetensors", "is not the update on record"),
        ("checkpoints/round-0001.safetensors", "damaged"),
        ("checkpoints/round-0001.state.safetensors", "damaged"),
    ],
)
def test_changed_file_is_found_when_weights_are_computed_again(tmp_path, path, said):
    plan = make_plan(tmp_path, settings(strategy="fedadam", keep_updates=True))
    run(plan)
    file = plan.run_folder / path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ProtocolError, match=said):
        recompute(plan.run_folder, 2)


def test_changed_record_is_found_when_weights_are_computed_again(tmp_path):
    plan = make_plan(tmp_path, settings(keep_updates=True))
    folder = run(plan)
    text = folder.rounds_file.read_text()
    weights = folder.rounds()[1].sites["henan"].weights["trunk"]
    assert f'"trunk":{weights}' in text
    folder.rounds_file.write_text(text.replace(f'"trunk":{weights}', '"trunk":7.0'))
    with pytest.raises(ProtocolError, match=r"round 1: weights digest .*, on record"):
        recompute(plan.run_folder, 1)


def test_without_kept_updates_nothing_is_left_and_nothing_can_be_computed_again(tmp_path):
    plan = make_plan(tmp_path)
    folder = run(plan)
    assert not folder.updates.exists()
    assert not (folder.work / "updates").exists()
    with pytest.raises(ConfigError, match="kept no updates; start one with keep_updates"):
        recompute(plan.run_folder, 2)


def test_update_that_was_removed_is_missed(tmp_path):
    plan = make_plan(tmp_path, settings(keep_updates=True, rounds=1))
    folder = run(plan)
    (folder.updates / "round-0001" / "henan.safetensors").unlink()
    with pytest.raises(ProtocolError, match=r"henan\.safetensors: cannot be read"):
        recompute(plan.run_folder, 1)


def test_interrupted_round_leaves_no_update_behind_the_next(tmp_path):
    plan = make_plan(tmp_path)

    def stop(message, reply):
        if message.metadata.message_type == TRAIN:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(plan, meddle=stop)
    work = RunFolder(plan.run_folder).work / "updates"
    (work / "left.safetensors").write_bytes(b"half")
    run(plan)
    assert not work.exists()


@pytest.mark.parametrize("payload", ["bfloat16", "int8"])
def test_rounded_steps_stay_near_the_exact_run(tmp_path, payload):
    exact, rounded = (
        make_plan(tmp_path / name, settings(rounds=1, payload=name)) for name in ("float32", payload)
    )
    run(exact)
    run(rounded)
    one, other = final_weights(exact), final_weights(rounded)
    for group in (group for group in GROUPS if len(one[group])):
        # Adam's first steps are of the size of the learning rate, whatever the gradient's.
        assert np.abs(one[group] - other[group]).max() < 6 * TINY.lr


def test_run_with_rounded_steps_continues_to_the_same_bits(tmp_path):
    chosen = settings(payload="int8")
    undisturbed, cut = make_plan(tmp_path / "one", chosen), make_plan(tmp_path / "two", chosen)
    run(undisturbed)
    stopped_after(cut, 1)
    run(cut)
    assert_same_bits(final_weights(undisturbed), final_weights(cut))


def test_site_refuses_weights_of_a_payload_that_was_not_agreed_on(tmp_path):
    plan = make_plan(tmp_path, settings(payload="int8", rounds=1, quorum=1))
    arrays = {group: np.zeros(size, np.uint16) for group, size in layout_of(plan.settings).sizes.items()}

    def swap(message):
        if message.metadata.dst_node_id == 2 and message.metadata.message_type == TRAIN:
            message.content["weights"] = to_record(arrays)

    line = run(plan, tap=swap).rounds()[1]
    refused = [site for site in line.sites.values() if site.status == "refused"]
    assert len(refused) == 1
    assert "should be float32" in refused[0].reason


def own_norms(plan, site: str) -> list[Path]:
    return sorted((plan.run_folder / "work" / "sites" / site / "norms").rglob("*.safetensors"))


@pytest.mark.parametrize("preset", ["reference", "recommended"])
def test_fedbn_sends_no_norm_and_each_site_keeps_its_own(tmp_path, preset):
    plan = make_plan(tmp_path, settings(**BATCH_NORM, rounds=2).model_copy(update={"preset": preset}))
    sent = []
    run(plan, tap=sent.append)
    learner = build_learner(plan.settings, EQUAL_COUNTS)
    norms = local_state(learner.model)
    names = {name for name, _ in layout_of(plan.settings).shapes}
    assert norms
    assert not names & set(norms)
    whole = Layout.of(learner.model, learner.loss, whole=True)
    counters = {name for name in norms if name.endswith("num_batches_tracked")}
    assert {name for name, _ in whole.shapes} == names | set(norms) - counters
    size = sum(layout_of(plan.settings).sizes.values())
    for message in sent:
        if "weights" in message.content:
            assert sum(array.size for array in weights_of(message.content).values()) == size
    kept = {site: own_norms(plan, site) for site in ("henan", "ningxia", "zhengzhou")}
    names = {tuple(path.name for path in found) for found in kept.values()}
    assert names == {("round-0001.safetensors", "round-0002.safetensors")}
    assert len({found[-1].read_bytes() for found in kept.values()}) == 3


def test_fedbn_that_was_interrupted_ends_with_the_same_bits_and_the_same_norms(tmp_path):
    chosen = settings(**BATCH_NORM)
    undisturbed, cut = make_plan(tmp_path / "one", chosen), make_plan(tmp_path / "two", chosen)
    for plan in (undisturbed, cut):  # a run's key follows from the second it was created in
        record = RunFolder(plan.run_folder)
        record.update(created="2026-01-01T00:00:00+00:00")
    run(undisturbed)
    calls = 0

    def stop(message, reply):
        nonlocal calls
        calls += message.metadata.message_type == TRAIN
        if calls == 5:  # the second site of round 2 has trained and kept its norms, its reply is lost
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(cut, meddle=stop)
    run(cut)
    assert_same_bits(final_weights(undisturbed), final_weights(cut))
    for site in ("henan", "ningxia", "zhengzhou"):
        one, other = own_norms(undisturbed, site), own_norms(cut, site)
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    one, two = (RunFolder(plan.run_folder).rounds() for plan in (undisturbed, cut))
    assert [line.heldout for line in one] == [line.heldout for line in two]


def test_released_fedbn_model_stands_alone(tmp_path):
    plan = make_plan(tmp_path, settings(**BATCH_NORM))
    folder = run(plan)
    learner, loaded, _ = load_model(folder.model)
    assert loaded == plan.settings
    chosen = best_round(folder.rounds())
    assert_same_bits(pack(learner.model, learner.loss), final_weights(plan, chosen.round))
    means = [t for name, t in local_state(learner.model).items() if name.endswith("running_mean")]
    assert means
    assert all(bool(torch.isfinite(mean).all()) for mean in means)
    assert any(float(mean.abs().max()) > 0 for mean in means)


def test_damaged_norms_leave_the_site_out_without_naming_a_path(tmp_path):
    plan = make_plan(tmp_path, settings(**BATCH_NORM, rounds=2))
    stopped_after(plan, 1)
    (found,) = own_norms(plan, "henan")
    found.write_bytes(b"half")
    line = run(plan).rounds()[2].sites["henan"]
    assert line.status == "refused"
    assert str(tmp_path) not in line.reason
    assert line.reason == "FedGliomaError: the reason is in the site's own log"


def test_other_run_of_the_same_name_starts_from_untrained_norms(tmp_path):
    plan = make_plan(tmp_path, settings(**BATCH_NORM, rounds=1))
    run(plan)
    first = own_norms(plan, "henan")
    folder = RunFolder(plan.run_folder)
    for path in (folder.rounds_file, *folder.checkpoints.iterdir()):
        path.unlink()
    folder.update(created="2026-01-01T00:00:00+00:00")
    run(plan)
    assert len({path.parent.name for path in own_norms(plan, "henan")} - {first[0].parent.name}) == 1


def test_multikrum_with_three_sites_is_refused_before_any_training(tmp_path):
    plan = make_plan(tmp_path, settings(strategy="multikrum"))
    with pytest.raises(FedGliomaError, match="needs 5 sites that train, there are 3"):
        run(plan)


def test_weights_that_run_away_end_the_run_and_say_so(tmp_path):
    plan = make_plan(tmp_path, settings(strategy="fedadam", server_lr=1e38, rounds=3))
    with pytest.raises(FedGliomaError, match=r"not finite|usable updates"):
        run(plan)
