"""Options of a whole run: where it ends, what of its weights is kept, from what and on whom it starts."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedglioma.case import GENES
from fedglioma.data.plan import load_plan
from fedglioma.errors import ProtocolError
from fedglioma.training.learner import layout_of
from fedglioma.training.released import load_model
from fedglioma.weights import GROUPS, FlatArrays, pack
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.heldout import best_round, out_of_patience
from fedglioma_server.recompute import recompute
from fedglioma_server.records import HeldOutRound, RoundRecord, RunRecord, read_json, read_rounds
from fedglioma_server.runfolder import RunFolder
from tests.cli_fixture import TINY as WORDS
from tests.cli_fixture import call, data_of, reason_of
from tests.federation_fixture import TINY, assert_same_bits, final_weights, make_plan, run

NO_GENE = dict.fromkeys(GENES)


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave survival and report, most of a tiny run's time, to the test that looks for them."""
    if not request.node.name.endswith("in_the_report"):
        monkeypatch.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)
        monkeypatch.setattr("fedglioma_server.conclusion.write_outcome", lambda *_, **_named: None)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Give each round, the untrained one first, the next of these held-out losses."""
    script: list[float | None] = []
    given = iter(script)

    def measured(*_: Any) -> HeldOutRound:
        return HeldOutRound(cases=3, loss=next(given), loss_by_task=NO_GENE, auc=NO_GENE, accuracy=NO_GENE)

    monkeypatch.setattr("fedglioma_server.heldout.measure", measured)
    return script


def settings(**changed: Any) -> Any:
    return TINY.model_copy(update=changed)


def plan_of(folder: Path, chosen: Any) -> Any:
    """Return the plan of one small hospital."""
    return make_plan(folder, chosen, sites={"ningxia": 2}, held_out=4)


def interrupted(plan: Any, after: int) -> RunFolder:
    def stop(line: RoundRecord) -> None:
        if line.round == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, finished=stop)
    return RunFolder(plan.run_folder)


def released(folder: RunFolder) -> FlatArrays:
    learner = load_model(folder.model).learner
    return pack(learner.model, learner.loss)


def numbers(folder: RunFolder) -> list[int]:
    return [line.round for line in folder.rounds()]


def line(number: int, loss: float | None) -> RoundRecord:
    heldout = HeldOutRound(cases=1, loss=loss, loss_by_task=NO_GENE, auc=NO_GENE, accuracy=NO_GENE)
    return RoundRecord(round=number, heldout=heldout)


@pytest.mark.parametrize(
    ("told", "patience", "ends"),
    [
        ([9, 3, 2, 2.5, 2.4, 1], 2, 4),
        ([9, 3, 2, 2.5, 1.9, 2, 2.1, 2.2], 3, 7),
        ([9, 3, 3, 3, 3], 1, 2),  # equal is not lower
        ([0, 3, 2, 1], 1, None),  # the untrained network does not count
        ([9, 3, 4, 5, 6], 0, None),
        ([None] * 5, 1, None),  # nothing can fall
        ([9, 3, None, None, 1], 2, 3),
    ],
)
def test_patience_counts_the_rounds_since_the_lowest_loss(
    told: list[float | None], patience: int, ends: int | None
) -> None:
    rounds = [line(number, loss) for number, loss in enumerate(told)]
    ended = [n for n in range(len(rounds)) if out_of_patience(rounds[: n + 1], patience)]
    assert (ended[0] if ended else None) == ends


def test_run_ends_early_with_its_best_model_and_says_so_in_the_report(
    tmp_path: Path, losses: list[float | None]
) -> None:
    losses += [9.0, 3.0, 2.0, 2.5, 2.4]
    folder = run(plan_of(tmp_path, settings(rounds=7, early_stopping=2)))
    assert numbers(folder) == [0, 1, 2, 3, 4]
    assert folder.read().status == "completed"
    assert json.loads((folder.model / "config.json").read_text())["round"] == 2
    assert "4 of 7, ended early" in (folder.path / "report.html").read_text(encoding="utf-8")
    assert "ended early" in (folder.model / "README.md").read_text(encoding="utf-8")


def test_interrupted_run_ends_as_early_and_with_the_same_model(
    tmp_path: Path, losses: list[float | None]
) -> None:
    told = [9.0, 2.0, 3.0]
    chosen = settings(rounds=6, early_stopping=1)
    losses += told
    whole = run(plan_of(tmp_path / "one", chosen))
    losses += told
    plan = plan_of(tmp_path / "two", chosen)
    interrupted(plan, 1)
    folder = run(plan)
    assert numbers(whole) == numbers(folder) == [0, 1, 2]
    assert_same_bits(released(whole), released(folder))


def test_run_that_was_cut_off_while_it_concluded_trains_no_further(
    tmp_path: Path, losses: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses += [9.0, 2.0, 3.0]
    plan = plan_of(tmp_path, settings(rounds=6, early_stopping=1))
    with monkeypatch.context() as patched:
        patched.setattr("fedglioma_server.conclusion.write_model", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(plan)
    folder = run(plan)  # another measurement would find no loss left to be told
    assert numbers(folder) == [0, 1, 2]
    assert folder.read().status == "completed"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def means(weights: list[FlatArrays], decay: float) -> list[FlatArrays]:
    """Return the running means by their closed form, in double precision.

    After n rounds: decay^(n-1) W1 + (1 - decay) sum over k from 2 to n of decay^(n-k) Wk.
    """
    found = []
    for n in range(1, len(weights) + 1):
        shares = [decay ** (n - 1)] + [(1 - decay) * decay ** (n - k) for k in range(2, n + 1)]
        found.append({group: _sum(group, shares, weights[:n]) for group in GROUPS})
    return found


def _sum(group: str, shares: list[float], weights: list[FlatArrays]) -> Any:
    return sum(share * each[group].astype(np.float64) for share, each in zip(shares, weights, strict=True))


def test_released_weights_are_the_running_mean_and_the_rounds_own_can_be_computed_again(
    tmp_path: Path,
) -> None:
    plan = make_plan(tmp_path, settings(rounds=3, ema=0.75, keep_updates=True))
    folder = run(plan)
    raw = [final_weights(plan, number) for number in (1, 2, 3)]
    expected = means(raw, 0.75)
    checkpoints = Checkpoints(folder.checkpoints, layout_of(plan.settings))
    lines = folder.rounds()
    for number in (1, 2, 3):
        kept = checkpoints.load_average(number)
        for group in GROUPS:
            np.testing.assert_allclose(kept[group], expected[number - 1][group], rtol=1e-5, atol=1e-6)
        assert recompute(plan.run_folder, number) == lines[number].weights_digest
    chosen = best_round(lines)
    assert chosen is not None
    assert_same_bits(released(folder), checkpoints.load_average(chosen.round))
    for gene, value in lines[3].log_variances.items():  # what is measured is the mean
        assert value == pytest.approx(float(expected[2][gene][-1]), rel=1e-5)


def test_first_round_is_its_own_mean_and_the_untrained_weights_are_in_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, settings(rounds=1, ema=0.9))
    assert_same_bits(released(run(plan)), final_weights(plan, 1))


def test_interrupted_run_goes_on_with_its_mean(tmp_path: Path) -> None:
    chosen = settings(ema=0.75)
    plans = [plan_of(tmp_path / name, chosen) for name in ("one", "two")]
    whole = run(plans[0])
    interrupted(plans[1], 1)
    folder = run(plans[1])
    assert_same_bits(released(whole), released(folder))
    for name in ("round-0002.average.safetensors", "round-0002.safetensors"):
        one, two = (load_file(each.checkpoints / name) for each in (whole, folder))
        assert all(one[key].tobytes() == two[key].tobytes() for key in one)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_run_that_lost_its_mean_does_not_begin_another(tmp_path: Path, damage: str) -> None:
    plan = plan_of(tmp_path, settings(rounds=3, ema=0.75))
    path = interrupted(plan, 1).checkpoints / "round-0001.average.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ProtocolError, match=r"round-0001\.average\.safetensors"):
        run(plan)


def test_means_are_kept_beside_the_rounds_that_are_kept(tmp_path: Path, losses: list[float | None]) -> None:
    losses += [9.0, 1.0, 2.0, 3.0]
    folder = run(plan_of(tmp_path, settings(rounds=3, ema=0.5)))
    names = {path.name for path in folder.checkpoints.iterdir()}
    assert names == {f"round-000{n}.{kind}safetensors" for n in (1, 3) for kind in ("", "average.")}


def test_run_without_a_mean_keeps_none(tmp_path: Path) -> None:
    folder = run(plan_of(tmp_path, settings(rounds=1)))
    assert not list(folder.checkpoints.glob("*average*"))


def test_deterministic_run_is_the_same_every_time(tmp_path: Path) -> None:
    chosen = settings(rounds=1, deterministic=True, channels_last=True, accumulate=2)
    plans = [plan_of(tmp_path / name, chosen) for name in ("one", "two")]
    one, two = (run(plan) for plan in plans)
    assert_same_bits(released(one), released(two))
    assert [r.heldout for r in one.rounds()] == [r.heldout for r in two.rounds()]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    words = ("--patients", "20", "--size", "16", "--sites", "henan,ningxia")
    assert call("synthesize", folder, *words).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def first(cohort: Path) -> Path:
    """A run to start others from."""
    folder = cohort.parent / "first"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedglioma_server.conclusion.write_report", lambda folder: folder)
        patched.setattr("fedglioma_server.conclusion.write_outcome", lambda *_, **_named: None)
        assert simulate(cohort, folder, "--lr", "0.01").exit_code == 0
    return folder


def simulate(cohort: Path, out: Path, *words: str | Path) -> Any:
    return call("simulate", "--cohort", cohort, *WORDS, "--out", out, *words, "--format", "json")


def record_of(folder: Path) -> RunRecord:
    return read_json(folder / "run.json", RunRecord)


def test_run_starts_from_the_weights_of_another(cohort: Path, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "on"
    assert simulate(cohort, out, "--init", first / "model", "--rounds", "1").exit_code == 0
    before, after = read_rounds(first / "rounds.jsonl"), read_rounds(out / "rounds.jsonl")
    chosen = json.loads((first / "model" / "config.json").read_text())
    assert chosen["round"] == 1
    assert after[0].heldout == before[1].heldout
    assert after[0].heldout != before[0].heldout
    assert after[0].weights_digest == before[1].weights_digest
    assert record_of(out).initial_digest == chosen["digest"]
    assert record_of(first).initial_digest is None
    assert "started from another released model" in (out / "model" / "README.md").read_text()


def test_run_is_not_continued_from_another_start(cohort: Path, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert simulate(cohort, out).exit_code == 0
    again = simulate(cohort, out, "--init", first / "model")
    assert again.exit_code != 0
    assert "another model to start from" in reason_of(again)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--width", "2"), "holds another network than the run trains: width 1 there, 2 here"),
        (("--guide", "none"), "holds another network than the run trains"),
    ],
)
def test_another_network_is_no_start(
    cohort: Path, first: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    result = simulate(cohort, tmp_path / "run", "--init", first / "model", *words)
    assert result.exit_code != 0
    assert said in reason_of(result)


def test_folder_without_a_model_is_no_start(cohort: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", cohort):
        result = simulate(cohort, tmp_path / "run", "--init", folder)
        assert result.exit_code != 0
        assert "not a released model" in reason_of(result)


Rows = list[tuple[str, str, str]]


def write_splits(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("participant_id", "split", "fold"))
        writer.writerows(rows)
    return path


def rows_of(cohort: Path) -> Rows:
    """Return two folds of all patients but the last two: by turns, and the other way round."""
    with (cohort / "participants.tsv").open(encoding="utf-8") as file:
        patients = [row["participant_id"] for row in csv.DictReader(file, delimiter="\t")][:-2]
    turns = ("train", "train", "val", "test")
    rows = [(name, turns[place % 4], "1") for place, name in enumerate(patients)]
    return rows + [(name, turns[-1 - place % 4], "2") for place, name in enumerate(patients)]


def test_file_of_splits_decides_who_trains_chooses_and_is_reported(cohort: Path, tmp_path: Path) -> None:
    rows = rows_of(cohort)
    path, out = write_splits(tmp_path / "splits.csv", rows), tmp_path / "run"
    result = simulate(cohort, out, "--splits", path, "--fold", "fold-2")
    assert result.exit_code == 0, result.output
    assert "2 patients have no split in splits.csv and take no part" in result.stderr
    plan = load_plan(out / "work" / "plan.json")
    found = {
        "train": {case.case.patient for site in plan.sites for case in site.cases},
        "val": {case.case.patient for case in plan.selection},
        "test": {case.case.patient for case in plan.report},
    }
    for split, patients in found.items():
        asked = {name.removeprefix("sub-") for name, part, fold in rows if part == split and fold == "2"}
        assert {name.removeprefix("sub-") for name in patients} == asked, split
    assert data_of(result)["evaluation"]["n_cases"] == len(found["test"])
    record = record_of(out)
    assert (record.division, record.division_digest is None) == ("fold-2", False)

    swap = {"train": "train", "val": "test", "test": "val"}
    other = write_splits(tmp_path / "others.csv", [(name, swap[part], fold) for name, part, fold in rows])
    for words in (("--splits", other, "--fold", "fold-2"), ("--splits", path, "--fold", "fold-1"), ()):
        again = simulate(cohort, out, *words)
        assert again.exit_code != 0
        assert "patients divided otherwise" in reason_of(again) or "other cases" in reason_of(again)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--splits", "splits.csv"), "has 2 folds; choose one by --fold"),
        (("--splits", "splits.csv", "--fold", "7"), "--fold 7: splits.csv has fold-1, fold-2"),
        (("--fold", "fold-1"), "--fold: names a fold of --splits FILE; give both"),
        (("--splits", "no.csv"), "no such file: name a CSV or TSV file"),
        (
            ("--splits", "splits.csv", "--fold", "2", "--report", "0.3"),
            "--report: the shares stand in --splits splits.csv; leave one out",
        ),
    ],
)
def test_fold_that_cannot_be_meant_is_refused(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(tmp_path / "splits.csv", rows_of(cohort))
    result = simulate(cohort, tmp_path / "run", *words)
    assert result.exit_code != 0
    assert said in reason_of(result)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        (("--secure-aggregation", "--payload", "masked"), "leave secure_aggregation out"),
        (
            ("--secure-aggregation", "--privacy", "site", "--noise-multiplier", "1"),
            "leave secure_aggregation out",
        ),
        (("--privacy", "central", "--noise-multiplier", "1"), "leave privacy central out"),
    ],
)
def test_made_up_hospitals_that_are_too_few_to_hide_are_refused_before_patients_are_made(
    tmp_path: Path, asked: tuple[str, ...], advice: str
) -> None:
    words = ["--synthetic", "12", "--sites", "a,b", *asked]
    result = call("simulate", *words, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "3 sites are needed to hide among each other, and there are 2" in reason_of(result)
    assert reason_of(result).endswith(f"add hospitals, or {advice}")
    assert not (tmp_path / "run").exists()
