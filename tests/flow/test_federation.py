"""The whole exchange in one process: the two apps over the inline grid."""

import json

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord

from fedglioma.case import GENES, Gene, Genotype
from fedglioma.config.site import Policy
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.loader import train_batches
from fedglioma.data.plan import PLAN_KEY
from fedglioma.data.standardize import on_scale
from fedglioma.errors import ProtocolError, QuorumError
from fedglioma.losses.tasks import Targets
from fedglioma.seeds import derive_seed, seed_torch
from fedglioma.training.fit import parameter_groups
from fedglioma.training.learner import build_learner, initial_learner, layout_of
from fedglioma.training.released import load_model
from fedglioma.weights import GROUPS, pack
from fedglioma.wire import TRAIN, Body, payload_bytes, request_record, weights_of
from fedglioma_server.app import make_app
from fedglioma_server.heldout import best_round
from fedglioma_server.inline import run_inline
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from tests.federation_fixture import (
    MARK,
    TINY,
    Meddler,
    assert_same_bits,
    final_weights,
    make_plan,
    prepared_case,
    run,
)


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
    """Leave the report, most of a tiny run's time, to the one test that looks for it."""
    if "report" not in request.node.name:
        monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


def replace_weights(message, change):
    arrays = {name: array.copy() for name, array in weights_of(message.content).items()}
    change(arrays)
    message.content["weights"] = request_record(Body(), arrays)["weights"]
    return message


def test_run_ends_with_model_evaluation_survival_and_report(tmp_path):
    plan = make_plan(tmp_path)
    folder = run(plan)
    record = folder.read()
    assert record.status == "completed"
    assert [line.round for line in folder.rounds()] == [0, 1, 2]
    for path in ("evaluation/metrics.json", "evaluation/predictions.csv", "privacy.json", "report.html"):
        assert (folder.path / path).stat().st_size > 0
    learner, settings, _ = load_model(folder.model)
    assert settings == plan.settings
    chosen = best_round(folder.rounds())
    assert_same_bits(pack(learner.model, learner.loss), final_weights(plan, chosen.round))


def test_same_run_twice_gives_the_same_bits(tmp_path):
    plans = [make_plan(tmp_path / name) for name in ("one", "two")]
    for plan in plans:
        run(plan)
    assert_same_bits(final_weights(plans[0]), final_weights(plans[1]))


def test_one_site_for_one_round_equals_a_plain_training_loop(tmp_path):
    settings = TINY.model_copy(update={"rounds": 1, "flips": False})
    plan = make_plan(tmp_path, settings, sites={"ningxia": 4})
    record = run(plan).read()

    torch.set_num_threads(1)
    learner = initial_learner(settings, record.class_counts)
    dataset = CaseDataset(
        on_scale(plan.sites[0].cases, record.scale),
        crop=settings.crop,
        augment=None,
        seed=derive_seed(settings.seed, "crops", "ningxia"),
    )
    optimizer = torch.optim.Adam(
        parameter_groups(learner.model, learner.loss, settings.weight_decay), lr=settings.lr
    )
    learner.model.train()
    # A site draws its copy of the network, and then its dropout, from the round's own seed.
    seed_torch(settings.seed, "train", "ningxia", 1)
    build_learner(settings, record.class_counts)
    batches = train_batches(
        dataset, batch_size=settings.batch_size, seed=derive_seed(settings.seed, "order", "ningxia"), epoch=0
    )
    for batch in batches:
        optimizer.zero_grad()
        learner.loss(learner.model(batch.image, batch.present), Targets(batch.genotype)).backward()
        optimizer.step()
    expected, found = pack(learner.model, learner.loss), final_weights(plan)
    for group in GROUPS:
        np.testing.assert_allclose(found[group], expected[group], rtol=0, atol=1e-6)


def test_aggregate_is_the_mean_of_the_replies_by_labelled_cases(tmp_path):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1}))
    replies = {}

    def keep(message, reply):
        if message.metadata.message_type == TRAIN:
            body = json.loads(reply.content["fedglioma"]["json"])
            replies[body["site"]] = (weights_of(reply.content), body["weights"])
        return reply

    run(plan, meddle=keep)
    found = final_weights(plan)
    assert len(replies) == 3
    for group in (group for group in GROUPS if len(found[group])):
        weights = [weight[group] for _, weight in replies.values()]
        expected = np.average(
            [array[group].astype(np.float64) for array, _ in replies.values()], axis=0, weights=weights
        )
        np.testing.assert_allclose(found[group], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut_after", [0, 1])
def test_interrupted_run_continues_to_the_same_bits(tmp_path, cut_after):
    settings = TINY.model_copy(update={"rounds": 3})
    undisturbed, cut = make_plan(tmp_path / "one", settings), make_plan(tmp_path / "two", settings)
    run(undisturbed)

    def stop(line):
        if line.round == cut_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cut, finished=stop)
    assert [line.round for line in RunFolder(cut.run_folder).rounds()] == list(range(cut_after + 1))
    run(cut)
    assert_same_bits(final_weights(undisturbed), final_weights(cut))
    one, two = (RunFolder(plan.run_folder).rounds() for plan in (undisturbed, cut))
    assert [line.heldout for line in one] == [line.heldout for line in two]


def test_checkpoint_that_was_damaged_is_not_continued_from(tmp_path):
    plan = make_plan(tmp_path)

    def stop(line):
        if line.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=stop)
    path = plan.run_folder / "checkpoints" / "round-0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ProtocolError, match="damaged"):
        run(plan)


def nan_update(message, reply):
    body = json.loads(reply.content["fedglioma"]["json"])
    if body.get("kind") == "train" and body["site"] == "henan":
        return replace_weights(reply, lambda arrays: arrays["idh"].__setitem__(0, np.nan))
    return reply


def short_update(message, reply):
    body = json.loads(reply.content["fedglioma"]["json"])
    if body.get("kind") == "train" and body["site"] == "henan":
        arrays = weights_of(reply.content)
        arrays["trunk"] = arrays["trunk"][:-1]
        reply.content["weights"] = request_record(Body(), arrays)["weights"]
    return reply


def stale_update(message, reply):
    body = json.loads(reply.content["fedglioma"]["json"])
    if body.get("kind") == "train" and body["site"] == "henan":
        body["round"] += 5
        reply.content["fedglioma"]["json"] = json.dumps(body)
    return reply


def crash(message, reply):
    body = json.loads(reply.content["fedglioma"]["json"])
    if body.get("kind") == "train" and body["site"] == "henan":
        raise RuntimeError(f"out of memory at /data/{MARK}")
    return reply


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (nan_update, "not finite"),
        (short_update, "group trunk"),
        (stale_update, "does not belong here"),
        (crash, "Flower error"),
    ],
)
def test_bad_update_leaves_its_site_out_and_the_rest_goes_on(tmp_path, meddle, reason):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1}))
    folder = run(plan, meddle=meddle)
    sites = folder.rounds()[1].sites
    assert sites["henan"].status == "error"
    assert reason in sites["henan"].reason
    assert MARK not in sites["henan"].reason
    assert [sites[name].status for name in ("ningxia", "zhengzhou")] == ["ok", "ok"]
    alone = make_plan(
        tmp_path / "without", TINY.model_copy(update={"rounds": 1}), sites={"ningxia": 4, "zhengzhou": 3}
    )
    counts = folder.read().class_counts
    assert counts[Gene.IDH] != run(alone).read().class_counts[Gene.IDH]


def test_too_few_usable_updates_end_the_run_and_it_can_be_continued(tmp_path):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1, "quorum": 3}))
    with pytest.raises(QuorumError, match=r"2 usable updates, 3 needed \(henan: the update holds numbers"):
        run(plan, meddle=nan_update)
    assert run(plan).read().status == "completed"


def test_site_whose_policy_refuses_is_left_out_with_its_words(tmp_path):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1}))
    site = plan.sites[2]
    strict = site.model_copy(
        update={"settings": site.settings.model_copy(update={"policy": Policy(strategies=("fedprox",))})}
    )
    changed = plan.model_copy(update={"sites": (*plan.sites[:2], strict)})
    plan_file(RunFolder(plan.run_folder)).write_text(changed.model_dump_json())
    folder = run(changed)
    assert sorted(folder.read().sites) == ["ningxia", "zhengzhou"]


def test_site_without_labels_is_idle(tmp_path):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1}))
    unlabelled = plan.sites[2].model_copy(
        update={
            "cases": tuple(
                prepared_case(tmp_path / "data", "henan", n, genotype=Genotype()) for n in range(2)
            )
        }
    )
    changed = plan.model_copy(update={"sites": (*plan.sites[:2], unlabelled)})
    plan_file(RunFolder(plan.run_folder)).write_text(changed.model_dump_json())
    folder = run(changed)
    assert folder.rounds()[1].sites["henan"].status == "idle"
    assert folder.read().status == "completed"


def test_gene_that_nobody_measured_keeps_its_head_to_the_bit(tmp_path):
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1}))
    sites = tuple(
        site.model_copy(
            update={
                "cases": tuple(
                    prepared_case(
                        tmp_path / "data", site.settings.site, n, genotype=Genotype(idh=n % 2, codel_1p19q=0)
                    )
                    for n in range(3)
                )
            }
        )
        for site in plan.sites
    )
    changed = plan.model_copy(update={"sites": sites})
    plan_file(RunFolder(plan.run_folder)).write_text(changed.model_dump_json())
    counts = run(changed).read().class_counts
    before = initial_learner(plan.settings, counts)
    assert final_weights(plan)["atrx"].tobytes() == pack(before.model, before.loss)["atrx"].tobytes()
    assert final_weights(plan)["idh"].tobytes() != pack(before.model, before.loss)["idh"].tobytes()


def test_no_message_names_a_patient_a_path_or_carries_an_image(tmp_path):
    plan = make_plan(tmp_path, limit=5)
    seen = []
    run(plan, tap=seen.append)
    assert len(seen) == 2 * 3 * (1 + plan.settings.rounds)
    weights = layout_of(plan.settings).payload_bytes
    images = [np.load(item.array) for site in plan.sites for item in site.cases]
    for message in seen:
        content = message.content
        text = "".join(str(record.get("json", "")) for record in content.config_records.values())
        assert MARK not in text
        assert str(tmp_path) not in text
        assert "os_days" not in text
        assert "patient" not in text
        for record in content.values():
            if isinstance(record, ArrayRecord):
                assert set(record) == set(GROUPS)
                raw = b"".join(array.data for array in record.values())
                assert len(raw) < weights + 1024
                assert not any(image.tobytes()[:256] in raw for image in images)
        assert payload_bytes(content) < weights + 8192


def test_published_counts_respect_the_small_cell_limit(tmp_path):
    folder = run(make_plan(tmp_path, limit=5))
    record = folder.read()
    for line in folder.rounds()[1].sites.values():
        assert line.loss is None
        assert line.loss_by_task == {}
    for site in record.sites.values():
        assert site.cases == 5
        for cells in site.labels.values():
            assert all(cell is None or cell == 0 or cell >= 5 for cell in cells)
    assert record.suppressed_cells > 0


def test_fedprox_with_no_pull_is_fedavg(tmp_path):
    fixed = TINY.model_copy(update={"rounds": 1, "weighting": "fixed"})
    average = make_plan(tmp_path / "avg", fixed)
    prox = make_plan(tmp_path / "prox", fixed.model_copy(update={"strategy": "fedprox", "proximal_mu": 0.0}))
    run(average)
    run(prox)
    assert_same_bits(final_weights(average), final_weights(prox))


def test_stronger_pull_keeps_sites_nearer_to_the_global_weights(tmp_path):
    norms = []
    for mu in (0.0, 10.0, 1000.0):
        settings = TINY.model_copy(
            update={"rounds": 1, "strategy": "fedprox", "proximal_mu": mu, "local_epochs": 4}
        )
        plan = make_plan(tmp_path / f"mu{mu:g}", settings, sites={"ningxia": 4})
        norms.append(run(plan).rounds()[1].sites["ningxia"].update_norm)
    assert norms[0] > norms[1] > norms[2]


def test_site_keeps_no_state_between_rounds(tmp_path):
    """The optimizer starts afresh: the same request gives the same reply, whatever came before."""
    plan = make_plan(tmp_path, TINY.model_copy(update={"rounds": 1}))
    replies = []

    def ask_twice(message, reply):
        if message.metadata.message_type == TRAIN:
            replies.append(weights_of(reply.content))
        return reply

    class Twice(Meddler):
        def __call__(self, message, context):
            super().__call__(message, context)
            return super().__call__(message, context)

    run_inline(
        make_app(),
        Twice(ask_twice),
        sites=3,
        run_config={PLAN_KEY: str(plan_file(RunFolder(plan.run_folder)))},
    )
    for first, second in zip(replies[::2], replies[1::2], strict=True):
        assert_same_bits(first, second)


def test_uncertainty_weights_are_shared_and_recorded(tmp_path):
    lines = run(make_plan(tmp_path)).rounds()
    assert [lines[0].log_variances[gene] for gene in GENES] == [5.0, 6.0, 6.0]
    assert all(
        lines[-1].log_variances[gene] != lines[0].log_variances[gene] for gene in (Gene.IDH, Gene.CODEL)
    )
