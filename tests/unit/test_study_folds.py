"""A study's values by fold and seed, what stands beside a mean, and each hospital that was left out."""

import csv
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedglioma.case import Genotype, Task
from fedglioma_server.study_folds import KEPT_BACK, leave_out_numberless, left_out_of, with_folds
from fedglioma_server.study_report import csv_text, markdown
from fedglioma_server.study_results import CaseKey, Known, Readings, RowName
from fedglioma_server.study_table import Entry, Line, StudyResult, table_of

SEEDS = (1, 2)
A, B = RowName("A", "federated"), RowName("B", "federated")


def study(*labels: Sequence[int], rows: Sequence[RowName] = (A, B)) -> Known:
    """Return what rows say of the patients of each fold, a hospital, whose IDH status is given."""
    known = Known()
    generator = np.random.default_rng(4)
    for row in rows:
        readings = known.rows.setdefault(row, Readings())
        for fold, of_fold in enumerate(labels):
            for place, label in enumerate(of_fold):
                key: CaseKey = (fold, f"p{fold}-{place:02}", 0)
                known.site[key] = f"site{'abcd'[fold]}"
                known.labels[key] = Genotype(idh=label).labels()
                for seed in SEEDS:
                    readings.add(Task.IDH, key, seed, float(generator.uniform()))
    return known


def entries_of(
    known: Known, *measures: str, rows: Sequence[RowName] = (A, B)
) -> dict[RowName, dict[str, Entry]]:
    table = table_of(known, measures, rows, A, SEEDS, resamples=20)
    return with_folds(table, known, SEEDS, len({key[0] for key in known.labels}))


def auc(known: Known, fold: int, seed: int) -> float:
    keys = [key for key in sorted(known.labels) if key[0] == fold]
    labels = [known.labels[key][0] for key in keys]
    return float(roc_auc_score(labels, [known.rows[A].values[Task.IDH][key][seed] for key in keys]))


MIXED = [0, 1] * 6
ONE_CLASS = [1] * 8


def test_values_stand_by_fold_and_seed() -> None:
    known = study(MIXED, MIXED, MIXED)
    entry = entries_of(known, "idh.auc")[A]["idh.auc"]
    expected = np.array([[auc(known, fold, seed) for seed in SEEDS] for fold in range(3)])
    assert np.array(entry.by_fold, dtype=float) == pytest.approx(expected)
    assert entry.by_seed == pytest.approx(expected.mean(axis=0))
    assert entry.value.value == pytest.approx(expected.mean())
    assert entry.notes == []


def test_mean_of_some_folds_says_so_beside_every_row() -> None:
    entries = entries_of(study(ONE_CLASS, MIXED, MIXED), "idh.auc", "idh.accuracy")
    for row in (A, B):
        assert entries[row]["idh.auc"].notes == [
            "mean of 2 of 3 folds, 24 of 32 cases; the others do not define it: one class only"
        ]
        assert entries[row]["idh.auc"].by_fold[0] == [None, None]
        assert entries[row]["idh.accuracy"].notes == []


def test_folds_left_out_of_a_mean_with_few_patients_are_not_counted() -> None:
    entry = entries_of(study([1] * 3, MIXED, MIXED), "idh.auc")[A]["idh.auc"]
    assert entry.notes == ["mean of 2 of 3 folds; the others do not define it: one class only"]


def test_fold_of_few_is_not_told_nor_is_a_second_one_from_which_it_would_follow() -> None:
    known = study([0, 0, 1, 1, 1, 1, 1], MIXED, [*MIXED, 0, 1])
    entry = entries_of(known, "idh.auc")[A]["idh.auc"]
    assert entry.by_fold[:2] == [[None, None], [None, None]]
    assert entry.by_fold[2] == pytest.approx([auc(known, 2, seed) for seed in SEEDS])


def test_fold_of_few_that_defines_no_value_is_no_company() -> None:
    known = study([1, 1, 1], [0, 0, 1, 1, 1, 1, 1], MIXED, [*MIXED, 0, 1])
    for row, entry in ((row, found["idh.auc"]) for row, found in entries_of(known, "idh.auc").items()):
        assert entry.by_fold[:3] == [[None, None]] * 3, row
    entry = entries_of(known, "idh.auc")[A]["idh.auc"]
    assert entry.by_fold[3] == pytest.approx([auc(known, 3, seed) for seed in SEEDS])


def test_fold_of_few_that_one_seed_alone_does_not_define_is_no_company_under_that_seed() -> None:
    """Under seed 2 nobody of the first fold is called mutant."""
    known = study([0, 0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1, 0], MIXED, [*MIXED, 0, 1])
    for place in range(7):
        known.rows[A].values[Task.IDH][0, f"p0-{place:02}", 0][2] = 0.1
    entry = entries_of(known, "idh.ppv")[A]["idh.ppv"]
    assert [fold[1] is None for fold in entry.by_fold] == [True, True, True, False]


def test_row_without_a_number_that_others_have_is_left_out_and_the_others_stay() -> None:
    known = study(MIXED, MIXED, MIXED)
    known.rows[B].values[Task.IDH][1, "p1-03", 0][2] = float("nan")
    absent = leave_out_numberless(known, [Task.IDH], [A, B], SEEDS)
    assert list(absent) == ["B, federated, IDH"]
    assert "has no number for a case that others have" in absent["B, federated, IDH"]
    entries = entries_of(known, "idh.auc")
    assert entries[B] == {}
    assert entries[A]["idh.auc"].cases == 36


def test_unknown_status_needs_no_number() -> None:
    known = study([*MIXED, -1], MIXED, MIXED)
    for seed in SEEDS:
        known.rows[B].values[Task.IDH][0, "p0-12", 0][seed] = float("nan")
    assert leave_out_numberless(known, [Task.IDH], [A, B], SEEDS) == {}


def test_cases_that_one_row_takes_from_all_are_noted_there() -> None:
    known = study(MIXED, MIXED, MIXED)
    for place in range(2):
        del known.rows[B].values[Task.IDH][0, f"p0-{place:02}", 0]
    entries = entries_of(known, "idh.accuracy")
    assert entries[A]["idh.accuracy"].notes == []
    assert entries[B]["idh.accuracy"].notes == ["no number for <5 cases, which are left out of every row"]
    assert entries[A]["idh.accuracy"].cases == entries[B]["idh.accuracy"].cases == 34


@pytest.mark.parametrize(
    ("guessed", "said"),
    [(6, "age known in 30 of 36 cases"), (2, "age known in \u22655 of 36 cases"), (0, "")],
)
def test_row_of_age_says_how_many_ages_are_known(guessed: int, said: str) -> None:
    age = RowName("age alone")
    known = study(MIXED, MIXED, MIXED, rows=(A, age))
    known.rows[age].learns_from = "age"
    known.rows[age].guessed = set(sorted(known.labels)[:guessed])
    entries = entries_of(known, "idh.auc", rows=(A, age))
    notes = [f"{said}; the others count as the median"] if said else []
    assert entries[age]["idh.auc"].notes == notes
    assert entries[A]["idh.auc"].notes == []


def test_each_hospital_left_out_has_its_value_interval_and_cases() -> None:
    known = study(ONE_CLASS, MIXED, [*MIXED, 0, 1])
    entries = entries_of(known, "idh.auc")
    found = left_out_of(entries, known, SEEDS, ["sitea", "siteb", "sitec"], resamples=50)
    assert [(f.site, f.arm, f.cases) for f in found] == [
        (site, arm, cases) for site, cases in (("sitea", 8), ("siteb", 12), ("sitec", 14)) for arm in "AB"
    ]
    assert found[0].value.value is None
    assert found[0].value.reason == "one class only"
    for place, fold in ((2, 1), (4, 2)):
        value = found[place].value
        assert value.value == pytest.approx(np.mean([auc(known, fold, seed) for seed in SEEDS]))
        assert value.low is not None
        assert value.low < (value.value or 0) < (value.high or 0)


def test_hospital_of_few_left_out_is_kept_back_with_another_one() -> None:
    known = study([0, 1, 1], MIXED, [*MIXED, 0, 1])
    entries = entries_of(known, "idh.accuracy")
    found = left_out_of(entries, known, SEEDS, ["sitea", "siteb", "sitec"], resamples=20)
    told = {f.site: (f.cases, f.value.value is not None, f.value.reason) for f in found if f.arm == "A"}
    assert told["sitea"] == ("<5", False, "fewer than 5 patients of one status")
    assert told["siteb"] == ("\u22655", False, KEPT_BACK)
    assert told["sitec"][:2] == ("\u22655", True)


def result(known: Known, *, seeds: int = 2) -> StudyResult:
    entries = entries_of(known, "idh.auc")
    sites = ["sitea", "siteb", "sitec"]
    return StudyResult(
        title="t",
        size="full",
        created="2026-01-01T00:00:00+00:00",
        synthetic=False,
        cohorts=[],
        patients=32,
        sites=sites,
        divisions="sites",
        folds=3,
        fold_names=sites,
        seeds=seeds,
        runs=12,
        reference=("A", "federated"),
        measures=["idh.auc"],
        lines=[Line(arm=row.arm, protocol=row.protocol, entries=entries[row]) for row in (A, B)],
        left_out=left_out_of(entries, known, SEEDS, sites, resamples=20),
    )


def test_tables_show_the_notes_the_seeds_and_each_hospital() -> None:
    found = result(study(ONE_CLASS, MIXED, MIXED))
    text = markdown(found)
    (row,) = (line for line in text.splitlines() if line.startswith("| A | ") and "(a)" in line)
    entry = found.lines[0].entries["idh.auc"]
    low, high = sorted(value for value in entry.by_seed if value is not None)
    assert f"| {low:.2f} to {high:.2f} |" in row
    assert "(a) mean of 2 of 3 folds, 24 of 32 cases; the others do not define it: one class only" in text
    assert "hold for the trained networks as they are" in text
    assert "the largest mean over folds of a seed show" in text
    assert "## Each hospital left out: IDH AUC" in text
    assert "| siteb | 12 | " in text
    (first, _) = csv.DictReader(csv_text(found).splitlines())
    assert (float(first["seeds_low"]), float(first["seeds_high"])) == (low, high)
    assert first["note"].startswith("mean of 2 of 3 folds, 24 of 32 cases")


def test_one_seed_has_no_column_of_seeds() -> None:
    text = markdown(result(study(MIXED, MIXED, MIXED), seeds=1))
    assert " to 0." not in text
    assert "which one seed cannot show" in text
