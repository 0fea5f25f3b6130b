"""``evaluate --attack`` through the command line: who is attacked, what is told, and the release gate."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedglioma.attack.bounds import Bound, auc_bound
from fedglioma.attack.probe import ProbeResult
from fedglioma.attack.result import attack_result, share
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import read_cohort
from fedglioma.data.plan import SimulationPlan, SitePlan
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.synthetic_cohort import synthesize
from fedglioma.metrics.bootstrap import Measure
from fedglioma.privacy.accounting import epsilon_of
from fedglioma.privacy.tradeoff import largest_auc, largest_tpr
from fedglioma.weights import Layout, pack
from fedglioma_server.attack_report import (
    AttackReport,
    attack_text,
    attack_words,
    gate,
    serious,
)
from fedglioma_server.figures import membership_curve
from fedglioma_server.privacy import privacy_record
from fedglioma_server.records import write_json, write_text
from fedglioma_server.release import write_model
from fedglioma_server.run_attack import shadow_trainer
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from fedglioma_server.spending import mechanisms
from fedglioma_server.stated_privacy import stated_privacy
from tests.cli_fixture import call, data_of, reason_of
from tests.release_fixture import CHOSEN, run_record, small_settings, trained_rounds, write_release

PATIENTS = 20
QUICK = ("--workers", "1", "--bootstrap", "100", "--no-inversion")
PRIVATE = {
    "differentially_private": True,
    "epsilon": 0.05,
    "delta": 1e-5,
    "noise_multiplier": 50.0,
    "clip_norm": 1.0,
}


def settings_of() -> RunConfig:
    return small_settings(spacing_mm=8.0, lr=5e-3, local_epochs=25, rounds=2, flips=False, batch_size=10)


def rename(cohort: Path) -> None:
    """Give a synthetic cohort ids of its own: two of them count from the same number."""
    for path in sorted(cohort.rglob("*SYN*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("SYN", "OTHER")))
    table = cohort / "participants.tsv"
    table.write_text(table.read_text().replace("SYN", "OTHER"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose model learned ten patients by heart and never saw ten others."""
    top = tmp_path_factory.mktemp("attacked")
    for name, seed in (("members", 1), ("others", 2)):
        synthesize(top / name, patients=PATIENTS // 2, size=16, seed=seed, sites=("henan",), label_noise=0.5)
    rename(top / "others")
    settings, folder = settings_of(), RunFolder(top / "run")
    prepared = [
        prepare_cases(
            read_cohort(top / name).cases, PrepareSettings.of(settings), Cache(top / "cache"), workers=1
        ).cases
        for name in ("members", "others")
    ]
    learner = shadow_trainer(settings, 2, torch.device("cpu"))(prepared[0], 5)
    record = run_record(settings, run_id="run")
    write_json(folder.record_file, record)
    layout = Layout.of(learner.model, learner.loss, whole=True)
    write_model(folder.model, record, CHOSEN, pack(learner.model, learner.loss, whole=True), layout)
    plan = SimulationPlan(
        run_folder=folder.path,
        settings=settings,
        sites=(SitePlan(settings=SiteConfig(site="henan", data=top / "members"), cases=prepared[0]),),
        selection=(),
        report=prepared[1],
    )
    write_text(plan_file(folder), plan.model_dump_json())
    write_json(folder.path / "privacy.json", {"differentially_private": False})
    return folder.path


def test_simulations_plan_knows_whom_to_attack_and_learning_by_heart_shows(run: Path, tmp_path: Path) -> None:
    words = ("--attack", "--out", tmp_path / "out", "--shadows", "2", "--attack-epochs", "1", *QUICK)
    result = call("evaluate", run / "model", *words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = data_of(result)["attack"]
    assert (found["members"], found["nonmembers"], found["shadows"], found["shadow_rounds"]) == (10, 10, 2, 1)
    assert found["privacy"] == "no bound: not differentially private"
    threshold, ratio = found["attacks"]
    assert (threshold["name"], ratio["name"]) == ("loss threshold", "likelihood ratio")
    assert threshold["auc"]["low"] > 0.5
    assert threshold["verdict"] == "no bound"
    written = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert written["attacks"][0]["curve"][-1] == [1.0, 1.0]
    assert "SYNTHETIC DATA" in (tmp_path / "out" / "attack.svg").read_text()
    assert len(list((tmp_path / "out" / "shadows").iterdir())) == 2


def test_gate_refuses_a_model_that_tells_more_than_its_epsilon_allows(run: Path, tmp_path: Path) -> None:
    before = (run / "privacy.json").read_text()
    words = ("--attack", "--out", tmp_path / "out", "--shadows", "0", *QUICK)
    try:
        write_json(run / "privacy.json", PRIVATE)
        allowed = call("evaluate", run / "model", *words)
        refused = call("evaluate", run / "model", *words, "--gate")
    finally:
        (run / "privacy.json").write_text(before)
    assert allowed.exit_code == 0
    assert "epsilon 0.05 at delta 1e-05" in allowed.stdout
    assert "not to be released: loss threshold: AUC is at least" in allowed.stdout
    assert refused.exit_code == 1
    assert "not to be released" in reason_of(refused)


def test_cohorts_can_be_named_instead_and_updates_are_probed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedglioma_server.run_attack.PROBED", 5)
    monkeypatch.setattr("fedglioma_server.run_attack.DRAWN", 0)
    top = run.parent
    words = (
        *("--attack", "--members", top / "members", "--cohort", top / "others", "--shadows", "0"),
        *("--out", tmp_path / "out", "--cache", top / "cache", "--workers", "1", "--bootstrap", "100"),
    )
    result = call("evaluate", run / "model", *words)
    assert result.exit_code == 0, result.stderr
    assert "10 members, 10 non-members" in result.stdout
    assert "gives its patient away" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--members", "{top}/members", "--cohort", "{top}/members"), 2, "10 patients are in both"),
        (("--members", "{top}/members"), 2, "give --cohort DIR"),
        (("--cohort", "{top}/members"), 2, "give --members DIR"),
        (("--run", "{top}/nowhere"), 2, "no such run folder"),
        (("--shadows", "1"), 2, "--shadows 1: at least 2"),
        (("--shadows", "0", "--attack-epochs", "3"), 2, "--attack-epochs: --shadows 0 trains no model"),
        (("--device", "tpu"), 2, "--device tpu"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_words(
    run: Path, tmp_path: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    given = [word.format(top=run.parent) for word in words]
    result = call("evaluate", run / "model", "--attack", "--out", tmp_path / "out", *QUICK, *given)
    assert result.exit_code == code, result.stderr
    assert reason in reason_of(result)


def test_person_on_both_sides_is_known_by_the_number_under_two_ids(run: Path, tmp_path: Path) -> None:
    for name, number in (("members", "11010X"), ("others", "11010x")):
        shutil.copytree(run.parent / name, tmp_path / name)
        table = tmp_path / name / "participants.tsv"
        head, first, *rest = table.read_text().splitlines()
        lines = [f"{head}\tlinkage_id", f"{first}\t{number}", *(f"{row}\tn/a" for row in rest)]
        table.write_text("\n".join(lines) + "\n")
    words = ("--members", tmp_path / "members", "--cohort", tmp_path / "others")
    result = call("evaluate", run / "model", "--attack", "--out", tmp_path / "out", *QUICK, *words)
    assert result.exit_code == 2, result.stderr
    assert "1 patients are in both, by id or linkage_id" in reason_of(result)


def test_too_few_patients_end_with_4(run: Path, tmp_path: Path) -> None:
    plan = SimulationPlan.model_validate_json(plan_file(RunFolder(run)).read_text())
    few = RunFolder(tmp_path / "few")
    write_text(plan_file(few), plan.model_copy(update={"report": plan.report[:3]}).model_dump_json())
    write_json(few.record_file, RunFolder(run).read())
    result = call("evaluate", run / "model", "--attack", "--run", few.path, "--out", tmp_path / "o", *QUICK)
    assert result.exit_code == 4
    assert "3 non-members with a known target" in reason_of(result)


def test_image_on_both_sides_is_refused_under_whatever_id(run: Path, tmp_path: Path) -> None:
    plan = SimulationPlan.model_validate_json(plan_file(RunFolder(run)).read_text())
    both = RunFolder(tmp_path / "both")
    twice = plan.model_copy(update={"report": (*plan.report, plan.sites[0].cases[0])})
    write_text(plan_file(both), twice.model_dump_json())
    write_json(both.record_file, RunFolder(run).read())
    result = call("evaluate", run / "model", "--attack", "--run", both.path, "--out", tmp_path / "o", *QUICK)
    assert result.exit_code == 2
    assert "images are among members and non-members" in reason_of(result)


def test_run_of_another_model_and_run_without_a_plan_are_refused(run: Path, tmp_path: Path) -> None:
    other, bare = RunFolder(tmp_path / "other"), RunFolder(tmp_path / "bare")
    write_json(other.record_file, RunFolder(run).read().model_copy(update={"run_id": "else"}))
    write_json(bare.record_file, RunFolder(run).read())
    for folder, reason in (
        (other, "the model is of run run, this is else"),
        (bare, "no plan of who trained"),
    ):
        words = ("--attack", "--run", folder.path, "--out", tmp_path / "o")
        result = call("evaluate", run / "model", *words, *QUICK)
        assert result.exit_code == 2
        assert reason in reason_of(result)


@pytest.mark.parametrize(
    "option",
    [
        *(("--gate",), ("--members", "x"), ("--run", "x")),
        *(("--shadows", "0"), ("--attack-epochs", "3"), ("--no-inversion",)),
    ],
)
def test_options_of_the_attack_need_it(run: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    result = call("evaluate", run / "model", "--cohort", run, "--out", tmp_path / "o", *option)
    assert result.exit_code == 2
    assert "belongs to --attack" in reason_of(result)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"differentially_private": true}', "no epsilon and delta"),
        ('{"differentially_private": true, "epsilon": "1", "delta": 1e-5}', "no epsilon and delta"),
        ('{"differentially_private": true, "epsilon": -1, "delta": 1e-5}', "epsilon -1"),
        ("{", "cannot be read"),
    ],
)
def test_privacy_that_is_said_but_not_stated_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "privacy.json").write_text(content)
    with pytest.raises(Exception, match=said):
        stated_privacy(tmp_path / "model", settings_of(), tmp_path)


def test_nothing_stated_is_no_bound(tmp_path: Path) -> None:
    model = write_release(tmp_path / "model", settings_of())
    assert stated_privacy(model, settings_of(), None).bound is None
    assert "states no privacy" in stated_privacy(model, settings_of(), None).words
    assert "nothing is stated" in stated_privacy(model, settings_of(), tmp_path).words
    write_json(tmp_path / "privacy.json", PRIVATE)
    stated = stated_privacy(model, settings_of(), tmp_path)
    assert stated.bound is not None
    assert (stated.bound.epsilon, stated.noise and stated.noise.noise_multiplier) == (0.05, 50.0)


NOISY = {"privacy": "site", "noise_multiplier": 3.0, "sampling_rate": 0.2, "norm_limit": 0.0}


def private_run(folder: RunFolder, rounds: int, **others: object) -> RunConfig:
    """Write the record of a run of so many noised rounds, and return its settings."""
    settings = small_settings("mdpnet", **{**NOISY, **others})
    write_json(folder.record_file, run_record(settings))
    lines = (line.model_dump_json() + "\n" for line in trained_rounds(rounds))
    write_text(folder.rounds_file, "".join(lines))
    return settings


def test_bound_is_the_smaller_of_what_is_stated_and_what_was_spent(tmp_path: Path) -> None:
    """Against the area below the lines of one (epsilon, delta), and that of all the noise's."""
    folder = RunFolder(tmp_path)
    settings = private_run(folder, 2)
    model = write_release(folder.model, settings)
    done = mechanisms(settings, 2)
    for epsilon, allowed in (
        (0.3, auc_bound(0.3, 1e-5)),
        (50.0, largest_auc(done, "prv")),
    ):
        write_json(tmp_path / "privacy.json", PRIVATE | {"epsilon": epsilon})
        stated = stated_privacy(model, settings, tmp_path)
        assert stated.bound is not None
        assert stated.bound.largest_auc == pytest.approx(allowed)
        assert stated.bound.largest_tpr(0.01) == pytest.approx(
            min(Bound.of(epsilon, 1e-5).largest_tpr(0.01), largest_tpr(done, 0.01, "prv"))
        )


@pytest.mark.parametrize(
    ("rounds", "others", "stated", "doubt"),
    [
        (2, {}, {"epsilon": 0.3}, "privacy.json states epsilon 0.3 at delta 1e-05, and .* training spent "),
        (2, {"noise_multiplier": 0.05}, {"epsilon": 9.0}, "training spent more than can be worked out"),
        (
            2,
            {"privacy": "none", "noise_multiplier": 0.0, "sampling_rate": 0.1},
            {},
            "nothing can be promised",
        ),
        (
            2,
            {},
            {"epsilon": 90.0, "unit": "site"},
            "for a hospital as a whole; the run's own record is of a pat",
        ),
        (2, {}, {"epsilon": 90.0}, None),
        (0, {}, {"epsilon": 90.0}, None),
    ],
)
def test_statement_that_the_runs_own_rounds_contradict_is_doubted(
    tmp_path: Path, rounds: int, others: dict[str, object], stated: dict[str, object], doubt: str | None
) -> None:
    folder = RunFolder(tmp_path)
    settings = private_run(folder, rounds, **others)
    write_json(tmp_path / "privacy.json", PRIVATE | stated)
    found = stated_privacy(tmp_path / "model", settings, tmp_path).doubts
    assert not found if doubt is None else re.search(doubt, found[0])


def test_what_a_run_writes_of_its_privacy_is_not_doubted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    settings = private_run(folder, 3)
    write_json(tmp_path / "privacy.json", privacy_record(folder.read(), folder.rounds()))
    stated = stated_privacy(tmp_path / "model", settings, tmp_path)
    assert stated.private
    assert not stated.doubts


def test_model_out_of_its_run_and_run_without_a_statement_have_the_bound_of_what_was_spent(
    tmp_path: Path,
) -> None:
    settings = private_run(RunFolder(tmp_path), 2)
    done = tuple(mechanisms(settings, 2))
    model = write_release(tmp_path / "copy", settings, spent=done)
    for run, source in ((None, "the model's own description"), (tmp_path, "the run's own record")):
        stated = stated_privacy(model, settings, run)
        assert stated.words.startswith("differentially private per patient, epsilon")
        assert stated.words.endswith(f"by {source}")
        assert stated.bound is not None
        assert stated.bound.epsilon == pytest.approx(epsilon_of(done, settings.delta, "prv"))
        assert stated.bound.largest_auc < 1
    write_json(tmp_path / "privacy.json", {"differentially_private": False})
    assert stated_privacy(model, settings, tmp_path).bound is not None


def test_run_that_spent_more_than_it_states_ends_the_gate_with_1_whatever_the_attack_finds(
    run: Path, tmp_path: Path
) -> None:
    before = (run / "privacy.json").read_text()
    words = ("--attack", "--out", tmp_path / "out", "--shadows", "0", *QUICK)
    try:
        write_json(run / "privacy.json", PRIVATE | {"epsilon": 100.0})
        told = call("evaluate", run / "model", *words)
        refused = call("evaluate", run / "model", *words, "--gate")
    finally:
        (run / "privacy.json").write_text(before)
        (run / "evaluation" / "attack.json").unlink()
    assert told.exit_code == 0
    assert "not to be released: privacy.json states epsilon 100" in told.stdout
    assert refused.exit_code == 1
    assert "nothing can be promised" in reason_of(refused)


def report_of(members: float, epsilon: float | None) -> AttackReport:
    """Return the report of an attack whose members score so much higher than others."""
    scores = np.linspace(0, 1, 200)
    bound = None if epsilon is None else Bound.of(epsilon, 1e-5)
    none = Measure(value=None, reason="none")
    return AttackReport(
        model_digest="0" * 64,
        run_id="demo",
        round=3,
        synthetic=True,
        members=200,
        nonmembers=200,
        left_out=2,
        privacy="epsilon" if bound else "no bound: not differentially private",
        epsilon=epsilon,
        delta=None if bound is None else 1e-5,
        shadows=0,
        shadow_rounds=0,
        attacks=(attack_result("loss threshold", scores + members, scores, bound=bound),),
        probes=(
            ProbeResult(
                noise=False, cases=8, drawn=0, candidates=8, iterations=0, chance=1 / 8,
                recognised=share(8, 8), drawn_right=none, correlation=none, correlation_others=none,
                psnr_db=none,
            ),
        ),
    )  # fmt: skip


def test_model_within_its_bound_may_be_released_and_one_above_it_may_not() -> None:
    assert gate(report_of(0.5, 8.0)) == []
    refusals = gate(report_of(0.5, 0.1))
    assert any("epsilon 0.1 at delta 1e-05 allows no more than" in reason for reason in refusals)
    assert gate(report_of(0.5, None)) == []


def test_model_without_a_bound_is_warned_about_only_when_it_tells_much() -> None:
    assert any("AUC is at least" in words for words in serious(report_of(0.5, None)))
    assert serious(report_of(0.0, None)) == []
    assert serious(report_of(0.5, 0.1)) == []  # there the bound decides


def test_words_and_table_have_the_verdict_and_the_bound() -> None:
    words = " ".join(attack_words(report_of(0.5, 8.0)))
    assert "within what its stated privacy allows" in words
    assert "points to the right one of 8 images for 100.0% [63.1%-100.0%]" in words
    text = attack_text(report_of(0.5, None))
    assert "2 cases without a known target left out" in text
    assert "SYNTHETIC DATA" in text


def test_curve_is_drawn_on_logarithmic_axes_with_what_is_allowed() -> None:
    points = [(0.0, 0.0), (0.0, 0.2), (0.5, 0.6), (1.0, 1.0)]
    bound = Bound.of(1.0, 1e-5)
    svg = membership_curve(
        [("loss threshold", points)], allowed=bound.largest_tpr, title="T", subtitle="S", least=0.01
    )
    assert "allowed" in svg
    assert "loss threshold" in svg
    assert ">0.1<" not in svg  # nothing below the least rate
