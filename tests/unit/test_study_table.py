from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from fedglioma.case import Gene, Task
from fedglioma.data.prepare import PrepareSettings
from fedglioma.metrics.predictions import Predictions
from fedglioma_server import study_run
from fedglioma_server.study_cells import Cell, divide, expand
from fedglioma_server.study_file import Study
from fedglioma_server.study_results import Known, Readings, RowName
from fedglioma_server.study_table import gains_of, measures_of, table_of
from tests.unit.test_study_cells import CASES, SITE_OF

STUDY = Study.model_validate(
    {
        "title": "t",
        "size": "test",
        "arms": [{"name": "A"}, {"name": "B", "settings": {"lr": 0.1}}],
        "seeds": (1, 2),
        "divisions": {"folds": 3},
        "protocols": ("federated", "local"),
    }
)
LABEL = {case.patient: case.genotype.idh for case in CASES}


def says(cell: Cell, patient: str) -> float:
    """What a made-up network says of a patient: arm A knows a little, B nothing, alone it is worse."""
    seed = [*f"{cell.arm.name}{cell.protocol}{patient}".encode(), cell.seed]
    noise = float(np.random.default_rng(seed).uniform())
    share = (0.5 if cell.arm.name == "A" else 0.0) * (0.5 if cell.site else 1.0)
    return share * LABEL[patient] + (1 - share) * noise


def predictions(cell: Cell, patients: list[str]) -> Predictions:
    n = len(patients)
    probabilities = np.full((n, 3), np.nan)
    probabilities[:, 0] = [says(cell, patient) for patient in patients]
    labels = np.full((n, 3), -1)
    labels[:, 0] = [LABEL[patient] for patient in patients]
    return Predictions(
        labels=labels,
        probabilities=probabilities,
        sites=tuple(SITE_OF[p] for p in patients),
        modalities=("flair",) * n,
        split=("report",) * n,
        patients=np.arange(n),
        genes=(Gene.IDH,),
    )


@pytest.fixture(scope="module")
def known() -> Known:
    found = Known()
    for cell in expand(STUDY, CASES, {}):
        patients = [p for p, part in cell.division.split.items() if part == "report"]
        row = RowName(cell.arm.name, cell.protocol)
        found.enter(row, cell, patients, predictions(cell, patients), SITE_OF)
    return found


ORDER = [RowName(arm, protocol) for arm in "AB" for protocol in ("federated", "local")]


def test_value_is_the_mean_over_folds_and_seeds(known: Known) -> None:
    table = table_of(known, ["idh.auc", "idh.accuracy"], ORDER, ORDER[0], (1, 2), resamples=100)
    cells = [c for c in expand(STUDY, CASES, {}) if (c.arm.name, c.protocol) == ("A", "federated")]
    auc, right = [], []
    for cell in cells:
        patients = [p for p, part in cell.division.split.items() if part == "report"]
        labels, scores = [LABEL[p] for p in patients], np.array([says(cell, p) for p in patients])
        auc.append(roc_auc_score(labels, scores))
        right.append(accuracy_score(labels, scores >= 0.5))
    entry = table[ORDER[0]]
    assert entry["idh.auc"].value.value == pytest.approx(np.mean(auc))
    assert entry["idh.accuracy"].value.value == pytest.approx(np.mean(right))
    assert entry["idh.auc"].comparison is None
    assert entry["idh.auc"].cases == len(CASES)


def test_others_are_compared_with_the_reference_on_the_same_patients(known: Known) -> None:
    table = table_of(known, ["idh.auc"], ORDER, ORDER[0], (1, 2), resamples=200)
    worse = table[RowName("B", "federated")]["idh.auc"]
    assert worse.comparison is not None
    difference = worse.comparison.difference
    own, other = worse.value.value, table[ORDER[0]]["idh.auc"].value.value
    assert difference.value == pytest.approx((own or 0) - (other or 0))
    assert difference.high is not None
    assert difference.high < 0
    assert worse.p_adjusted is not None
    assert worse.comparison.p is not None
    assert worse.comparison.p <= worse.p_adjusted <= 3 * worse.comparison.p


def test_hospital_alone_is_asked_of_its_own_patients_only(known: Known) -> None:
    local = known.table(Task.IDH, [RowName("A", "local")], (1, 2))
    cells = {(c.site, c.fold, c.seed): c for c in expand(STUDY, CASES, {}) if c.protocol == "local"}
    assert len(local.rows.patients) == len(CASES)
    keys = sorted(known.labels)
    for place, key in enumerate(keys):
        cell = cells[SITE_OF[key[1]], key[0], 2]
        if cell.arm.name == "A":
            assert local.values[RowName("A", "local")][place, 1] == says(cell, key[1])


def test_gain_of_a_hospital_is_on_its_own_patients(known: Known) -> None:
    gains = gains_of(known, ["idh.auc"], ["A"], ["federated", "local"], (1, 2), resamples=100)
    assert [gain.site for gain in gains] == ["all", "henan", "ningxia", "zhengzhou"]
    assert [gain.lines["federated"].cases for gain in gains] == [30, 10, 10, 10]
    assert gains[0].lines["local"].comparison is None
    federated = gains[0].lines["federated"].comparison
    assert federated is not None
    assert (federated.difference.value or 0) > 0


def test_gain_of_a_hospital_with_few_of_a_status_does_not_follow_from_the_others(known: Known) -> None:
    """It would be the right answers of all, or a multiple of their mean AUC, without those of the others."""
    one = next(key for key in sorted(known.labels) if known.site[key] == "henan" and known.labels[key][0])
    fewer = Known(site=known.site, labels=known.labels | {one: (0, -1, -1)}, rows=known.rows)
    asked = (["idh.accuracy", "idh.auc"], ["A"], ["federated", "local"], (1, 2))
    gains = {(g.site, g.measure): g.lines["federated"] for g in gains_of(fewer, *asked, resamples=100)}
    assert {site for (site, _), entry in gains.items() if entry.value.value} == {"all"}
    for measure in asked[0]:
        assert gains["henan", measure].value.reason == "fewer than 5 patients of one status"
        hidden = gains["ningxia", measure]
        assert hidden.value.reason == "it would tell how few another hospital has"
        assert hidden.comparison is None
        assert hidden.p_adjusted is None
    before = gains_of(known, *asked, resamples=100)
    assert all(gain.lines["federated"].value.value is not None for gain in before)


def test_rows_share_the_cases_that_all_of_them_have(known: Known) -> None:
    thinner = Known(site=dict(known.site), labels=dict(known.labels), rows=dict(known.rows))
    some = RowName("thin")
    thinner.rows[some] = type(known.rows[ORDER[0]])()
    for key in sorted(known.labels)[:12]:
        for seed in (1, 2):
            thinner.rows[some].add(Task.IDH, key, seed, 0.5)
    table = table_of(thinner, ["idh.accuracy"], [ORDER[0], some], ORDER[0], (1, 2), resamples=100)
    assert {row: entries["idh.accuracy"].cases for row, entries in table.items()} == {ORDER[0]: 12, some: 12}


def test_measures_follow_from_the_tasks_unless_they_are_chosen() -> None:
    assert measures_of(STUDY, [Task.IDH, Task.SEGMENTATION]) == [
        "idh.auc",
        "idh.accuracy",
        "segmentation.dice",
    ]
    chosen = STUDY.model_copy(update={"measures": ("idh.specificity",)})
    assert measures_of(chosen, [Task.IDH]) == ["idh.specificity"]


def test_there_is_no_gain_against_a_row_that_has_no_numbers(known: Known) -> None:
    local = RowName("A", "local")
    broken = Known(site=known.site, labels=known.labels, rows=known.rows | {local: Readings()})
    asked = (["idh.accuracy"], ["A", "B"], ["federated", "local"], (1, 2))
    assert {gain.arm for gain in gains_of(broken, *asked, resamples=100)} == {"B"}


def test_folds_are_the_studys_where_one_of_them_has_no_run(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where hospitals only train alone, nobody may be asked in a fold."""
    only = STUDY.model_copy(update={"protocols": ("local",), "baselines": (), "seeds": (1, 2)})
    cells = [cell for cell in expand(only, CASES, {}) if cell.fold != 1]
    kept = Known(known.site, {key: label for key, label in known.labels.items() if key[0] != 1})
    for row in ORDER[1::2]:
        numbers = known.rows[row].values[Task.IDH]
        kept.rows[row] = Readings({Task.IDH: {key: numbers[key] for key in kept.labels}})
    monkeypatch.setattr(study_run, "_taken", lambda *_: (kept, {}, {}))
    gathering = SimpleNamespace(cases=CASES, synthetic=True, cohorts=())
    request: Any = SimpleNamespace(study=only, gathering=gathering, out=tmp_path, given={})
    prepared: Any = {PrepareSettings.of(cell.settings): SimpleNamespace(cases=()) for cell in cells}
    found = study_run.collect(request, cells, prepared, {})
    assert found.fold_names == [division.name for division in divide(only, CASES, cells[0].settings)]
    assert found.folds == 3
    by_fold = found.lines[0].entries["idh.accuracy"].by_fold
    assert [fold[0] is None for fold in by_fold] == [False, True, False]
