"""Figures of rows in which every hospital has a model of its own: nothing is taken across models."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedglioma.case import Task
from fedglioma.metrics.paired import holm
from fedglioma_server.study_folds import with_folds
from fedglioma_server.study_results import Known, Readings, RowName
from fedglioma_server.study_table import Gain, gains_of, table_of

FED, LOCAL, AGE = RowName("A", "federated"), RowName("A", "local"), RowName("age alone")


def entered(
    known: Known, site: str, fold: int, labels: Sequence[int], scores: Mapping[RowName, Sequence[float]]
) -> None:
    """Enter the cases that one hospital has in one fold."""
    for place, label in enumerate(labels):
        key = (fold, f"{site}-{fold}-{place}", 0)
        known.site[key], known.labels[key] = site, (label, -1, -1)
        for row, values in scores.items():
            known.rows.setdefault(row, Readings()).add(Task.IDH, key, 1, values[place])


SHIFT = {"north": -3.0, "south": 0.0, "west": 3.0}


def same_evidence() -> Known:
    """A hospital's own model says what the federation's says, on a scale that is moved."""
    known, rng = Known(), np.random.default_rng(0)
    for site, shift in SHIFT.items():
        for fold in range(2):
            labels = rng.integers(0, 2, 20)
            logits = 1.5 * (labels - 0.5) + rng.normal(size=20)
            scores = {FED: 1 / (1 + np.exp(-logits)), LOCAL: 1 / (1 + np.exp(-logits - shift))}
            entered(known, site, fold, labels.tolist(), {row: s.tolist() for row, s in scores.items()})
    return known


def test_models_that_differ_in_their_scale_alone_are_no_gain() -> None:
    gains = gains_of(same_evidence(), ["idh.auc"], ["A"], ["federated", "local"], [1], resamples=100)
    assert [gain.site for gain in gains] == ["all", *SHIFT]
    for gain in gains:
        comparison = gain.lines["federated"].comparison
        assert comparison is not None
        assert comparison.difference.value == pytest.approx(0, abs=1e-12)
        assert comparison.p == 1


def test_row_of_hospitals_models_is_the_mean_of_their_aucs() -> None:
    known = same_evidence()
    table = table_of(known, ["idh.auc"], [FED, LOCAL], FED, [1], resamples=100)

    def auc(row: RowName, chosen: Sequence[tuple[int, str, int]]) -> float:
        labels = [known.labels[key][0] for key in chosen]
        return float(roc_auc_score(labels, [known.rows[row].values[Task.IDH][key][1] for key in chosen]))

    folds = [[key for key in known.labels if key[0] == fold] for fold in range(2)]
    models = [[key for key in fold if known.site[key] == site] for fold in folds for site in SHIFT]
    assert table[FED]["idh.auc"].value.value == pytest.approx(np.mean([auc(FED, fold) for fold in folds]))
    local = table[LOCAL]["idh.auc"]
    assert local.value.value == pytest.approx(np.mean([auc(LOCAL, model) for model in models]))
    assert local.value.low is not None
    assert local.comparison is not None
    within = np.mean([auc(FED, model) for model in models])
    assert local.comparison.value_b.value == pytest.approx(within)
    assert (local.comparison.folds, local.comparison.difference.value, local.comparison.p) == (6, 0, 1)
    assert local.notes == [
        "mean of 6 models, each hospital's in each fold",
        f"compared hospital by hospital, where A, federated has {within:.2f}",
    ]


def test_mean_of_models_by_hand_leaves_out_hospitals_with_one_class() -> None:
    """8 of 9 pairs in order at one hospital, 7 of 9 at another, no pair at the third."""
    known = Known()
    entered(known, "north", 0, [0, 0, 0, 1, 1, 1], {LOCAL: [0.1, 0.2, 0.3, 0.25, 0.4, 0.5]})
    entered(known, "south", 0, [0, 0, 0, 1, 1, 1], {LOCAL: [0.7, 0.8, 0.9, 0.95, 0.96, 0.75]})
    entered(known, "west", 0, [0] * 5, {LOCAL: [0.9] * 5})
    entry = table_of(known, ["idh.auc"], [LOCAL], LOCAL, [1], resamples=100)[LOCAL]["idh.auc"]
    assert entry.value.value == pytest.approx((8 / 9 + 7 / 9) / 2)
    assert entry.notes == [
        "mean of 2 of 3 models, each hospital's in each fold, 12 of 17 cases; the cases of the others are of "
        "one class"
    ]


def test_figures_that_judge_each_case_by_itself_are_means_over_folds() -> None:
    known = same_evidence()
    table = table_of(known, ["idh.accuracy"], [FED, LOCAL], FED, [1], resamples=100)
    right = [
        np.mean(
            [
                (known.rows[LOCAL].values[Task.IDH][key][1] >= 0.5) == label[0]
                for key, label in known.labels.items()
                if key[0] == fold
            ]
        )
        for fold in range(2)
    ]
    assert table[LOCAL]["idh.accuracy"].value.value == pytest.approx(np.mean(right))


@pytest.mark.parametrize(("lacking", "cases"), [(10, 34), (6, 24), (4, 24)])
def test_hospital_without_a_model_leaves_what_concerns_it_and_more_only_where_it_is_of_few(
    lacking: int, cases: int
) -> None:
    """The figures of four patients, or of three of one status, would follow from those with and without."""
    known, rng = Known(), np.random.default_rng(0)
    for site in ("north", "south"):
        scores = {row: rng.uniform(size=12).tolist() for row in (FED, LOCAL, AGE)}
        entered(known, site, 0, [0, 1] * 6, scores)
    entered(known, "west", 0, [0, 1] * (lacking // 2), {row: [0.5] * lacking for row in (FED, AGE)})
    table = table_of(known, ["idh.accuracy"], [FED, LOCAL, AGE], FED, [1], resamples=100)
    found = {row: entries["idh.accuracy"] for row, entries in table.items()}
    assert [found[row].cases for row in (FED, LOCAL, AGE)] == [cases, 24, cases]
    compared = [entry.comparison.n_patients for entry in found.values() if entry.comparison is not None]
    assert compared == [24, cases]
    told = "24 of 34 cases, of hospitals with a model"
    assert (told in found[LOCAL].notes) == (cases == 34)
    gains = gains_of(known, ["idh.accuracy"], ["A"], ["federated", "local"], [1], resamples=100)
    assert {gain.site: gain.lines["federated"].cases for gain in gains} == {
        "all": 24,
        "north": 12,
        "south": 12,
    }


def test_sensitivity_of_one_patient_does_not_follow_from_the_cases_of_hospitals_without_a_model() -> None:
    known, rng = Known(), np.random.default_rng(0)
    for site in ("north", "south"):
        scores = {row: rng.uniform(size=12).tolist() for row in (FED, LOCAL)}
        entered(known, site, 0, [0, 1] * 6, scores)
    entered(known, "west", 0, [1, 0, 0, 0, 0, 0], {FED: [0.9] + [0.1] * 5})
    table = table_of(known, ["idh.sensitivity"], [FED, LOCAL], FED, [1], resamples=20)
    fed, local = (table[row]["idh.sensitivity"] for row in (FED, LOCAL))
    assert fed.cases == local.cases == 24
    assert local.comparison is not None
    assert local.comparison.value_b.value == fed.value.value


def test_cases_of_hospitals_of_one_class_are_not_told_where_they_follow_from_the_rows_own() -> None:
    """Of 22 cases that are printed, the note would say that 20 are in the mean."""
    known, rng = Known(), np.random.default_rng(0)
    for site in ("north", "south"):
        entered(known, site, 0, [0, 1] * 5, {row: rng.uniform(size=10).tolist() for row in (FED, LOCAL)})
    entered(known, "west", 0, [1, 1], {FED: [0.5] * 2, LOCAL: [0.5] * 2})
    entered(known, "east", 0, [0, 1] * 5, {FED: [0.5] * 10})
    entry = table_of(known, ["idh.auc"], [FED, LOCAL], FED, [1], resamples=20)[LOCAL]["idh.auc"]
    assert entry.cases == 22
    assert entry.notes[0] == (
        "mean of 2 of 3 models, each hospital's in each fold; the cases of the others are of one class"
    )


def test_mean_of_models_is_noted_once_where_a_fold_has_one_hospital() -> None:
    known, rng = Known(), np.random.default_rng(0)
    for fold, labels in enumerate([[1] * 6, [0, 1] * 6, [0, 1] * 6]):
        entered(known, "north", fold, labels, {LOCAL: rng.uniform(size=len(labels)).tolist()})
    table = table_of(known, ["idh.auc"], [LOCAL], LOCAL, [1], resamples=20)
    (note,) = with_folds(table, known, [1], 3)[LOCAL]["idh.auc"].notes
    assert note.startswith("mean of 2 of 3 models, each hospital's in each fold")


PROTOCOLS = ("local", "federated", "finetuned")


def _nothing_gained(seed: int) -> list[Gain]:
    known, rng = Known(), np.random.default_rng(seed)
    labels = [0, 1] * 10
    for site in range(8):
        scores = {RowName("A", name): (rng.normal(size=20) + labels).tolist() for name in PROTOCOLS}
        entered(known, f"h{site}", 0, labels, scores)
    return gains_of(known, ["idh.auc"], ["A"], PROTOCOLS, [1], resamples=20)


def _of_hospitals(gains: Sequence[Gain]) -> list[tuple[float | None, float | None]]:
    """Each hospital's p-values, as they are and adjusted."""
    return [
        (entry.comparison.p, entry.p_adjusted)
        for gain in gains
        if gain.site != "all"
        for entry in gain.lines.values()
        if entry.comparison is not None
    ]


def test_p_of_hospitals_is_adjusted_for_all_hospitals_and_protocols() -> None:
    gains = _nothing_gained(0)
    raw, adjusted = zip(*_of_hospitals(gains), strict=True)
    assert len(raw) == 8 * 2
    assert adjusted == holm(raw)
    over_all = [entry for entry in gains[0].lines.values() if entry.comparison is not None]
    plain = [entry.comparison.p for entry in over_all if entry.comparison is not None]
    assert [entry.p_adjusted for entry in over_all] == list(holm(plain))


def test_hospitals_that_gain_nothing_are_rarely_said_to_gain() -> None:
    """One table in twenty may have a hospital with p below 0.05, whatever its number of hospitals."""
    tables = [_of_hospitals(_nothing_gained(seed)) for seed in range(24)]
    said = sum(min(p for _, p in table if p is not None) < 0.05 for table in tables)
    plain = sum(min(p for p, _ in table if p is not None) < 0.05 for table in tables)
    assert said <= 3
    assert plain > 8
