"""Masked rounds in which few hospitals teach a head, and two masked runs of the same numbers."""

import shutil

import numpy as np
import pytest

import tests.federation_fixture as fixture
from fedglioma.case import Genotype, Task
from fedglioma.errors import QuorumError
from fedglioma.privacy.fixed_point import decode_parts
from fedglioma.weights import TRUNK
from fedglioma.wire import TRAIN, weights_of
from fedglioma_server import secure_strategy
from fedglioma_server.report import write_report
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.secure import SecureSum
from fedglioma_server.simulate import plan_file
from tests.federation_fixture import final_weights, make_plan, run
from tests.flow.test_secure_federation import assert_near, failing, is_answer, plain, secure

NAMES = ("anyang", "henan", "kaifeng", "luoyang")
SITES = dict.fromkeys(NAMES, 4)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)


@pytest.fixture
def atrx_at(monkeypatch):
    """Let the hospitals named have labels of ATRX, and no other."""
    made = fixture.prepared_case

    def only(*having):
        def case(folder, site, number, genotype=None):
            atrx = number % 2 if site in (*having, "held") else -1
            genotype = Genotype(idh=number % 2, atrx=atrx, codel_1p19q=0)
            return made(folder, site, number, genotype=genotype)

        monkeypatch.setattr(fixture, "prepared_case", case)

    return only


@pytest.fixture
def sums(monkeypatch):
    """Return what a server reads that keeps everything: of each sum unmasked its parts, and who is in it."""
    found = []
    close = SecureSum.close

    def kept(self):
        total, survivors = close(self)
        parts = decode_parts(self.session.parts, self.session.sites, total, len(survivors))
        found.append((parts, survivors))
        return total, survivors

    class Kept(SecureSum):
        close = kept

    monkeypatch.setattr(secure_strategy, "SecureSum", Kept)
    return found


def first_weights(kept):
    def keep(message):
        if message.metadata.message_type == TRAIN and not is_answer(message):
            kept.setdefault("sent", {g: a.copy() for g, a in weights_of(message.content).items()})

    return keep


@pytest.mark.parametrize(("masked_counts", "having"), [(False, ["henan"]), (True, ["henan", "kaifeng"])])
def test_head_that_fewer_than_three_hospitals_teach_is_in_no_sum(
    tmp_path, atrx_at, sums, masked_counts, having
):
    atrx_at(*having)
    plan = make_plan(tmp_path / "masked", secure(secure_statistics=masked_counts), sites=SITES)
    kept = {}
    folder = run(plan, tap=first_weights(kept))
    (parts, survivors) = sums[-1]
    assert set(survivors) == set(SITES)
    assert not parts["atrx"].any()
    assert not parts["atrx weight"].any()
    assert parts["idh"].any()
    weights = final_weights(plan)
    assert weights["atrx"].tobytes() == kept["sent"]["atrx"].tobytes()
    bare = make_plan(tmp_path / "plain", plain(), sites=SITES)
    run(bare)
    for group in (TRUNK, "idh"):  # with masked counts the scale of intensities is rounded
        near = np.isclose(weights[group], final_weights(bare)[group], rtol=0, atol=1e-5)
        assert near.mean() > 0.99
    assert folder.read().frozen == {Task.ATRX: [1]}


def test_head_that_three_hospitals_teach_is_trained_as_without_masks(tmp_path, atrx_at):
    atrx_at("anyang", "henan", "kaifeng")
    one = make_plan(tmp_path / "one", plain(), sites=SITES)
    other = make_plan(tmp_path / "other", secure(), sites=SITES)
    run(one)
    folder = run(other)
    assert_near(final_weights(one), final_weights(other))
    assert (folder.read().frozen, folder.read().frozen_words) == ({}, "")


@pytest.mark.parametrize(
    ("masked_counts", "when", "times"),
    [(False, "begin", 99), (True, "begin", 99), (False, "train", 1), (True, "train", 99)],
)
def test_head_is_frozen_where_one_of_three_that_teach_it_drops_out(
    tmp_path, atrx_at, sums, masked_counts, when, times
):
    atrx_at("anyang", "henan", "kaifeng")
    settings = secure(secure_statistics=masked_counts)
    plan = make_plan(tmp_path, settings, sites=SITES)
    lost = failing("henan", when, times)
    if when == "begin" and masked_counts:  # the first exchange is that of the counts
        lost = after_counts(lost)
    folder = run(plan, meddle=lost)
    parts, survivors = sums[-1]
    assert len(sums) == 1, "and no sum with the head in it was unmasked before"
    assert ("henan" in survivors) == (times == 1)
    assert not parts["atrx"].any()
    assert parts["idh"].any()
    assert folder.read().frozen == {Task.ATRX: [1]}


def after_counts(meddle):
    """Return a meddler that begins once a site was asked to train or to begin a sum of updates."""

    def later(message, reply):
        if '"purpose":"statistics"' in str(message.content["fedglioma"]["json"]):
            return reply
        return meddle(message, reply)

    return later


def test_head_comes_back_when_the_third_hospital_does(tmp_path, atrx_at, sums):
    atrx_at("anyang", "henan", "kaifeng")
    plan = make_plan(tmp_path, secure(rounds=2), sites=SITES)
    folder = run(plan, meddle=failing("henan", "begin", 2))
    assert folder.read().frozen == {Task.ATRX: [1]}
    assert [bool(parts["atrx"].any()) for parts, _ in sums] == [False, True]


def test_run_report_card_and_log_say_which_head_was_frozen(tmp_path, atrx_at, caplog):
    atrx_at("henan")
    folder = run(make_plan(tmp_path, secure(rounds=2), sites=SITES))
    words = folder.read().frozen_words
    assert "ATRX in rounds 1-2" in words
    assert "round 1: ATRX stays as it was: fewer than 3 hospitals teach it" in caplog.text
    write_report(folder.path)
    told = "Under masks a head of the network is trained only where 3 or more hospitals teach it"
    assert told in folder.report.read_text(encoding="utf-8")
    assert told in (folder.model / "README.md").read_text(encoding="utf-8")


def second(plan, folder, settings, names):
    """Return a new run of the same hospitals, who remember what they remember of the first."""
    found = make_plan(folder, settings, sites={name: SITES[name] for name in names})
    for name in names:
        held = plan.run_folder / "work" / "sites" / name
        shutil.copytree(held, found.run_folder / "work" / "sites" / name)
    return found


def test_second_run_of_the_same_numbers_without_one_hospital_is_refused(tmp_path, caplog):
    settings = secure()
    first = make_plan(tmp_path / "first", settings, sites=SITES)
    run(first)
    fewer = [name for name in NAMES if name != "kaifeng"]
    with pytest.raises(QuorumError):
        run(second(first, tmp_path / "fewer", settings, fewer))
    assert "steps from the same weights over other sites before" in caplog.text
    assert "must begin with other weights: another seed" in caplog.text


@pytest.mark.parametrize("changed", [{}, {"lr": 2e-3}])
def test_second_run_of_the_same_hospitals_is_not_refused(tmp_path, changed):
    first = make_plan(tmp_path / "first", secure(), sites=SITES)
    run(first)
    again = second(first, tmp_path / "again", secure(**changed), NAMES)
    assert [line.round for line in run(again).rounds()] == [0, 1]


def test_second_run_without_one_hospital_goes_with_another_seed(tmp_path):
    first = make_plan(tmp_path / "first", secure(), sites=SITES)
    run(first)
    fewer = [name for name in NAMES if name != "kaifeng"]
    other = second(first, tmp_path / "other", secure(seed=7), fewer)
    assert [line.round for line in run(other).rounds()] == [0, 1]
    assert RunFolder(other.run_folder).read().frozen == {}


def test_hospital_that_wants_more_hospitals_around_it_adds_nothing_to_a_smaller_sum(tmp_path, caplog):
    plan = make_plan(tmp_path, secure(), sites=SITES)
    (first, *others) = plan.sites
    wanting = first.model_copy(update={"settings": first.settings.model_copy(update={"least_masked": 5})})
    plan = plan.model_copy(update={"sites": (wanting, *others)})
    plan_file(RunFolder(plan.run_folder)).write_text(plan.model_dump_json())
    (_, line) = run(plan).rounds()
    assert {site for site, entry in line.sites.items() if entry.status == "ok"} == {*NAMES} - {"anyang"}
    assert (line.sites["anyang"].code, "4 sites take part, this site wants 5" in caplog.text) == (
        "not_masked",
        True,
    )
