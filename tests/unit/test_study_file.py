import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedglioma.case import Gene
from fedglioma.errors import ConfigError
from fedglioma_server.study_file import Study, read_study

SHIPPED = sorted((Path(__file__).parents[2] / "server" / "studies").glob("*.yaml"))
PAGE = Path(__file__).parents[2] / "docs" / "studies.md"
EXAMPLES = [
    text
    for block in PAGE.read_text("utf-8").split("```yaml\n")[1:]
    if "arms:" in (text := block.split("```")[0])
]
SIMPLE: dict[str, Any] = {"title": "A study", "arms": [{"name": "one"}, {"name": "two", "lr": 0.01}]}


def study_file(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**SIMPLE, **changes}))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_study_can_be_run_at_every_size(path: Path) -> None:
    for size in yaml.safe_load(path.read_text())["sizes"]:
        study = read_study(path, size)
        for arm in study.arms:
            settings = study.settings(arm, 1, {})
            assert settings.seed == 1
            if size == "full":
                assert settings.crop in (128, 144)
            else:
                assert settings.crop <= 48


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: yaml.safe_load(text)["title"])
def test_example_of_the_page_can_be_run(example: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(example, "utf-8")
    study = read_study(tmp_path / "study.yaml")
    assert [study.settings(arm, 1, {}).width for arm in study.arms] == [1] * len(study.arms)


def test_page_has_examples() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_size_of_a_shipped_study_is_one_line(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    places = [i for i, line in enumerate(lines) if line.startswith("size:")]
    assert len(places) == 1
    lines[places[0]] = "size: full"
    changed = tmp_path / path.name
    changed.write_text("\n".join(lines))
    assert read_study(changed) == read_study(path, "full").model_copy(
        update={"data": read_study(changed).data}
    )


def test_papers_ablations_are_the_rows_of_the_studies() -> None:
    def rows(name: str, setting: str) -> list[Any]:
        path = next(path for path in SHIPPED if path.stem == name)
        return [arm.settings[setting] for arm in read_study(path).arms]

    assert rows("mdpnet-table4", "path2") == ["t2+flair", "t2", "flair", "none"]
    assert sorted(rows("mdpnet-table5", "attention")) == ["rda+rda", "rda+vit", "vit+rda", "vit+vit"]
    assert rows("mdpnet-table6", "guide") == ["idh+atrx", "idh", "atrx", "none"]
    assert sorted(rows("sgpnet-table2", "targets")) == ["both", "idh", "random"]


def test_published_figures_are_those_of_the_papers() -> None:
    one = next(path for path in SHIPPED if path.stem == "sgpnet-table1")
    own = read_study(one).published[0].rows["SGPNet"]
    assert own == {
        "idh.accuracy": 0.895,
        "idh.sensitivity": 0.907,
        "idh.specificity": 0.883,
        "idh.ppv": 0.894,
        "idh.npv": 0.908,
        "idh.auc": 0.949,
        "segmentation.dice": 0.935,
    }
    networks = next(path for path in SHIPPED if path.stem == "mdpnet-networks")
    validation, internal = read_study(networks).published
    assert validation.rows["MDPNet"]["atrx.accuracy"] == 0.92
    assert internal.rows["MDPNet"] == {"atrx.accuracy": 0.926}


def test_studies_of_several_markers_divide_by_the_rarest_too() -> None:
    for path in SHIPPED:
        study = read_study(path, "full")
        several = study.arms[0].settings.get("model", study.run.get("model")) != "sgpnet"
        if several and study.divisions.kind == "kfold" and path.stem != "segmentation-networks":
            assert study.divisions.stratify == (Gene.IDH, Gene.CODEL), path.stem


def slugs(*names: str) -> list[str]:
    arms = [{"name": name, "settings": {}} for name in names]
    return [arm.slug for arm in Study.model_validate({"title": "t", "size": "s", "arms": arms}).arms]


def test_rows_of_any_script_have_folders_of_their_own_that_stay_the_same() -> None:
    both = slugs("\u8054\u90a6\u5e73\u5747", "\u8fd1\u7aef")
    assert len(set(both)) == 2
    assert all(re.fullmatch(r"arm-[0-9a-f]{8}", slug) for slug in both)
    assert slugs("\u8fd1\u7aef", "other") == [both[1], "other"]
    assert slugs("\u8fd1\u7aef 2")[0].startswith("2-")


def test_names_that_make_one_folder_get_two_and_plain_ones_stay_plain() -> None:
    first, second, third = slugs("A b", "a-B", "T2 and FLAIR")
    assert first != second
    assert first.startswith("a-b-")
    assert second.startswith("a-b-")
    assert third == "t2-and-flair"
    study = Study.model_validate({"title": "t", "size": "s", "arms": [{"name": "A b"}, {"name": "a-B"}]})
    assert [arm.slug for arm in Study.model_validate(study.model_dump()).arms] == [first, second]


def test_size_lays_itself_over_the_rest(tmp_path: Path) -> None:
    path = study_file(
        tmp_path,
        size="small",
        run={"lr": 0.1, "rounds": 9},
        sizes={"small": {"run": {"rounds": 1}, "seeds": [3]}, "large": {}},
    )
    assert read_study(path).run == {"lr": 0.1, "rounds": 1}
    assert read_study(path).seeds == (3,)
    assert read_study(path, "large").run == {"lr": 0.1, "rounds": 9}


def test_settings_stand_in_the_order_of_precedence(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, run={"lr": 0.1, "rounds": 9}))
    one, two = study.arms
    assert (study.settings(one, 1, {}).lr, study.settings(two, 1, {}).lr) == (0.1, 0.01)
    assert study.settings(two, 5, {"lr": 0.5, "seed": 9}).lr == 0.5
    assert study.settings(two, 5, {"seed": 9}).seed == 5


def test_grid_has_a_row_for_each_combination(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, arms=[], grid={"lr": [0.1, 0.2], "width": [1, 2, 3]}))
    assert len(study.arms) == 6
    assert study.arms[0].name == "lr 0.1, width 1"
    assert study.arms[-1].settings == {"lr": 0.2, "width": 3}


def test_cohorts_are_found_beside_the_file(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, data={"cohorts": ["patients", "/else/where"]}))
    assert study.data.cohorts == (tmp_path / "patients", Path("/else/where"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "arms"),
        ({"arms": [{"name": "A b"}, {"name": "A b"}]}, "two are called A b"),
        ({"arms": [{"name": "\u8054\u90a6"}, {"name": "\u8054\u90a6"}]}, "two are called \u8054\u90a6"),
        ({"arms": ["one"]}, "arms: a list of tables"),
        ({"reference": "three"}, "reference: 'three' is none of the arms"),
        ({"protocols": ["finetuned"]}, "name both"),
        ({"protocols": ["alone"]}, "protocols.0: 'alone' is not allowed"),
        ({"measures": ["idh.dice"]}, "measures: idh.dice"),
        ({"measures": ["grade.auc"]}, "measures: grade.auc"),
        ({"divisions": {"kind": "file"}}, "file: is for kind file"),
        ({"divisions": {"folds": 1}}, "divisions.folds: 1 is not allowed"),
        ({"divsions": {}}, "divsions: unknown setting, did you mean divisions"),
        ({"size": "huge", "sizes": {"small": {}}}, "size: 'huge' is none of small"),
        ({"grid": {"lr": 0.1}}, "grid: 'setting"),
        ({"seeds": []}, "name at least one"),
        ({"published": [{"source": "x", "data": "y", "rows": {"one": {"idh.f1": 1}}}]}, "idh.f1"),
        (
            {"published": [{"source": "x", "data": "y", "rows": {"one": {"idh.dice": 0.3}}}]},
            "idh.dice: write",
        ),
        ({"run": {"seed": 9}}, r"run: seed: seeds stand in 'seeds: \[1, 2\]'"),
        ({"finetune": {"seed": 9}}, "finetune: seed: seeds stand in"),
        ({"arms": [{"name": "odd", "seed": 9}]}, "arm odd: seed: seeds stand in"),
        ({"grid": {"seed": [1, 2]}}, "grid: seed: seeds stand in"),
        ({"seeds": [3, 1, 3]}, "seeds: 3 stands there twice"),
        ({"protocols": ["federated", "federated"]}, "protocols: federated stands there twice"),
        ({"baselines": ["age", "age"]}, "baselines: age stands there twice"),
        ({"measures": ["idh.auc", "idh.auc"]}, r"measures: idh\.auc stands there twice"),
        (
            {"divisions": {"kind": "sites"}, "protocols": ["federated", "local"]},
            "local: with divisions of kind sites .* with sites go federated and centralised",
        ),
        (
            {"divisions": {"kind": "sites"}, "protocols": ["federated", "finetuned"]},
            "finetuned: with divisions of kind sites",
        ),
        ({"sizes": [1]}, "sizes: write a table of sizes by name"),
        ({"size": "small", "sizes": {"small": 3}}, "sizes: write a table of sizes by name"),
        ({"sizes": {"small": {}, "large": {}}}, "size: is needed and not set; choose one of large, small"),
    ],
)
def test_mistake_in_a_study_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = study_file(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(path)
    assert "\n" not in str(caught.value)
    assert "study.yaml" in str(caught.value)


def test_size_of_a_study_without_sizes_is_refused(tmp_path: Path) -> None:
    path = study_file(tmp_path)
    assert read_study(path).size == "full"
    with pytest.raises(ConfigError, match="--study-size foo: the study has no sizes"):
        read_study(path, "foo")


def test_size_may_be_called_by_a_number(tmp_path: Path) -> None:
    path = study_file(tmp_path, size=1, sizes={1: {"run": {"rounds": 1}}, 2: {}})
    assert (read_study(path).size, read_study(path).run) == ("1", {"rounds": 1})
    assert read_study(path, "2").run == {}


def test_wrong_setting_of_an_arm_names_the_arm(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, arms=[{"name": "odd", "lrr": 1}]))
    with pytest.raises(ConfigError, match="arm odd: lrr: unknown setting, did you mean lr"):
        study.settings(study.arms[0], 1, {})
