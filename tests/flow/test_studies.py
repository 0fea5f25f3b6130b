"""The shipped studies at test size on one made-up cohort, and what becomes of a study that is stopped."""

import csv
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from fedglioma.data.synthetic_cohort import synthesize
from fedglioma_server.cli import app
from fedglioma_server.runfolder import RunFolder

STUDIES = Path(__file__).parents[2] / "server" / "studies"
SHIPPED = sorted(path.stem for path in STUDIES.glob("*.yaml"))
PATIENTS = 18


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "cohort"
    sites = ("ningxia", "zhengzhou", "henan")
    synthesize(folder, patients=PATIENTS, sites=sites, size=24, overlap=0, seed=3)
    return folder


def run(cohort: Path, out: Path, study: Path, *options: str) -> tuple[int, dict[str, Any]]:
    result = called(cohort, out, study, *options)
    return result.exit_code, json.loads(result.stdout)["data"]


def called(cohort: Path, out: Path, study: Path, *options: str) -> Result:
    words = ["simulate", "--study", str(study), "--cohort", str(cohort), "--out", str(out)]
    words += ["--cache", str(cohort.parent / "cache"), "--small-cell-limit", "1", "--format", "json"]
    result = CliRunner().invoke(app, [*words, "--log-level", "WARNING", "--workers", "1", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_study_fills_its_table(cohort: Path, tmp_path: Path, name: str) -> None:
    path = STUDIES / f"{name}.yaml"
    code, data = run(cohort, tmp_path / "study", path, "--study-size", "test", "--bootstrap", "100")
    result = data["result"]
    assert code == 0, data
    assert (result["failed"], result["patients"]) == ({}, PATIENTS)
    written = yaml.safe_load(path.read_text())
    assert_compared(result)
    arms = {line["arm"] for line in result["lines"]}
    assert {arm["name"] for arm in written["arms"]} <= arms
    assert len(arms) == len(written["arms"]) + len(written["baselines"])
    assert any(line["entries"] for line in result["lines"])
    page = (tmp_path / "study" / "report.html").read_text()
    table = (tmp_path / "study" / "table.md").read_text()
    for arm in arms:
        assert arm in page
        assert arm in table
    assert "SYNTHETIC DATA" in table
    for paper in result["published"]:
        assert paper["source"] in page
        assert "other patients" in table
    rows = list(csv.DictReader((tmp_path / "study" / "table.csv").read_text().splitlines()))
    assert {row["row"] for row in rows} == {line["arm"] for line in result["lines"] if line["entries"]}
    private = [case.name.removeprefix("sub-") for case in cohort.glob("sub-*")]
    assert private
    for shown in (page, table, (tmp_path / "study" / "results.json").read_text()):
        assert not any(patient in shown for patient in private)


def assert_compared(result: dict[str, Any]) -> None:
    """Every value beside the reference's has its paired test, or the reason why there is none."""
    compared = 0
    for line in result["lines"]:
        for measure, entry in line["entries"].items():
            assert entry["cases"] == "<5" or entry["cases"] >= 5
            if entry["value"]["value"] is None:
                assert entry["value"]["reason"], measure
                continue
            if (line["arm"], line["protocol"]) == tuple(result["reference"]):
                assert entry["comparison"] is None
                continue
            comparison = entry["comparison"]
            if comparison["difference"]["value"] is None:
                assert comparison["difference"]["reason"], measure
                continue
            assert 0 < comparison["p"] <= 1, measure
            assert comparison["p"] <= entry["p_adjusted"] <= 1, measure
            compared += 1
    assert compared


def small_study(folder: Path, **changes: Any) -> Path:
    table: dict[str, Any] = {
        "title": "Two widths",
        "arms": [{"name": "one", "width": 1}, {"name": "two", "width": 2}],
        "divisions": {"folds": 2},
        "run": {"crop": 16, "spacing_mm": 8, "rounds": 1, "batch_size": 8, "bias_correction": False},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(table | changes))
    return path


def test_study_that_was_stopped_runs_what_is_missing_and_ends_alike(cohort: Path, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    out = tmp_path / "study"
    code, first = run(cohort, out, study, "--bootstrap", "100")
    assert code == 0
    folders = sorted(path.parent for path in out.glob("runs/**/run.json"))
    assert len(folders) == 4
    shutil.rmtree(folders[1])
    kept = {folder: (folder / "run.json").stat().st_mtime_ns for folder in folders if folder.exists()}
    code, again = run(cohort, out, study, "--bootstrap", "100")
    assert code == 0
    assert {folder: (folder / "run.json").stat().st_mtime_ns for folder in kept} == kept
    for result in (first["result"], again["result"]):
        del result["created"]
    assert again["result"] == first["result"]


def test_run_that_fails_leaves_its_row_out_and_is_named(cohort: Path, tmp_path: Path) -> None:
    arms = [{"name": "calm", "width": 1}, {"name": "wild", "width": 1, "lr": 1e30}]
    code, data = run(cohort, tmp_path / "study", small_study(tmp_path, arms=arms), "--bootstrap", "100")
    assert code == 1
    result = data["result"]
    assert {line["arm"] for line in result["lines"]} == {"calm", "more frequent class"}
    assert len(result["failed"]) == 2
    assert all("wild" in run_ for run_ in result["failed"])
    assert "the same command tries them again" in data["error"]
    assert "Runs that failed" in (tmp_path / "study" / "report.html").read_text()


def test_rows_with_chinese_names_go_on_and_one_that_cannot_be_read_is_left_out(
    cohort: Path, tmp_path: Path
) -> None:
    names = ["\u8054\u90a6\u5e73\u5747", "\u8fd1\u7aef"]
    arms = [{"name": name, "width": width} for width, name in enumerate(names, start=1)]
    study = small_study(tmp_path, arms=arms, divisions={"kind": "split"}, measures=["idh.accuracy"])
    out = tmp_path / "study"
    code, data = run(cohort, out, study, "--bootstrap", "100")
    assert code == 0, data
    assert {line["arm"] for line in data["result"]["lines"]} == {*names, "more frequent class"}
    assert all(name in (out / "report.html").read_text() for name in names)
    folders = {path.parent: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/*/run.json")}
    assert len(folders) == 2
    damaged = next(out.glob("runs/*/federated/*/*/evaluation/predictions.csv"))
    damaged.write_text("nothing\n")
    code, data = run(cohort, out, study, "--bootstrap", "100")
    assert code == 1
    assert {folder: (folder / "run.json").stat().st_mtime_ns for folder in folders} == folders
    assert len(data["result"]["failed"]) == 1
    (why,) = data["result"]["failed"].values()
    assert "predictions.csv: the columns must be" in why
    assert f"remove the folder {damaged.parents[1].relative_to(out)}" in why
    assert len(data["result"]["lines"]) == 2


def test_cohort_without_one_marker_has_a_table_of_the_others(cohort: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    shutil.copytree(cohort, without)
    head, *rows = (line.split("\t") for line in (without / "participants.tsv").read_text().splitlines())
    for row in rows:
        row[head.index("atrx")] = "n/a"
    (without / "participants.tsv").write_text("".join("\t".join(row) + "\n" for row in [head, *rows]))
    study = small_study(tmp_path, arms=[{"name": "one", "width": 1}], divisions={"kind": "split"})
    code, data = run(without, tmp_path / "study", study, "--bootstrap", "100")
    assert code == 0, data
    (said,) = data["result"]["absent"].items()
    assert said[0] == "more frequent class, ATRX"
    assert said[1].startswith("no training patient has a known ATRX status; give labelled patients")
    (majority,) = (line for line in data["result"]["lines"] if not line["protocol"])
    assert set(majority["entries"]) == {
        "idh.auc", "idh.accuracy", "codel_1p19q.auc", "codel_1p19q.accuracy"
    }  # fmt: skip


def test_row_without_a_network_that_cannot_be_computed_is_told(cohort: Path, tmp_path: Path) -> None:
    ageless = tmp_path / "ageless"
    shutil.copytree(cohort, ageless)
    head, *rows = (line.split("\t") for line in (ageless / "participants.tsv").read_text().splitlines())
    for row in rows:
        row[head.index("age")] = "n/a"
    (ageless / "participants.tsv").write_text("".join("\t".join(row) + "\n" for row in [head, *rows]))
    study = small_study(
        tmp_path,
        arms=[{"name": "one", "width": 1}],
        divisions={"kind": "split"},
        baselines=["majority", "age"],
        measures=["idh.accuracy"],
    )
    answer = called(ageless, tmp_path / "study", study, "--bootstrap", "100")
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)["data"]
    said = "no training patient has an age and a known IDH status; fill the column age of participants.tsv"
    assert f"age alone, IDH: cannot be computed: {said}" in " ".join(answer.stderr.split())
    assert data["result"]["absent"] == {"age alone, IDH": f"{said}, or leave age out of baselines"}
    assert {line["arm"] for line in data["result"]["lines"]} == {"one", "more frequent class"}
    for name in ("table.md", "report.html"):
        page = (tmp_path / "study" / name).read_text()
        assert "Rows that could not be computed" in page
        assert said in page


def test_private_arm_has_its_epsilon_beside_its_figures(cohort: Path, tmp_path: Path) -> None:
    arms = [
        {"name": "plain", "width": 1},
        {"name": "private", "width": 1, "privacy": "site", "target_epsilon": 8},
    ]
    study = small_study(tmp_path, arms=arms, divisions={"kind": "split"}, measures=["idh.auc"])
    code, data = run(cohort, tmp_path / "study", study, "--bootstrap", "100")
    assert code == 0, data
    found = {line["arm"]: line["epsilon"] for line in data["result"]["lines"]}
    assert found.pop("private") == pytest.approx(8, rel=0.01)
    assert set(found.values()) == {None}
    table = (tmp_path / "study" / "table.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("| private |"))
    assert row.split("|")[2].strip() == "8"
    rows = csv.DictReader((tmp_path / "study" / "table.csv").read_text().splitlines())
    assert {line["row"]: line["epsilon"] != "" for line in rows}["private"]


def test_fine_tuning_with_privacy_of_its_own_runs(cohort: Path, tmp_path: Path) -> None:
    privacy = {"privacy": "site", "target_epsilon": 3, "sampling_rate": 0.5, "rounds": 1}
    study = small_study(
        tmp_path,
        arms=[{"name": "one", "width": 1, "weighting": "fixed"}],
        divisions={"kind": "split"},
        protocols=["federated", "finetuned"],
        finetune=privacy,
        measures=["idh.accuracy"],
    )
    code, data = run(cohort, tmp_path / "study", study, "--bootstrap", "100")
    assert code == 0, data
    assert data["result"]["failed"] == {}
    runs = sorted((tmp_path / "study" / "runs" / "one" / "finetuned").glob("seed-*/fold-*/*"))
    assert runs
    for folder in runs:
        assert RunFolder(folder).read().settings.noise_multiplier > 0
        told = json.loads((folder / "privacy.json").read_text())
        assert not told["differentially_private"], "it began with a model that was trained without noise"
    lines = {line["protocol"]: line for line in data["result"]["lines"] if line["protocol"]}
    assert lines["finetuned"]["epsilon"] is None


def test_private_federation_is_fine_tuned_without_privacy(cohort: Path, tmp_path: Path) -> None:
    privacy = {"privacy": "site", "target_epsilon": 8, "sampling_rate": 0.5}
    study = small_study(
        tmp_path,
        arms=[{"name": "one", "width": 1, "weighting": "fixed", **privacy}],
        divisions={"kind": "split"},
        protocols=["federated", "finetuned"],
        finetune={"privacy": "none"},
    )
    code, data = run(cohort, tmp_path / "study", study, "--dry-run")
    assert code == 0, data
    found = {line["protocol"]: line["settings"]["privacy"] for line in data["runs"]}
    assert found == {"federated": "site", "finetuned": "none"}


def test_finetuned_row_has_the_epsilon_of_both_its_trainings(cohort: Path, tmp_path: Path) -> None:
    arms = [{"name": "private", "width": 1, "privacy": "site", "target_epsilon": 8}]
    study = small_study(
        tmp_path,
        arms=arms,
        divisions={"kind": "split"},
        protocols=["federated", "finetuned"],
        measures=["idh.accuracy"],
    )
    code, data = run(cohort, tmp_path / "study", study, "--bootstrap", "100")
    assert code == 0, data
    spent = {line["protocol"]: line["epsilon"] for line in data["result"]["lines"] if line["protocol"]}
    assert spent["federated"] == pytest.approx(8, rel=0.01)
    assert spent["finetuned"] > 1.1 * spent["federated"]


def test_hospitals_of_few_are_kept_back_in_what_is_written_and_printed(cohort: Path, tmp_path: Path) -> None:
    study = small_study(
        tmp_path,
        arms=[{"name": "one", "width": 1}],
        protocols=["federated", "local"],
        measures=["idh.accuracy"],
    )
    code, data = run(cohort, tmp_path / "study", study, "--bootstrap", "100", "--sites", "5")
    assert code == 0, data
    kept = json.loads((tmp_path / "study" / "results.json").read_text())
    for result in (kept, data["result"]):
        numbers = {g["site"]: entry["cases"] for g in result["gains"] for entry in g["lines"].values()}
        assert len(numbers) == 6
        assert numbers.pop("all") >= 5
        assert "<5" in numbers.values()
        assert not any(isinstance(number, int) for number in numbers.values())


@pytest.mark.slow
def test_threshold_is_measured_on_the_images_that_the_networks_outline(cohort: Path, tmp_path: Path) -> None:
    outlines = {"name": "U-Net", "model": "unet", "width": 2, "spacing_mm": 6}
    found = []
    for arms in ([outlines], [{"name": "markers", "width": 1}, outlines]):
        out = tmp_path / f"study-{len(arms)}"
        study = small_study(
            tmp_path,
            arms=arms,
            divisions={"kind": "split"},
            baselines=["threshold"],
            measures=["segmentation.dice"],
            reference="U-Net",
        )
        code, data = run(cohort, out, study, "--bootstrap", "100", "--report", "0.5")
        assert code == 0, data
        (line,) = (line for line in data["result"]["lines"] if not line["protocol"])
        found.append(line["entries"]["segmentation.dice"]["value"])
    assert found[0]["value"] is not None
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"width": 3}}, "finetune: arm one: trains another network"),
        ({"divisions": {"kind": "sites"}}, "with divisions of kind sites"),
        ({"baselines": ["threshold"]}, "baselines: threshold: it is a row of Dice, and the study measures"),
    ],
)
def test_dry_run_refuses_what_could_not_be_run(
    cohort: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    study = small_study(tmp_path, protocols=["federated", "finetuned"], **changes)
    code, data = run(cohort, tmp_path / "study", study, "--dry-run")
    assert code == 2
    assert message in data["error"]


def test_size_or_jobs_without_a_study_and_size_without_sizes_are_refused(
    cohort: Path, tmp_path: Path
) -> None:
    words = ["simulate", "--cohort", str(cohort), "--study-size", "test", "--out", str(tmp_path / "run")]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2
    assert "--study-size test: is the size of a --study FILE" in answer.stderr
    code, data = run(cohort, tmp_path / "study", small_study(tmp_path), "--study-size", "foo")
    assert code == 2
    assert "the study has no sizes" in data["error"]
    words = ["simulate", "--cohort", str(cohort), "--jobs", "2", "--out", str(tmp_path / "run")]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 2
    assert "--jobs 2: runs of a --study FILE at a time" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_finetuned_run_starts_from_the_federated_model(cohort: Path, tmp_path: Path) -> None:
    arms = [{"name": "one", "width": 1}]
    study = small_study(tmp_path, arms=arms, protocols=["federated", "local", "finetuned", "centralised"])
    code, data = run(cohort, tmp_path / "study", study, "--bootstrap", "100")
    assert code == 0
    base = tmp_path / "study" / "runs" / "one"
    shared = json.loads((base / "federated/seed-1234/fold-1/model/config.json").read_text())
    own = RunFolder(base / "finetuned/seed-1234/fold-1/henan").read()
    assert own.initial_digest == shared["digest"]
    assert (own.scale_id, own.scale_from_model) == (shared["scale_id"], True)
    assert own.model_dump(mode="json")["class_counts"] != shared["class_counts"]
    assert list(own.sites) == ["henan"]
    assert list(RunFolder(base / "centralised/seed-1234/fold-1").read().sites) == ["pooled"]
    gains = data["result"]["gains"]
    assert {gain["site"] for gain in gains} == {"all", "henan", "ningxia", "zhengzhou"}
    assert all(set(gain["lines"]) == {"federated", "local", "finetuned", "centralised"} for gain in gains)
    assert "What each hospital gained" in (tmp_path / "study" / "report.html").read_text()


def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_lost(
    cohort: Path, tmp_path: Path
) -> None:
    arms = [{"name": "one", "width": 1}]
    run(cohort, tmp_path / "study", small_study(tmp_path, arms=arms), "--bootstrap", "100")
    before = (tmp_path / "study" / "results.json").read_bytes()
    code, data = run(cohort, tmp_path / "study", small_study(tmp_path, arms=arms), "--bootstrap", "200")
    assert code == 2
    assert "holds a run with bootstrap 100, 200 is asked for" in data["error"]
    assert (tmp_path / "study" / "results.json").read_bytes() == before


def _relabelled(cohort: Path, folder: Path) -> Path:
    """Return a copy of a cohort in which one patient's IDH status is another."""
    shutil.copytree(cohort, folder)
    table = folder / "participants.tsv"
    head, first, *rows = (line.split("\t") for line in table.read_text().splitlines())
    place = next(place for place, name in enumerate(head) if "idh" in name.lower())
    first[place] = next(row[place] for row in rows if row[place] not in (first[place], "n/a"))
    table.write_text("".join("\t".join(row) + "\n" for row in [head, first, *rows]))
    return folder


def test_finished_study_whose_patients_or_divisions_change_is_refused_and_kept(
    cohort: Path, tmp_path: Path
) -> None:
    arms, out = [{"name": "one", "width": 1}], tmp_path / "study"
    protocols = ["federated", "centralised"]
    changes: dict[str, Any] = {"arms": arms, "protocols": protocols, "measures": ["idh.accuracy"]}
    assert run(cohort, out, small_study(tmp_path, **changes), "--bootstrap", "100")[0] == 0
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    other = _relabelled(cohort, tmp_path / "relabelled" / "cohort")
    again = small_study(tmp_path, **changes)
    code, data = run(other, out, again, "--bootstrap", "100")
    assert code == 2
    assert "holds a run with other cases" in data["error"]
    code, data = run(cohort, out, again, "--bootstrap", "100", "--sites", "2")
    assert code == 2
    assert "holds a run with sites henan, ningxia, zhengzhou" in data["error"]
    otherwise = small_study(tmp_path, divisions={"folds": 2, "stratify": ["codel_1p19q", "atrx"]}, **changes)
    code, data = run(cohort, out, otherwise, "--bootstrap", "100")
    assert code == 2
    assert "holds a run with patients divided otherwise" in data["error"]
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_run_that_would_go_on_from_another_model_ends_the_study(
    cohort: Path, tmp_path: Path, jobs: str
) -> None:
    out = tmp_path / "study"
    study = small_study(
        tmp_path,
        arms=[{"name": "one", "width": 1}],
        divisions={"kind": "split"},
        protocols=["federated", "finetuned"],
        measures=["idh.accuracy"],
    )
    assert run(cohort, out, study, "--bootstrap", "100")[0] == 0
    before = (out / "results.json").read_bytes()
    folder = next(path.parent for path in out.glob("runs/one/finetuned/**/run.json"))
    RunFolder(folder).update(initial_digest="0" * 64)
    code, data = run(cohort, out, study, "--bootstrap", "100", "--jobs", jobs)
    assert code == 2
    assert "holds a run with another model to start from" in data["error"]
    assert (out / "results.json").read_bytes() == before


def test_table_is_not_replaced_by_one_in_which_everything_failed(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    study = small_study(tmp_path, arms=[{"name": "one", "width": 1}], divisions={"kind": "split"})
    assert run(cohort, out, study, "--bootstrap", "100")[0] == 0
    before = {name: (out / name).read_bytes() for name in ("results.json", "table.md", "report.html")}
    shutil.rmtree(out / "runs")
    broken = small_study(
        tmp_path, arms=[{"name": "one", "width": 1, "lr": 1e30}], divisions={"kind": "split"}
    )
    code, data = run(cohort, out, broken, "--bootstrap", "100")
    assert code == 1
    assert "all 1 runs failed; the table that is there of before was kept" in data["error"]
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_hospital_without_outlines_leaves_the_others_rows_alone(cohort: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed" / "cohort"
    shutil.copytree(cohort, mixed)
    table = [line.split("\t") for line in (mixed / "participants.tsv").read_text().splitlines()]
    site = table[0].index("site")
    for patient in (row[0] for row in table[1:] if row[site] == "henan"):
        for file in (mixed / f"sub-{patient}").rglob("*dseg*"):
            file.unlink()
    study = small_study(
        tmp_path,
        arms=[{"name": "U-Net", "model": "unet", "width": 2}],
        divisions={"folds": 2},
        protocols=["federated", "local"],
        baselines=[],
        run={
            "preprocessing": "sgpnet",
            "inference": "centre",
            "crop": 16,
            "rounds": 1,
            "batch_size": 8,
        },
    )
    code, data = run(mixed, tmp_path / "study", study, "--bootstrap", "100")
    assert code == 0, data
    result = data["result"]
    assert result["failed"] == {}
    assert {line["protocol"] for line in result["lines"]} == {"federated", "local"}
    why = "none of its training patients has an outline in 2 of 2 folds"
    assert result["without_models"] == {"henan, U-Net": why}
    assert {gain["site"] for gain in result["gains"]} == {"all", "ningxia", "zhengzhou"}
    for name in ("table.md", "report.html"):
        assert f"henan, U-Net: {why}" in (tmp_path / "study" / name).read_text()


def test_second_study_in_a_folder_is_refused_while_the_first_runs(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    handle = os.open(tmp_path / "study", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        code, data = run(cohort, tmp_path / "study", small_study(tmp_path))
    finally:
        os.close(handle)
    assert code == 2
    assert "a study is running here" in data["error"]


def test_dry_run_lists_the_runs_and_leaves_nothing(cohort: Path, tmp_path: Path) -> None:
    code, data = run(cohort, tmp_path / "study", small_study(tmp_path), "--dry-run")
    assert code == 0
    assert [(line["arm"], line["fold"]) for line in data["runs"]] == [
        ("one", "fold-1"),
        ("two", "fold-1"),
        ("one", "fold-2"),
        ("two", "fold-2"),
    ]
    assert not (tmp_path / "study").exists()


def test_study_without_patients_and_foreign_folders_are_refused(cohort: Path, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    answer = CliRunner().invoke(app, ["simulate", "--study", str(study), "--out", str(tmp_path / "new")])
    assert answer.exit_code == 2
    assert "the study names no patients" in answer.stderr
    code, data = run(cohort, tmp_path, study)
    assert code == 2
    assert "is of no study" in data["error"]


def test_report_of_a_study_is_written_again(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    run(cohort, out, small_study(tmp_path, arms=[{"name": "one", "width": 1}]), "--bootstrap", "100")
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    answer = CliRunner().invoke(app, ["report", str(out)])
    assert answer.exit_code == 0
    assert (out / "report.html").read_text() == before
