import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.survival.analysis import SurvivalResults, analyse
from fedglioma.survival.columns import Columns, TimeUnit
from fedglioma.survival.markers import Marker
from fedglioma.survival.table import SurvivalTable
from fedglioma.survival.values import Group
from fedglioma_server.survival_report import survival_text

LGG, GBM = Group.LOWER_GRADE, Group.GLIOBLASTOMA


def make_table(n=120, *, groups=(LGG, GBM), markers=("IDH",), age=True):
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 2, n)
    return SurvivalTable(
        source="clinical.csv",
        rows=n,
        columns=Columns(time="os_days", event="os_event", groups=tuple(m.casefold() for m in markers)),
        unit=TimeUnit.DAYS,
        time=np.ceil(generator.exponential(400, n) * np.exp(codes)),
        died=generator.random(n) < 0.7,
        markers=tuple(Marker(m.casefold(), m, ("wild-type", "mutant"), codes) for m in markers),
        groups=tuple(groups[i % len(groups)] for i in range(n)),
        age=30 + 40 * generator.random(n) if age else None,
        left_out=(),
    )


def test_every_marker_is_compared_in_every_group_that_has_patients():
    results = analyse(make_table(markers=("IDH", "ATRX")))
    assert [(c.group.value, c.title) for c in results.comparisons] == [
        (group, marker) for group in ("lower-grade", "glioblastoma", "mixed") for marker in ("IDH", "ATRX")
    ]
    mixed, lower, gbm = (
        next(c for c in results.comparisons if c.group is g) for g in (Group.MIXED, LGG, GBM)
    )
    assert mixed.n == lower.n + gbm.n == 120
    assert mixed.events == results.events


def test_mixed_is_left_away_where_it_would_repeat_the_only_kind():
    assert {c.group for c in analyse(make_table(groups=(LGG,))).comparisons} == {LGG}
    assert {c.group for c in analyse(make_table(groups=(LGG, None))).comparisons} == {LGG, Group.MIXED}


def test_without_a_cohort_all_patients_stand_together_and_a_note_says_so():
    results = analyse(make_table(groups=(None,)))
    assert {c.group for c in results.comparisons} == {Group.MIXED}
    assert results.adjusted[0].covariates == ("IDH", "age")
    assert "all patients stand together" in results.notes[0]


def test_the_model_of_all_markers_takes_age_and_among_all_patients_the_cohort():
    adjusted = {a.group: a for a in analyse(make_table()).adjusted}
    assert adjusted[LGG].covariates == ("IDH", "age")
    assert adjusted[Group.MIXED].covariates == ("IDH", "age", "cohort")
    assert len(adjusted[Group.MIXED].model.rows) == 3
    assert {a.group: a.covariates for a in analyse(make_table(age=False)).adjusted}[LGG] == ("IDH",)


def test_three_classes_have_two_ratios_against_the_first():
    table = make_table()
    marker = Marker("who", "WHO", ("a", "b", "c"), np.arange(120) % 3)
    comparison = analyse(replace(table, markers=(marker,))).comparisons[-1]
    assert [arm.label for arm in comparison.arms] == ["a", "b", "c"]
    assert [(row.label, row.reference) for row in comparison.cox.rows] == [("b", "a"), ("c", "a")]
    assert comparison.log_rank.degrees == 2


def test_an_absent_first_class_makes_the_next_one_the_reference():
    marker = Marker("who", "WHO", ("a", "b", "c"), 1 + np.arange(120) % 2)
    comparison = analyse(replace(make_table(), markers=(marker,))).comparisons[-1]
    assert [(row.label, row.reference) for row in comparison.cox.rows] == [("c", "b")]


def test_patients_without_a_status_are_counted_and_left_out_of_the_comparison():
    codes = np.where(np.arange(120) < 20, -1, np.arange(120) % 2)
    comparison = analyse(
        replace(make_table(), markers=(Marker("idh", "IDH", ("w", "m"), codes),))
    ).comparisons[-1]
    assert (comparison.n, comparison.unknown) == (100, 20)


def test_a_marker_that_nobody_has_gives_reasons_instead_of_numbers():
    marker = Marker("atrx", "ATRX", ("wild-type", "mutant"), np.full(120, -1))
    comparison = analyse(replace(make_table(), markers=(marker,))).comparisons[-1]
    assert comparison.arms == ()
    assert comparison.log_rank_reason == "no patient has a known status"
    assert comparison.cox.rows == ()


def test_one_class_only_gives_a_curve_and_reasons():
    marker = Marker("idh", "IDH", ("wild-type", "mutant"), np.zeros(120, dtype=np.int64))
    comparison = analyse(replace(make_table(), markers=(marker,))).comparisons[-1]
    assert len(comparison.arms) == 1
    assert (comparison.log_rank, comparison.log_rank_reason) == (None, "one class only")


def test_small_comparisons_carry_a_caution():
    assert analyse(make_table()).comparisons[-1].caution is None
    small = analyse(make_table(12)).comparisons[-1]
    assert small.caution.startswith("too few to conclude anything")


def test_idh_mutant_glioblastomas_are_remarked_on():
    results = analyse(make_table())
    assert any("of the glioblastomas are IDH-mutant" in note for note in results.notes)


@pytest.mark.parametrize(
    ("unit", "months"), [("days", 12 / 365.25), ("months", 1), ("years", 12), ("unknown", None)]
)
def test_results_say_how_long_a_unit_is(unit, months):
    results = analyse(replace(make_table(40), unit=TimeUnit(unit)))
    assert results.months_per_unit == months


def test_scaling_all_times_changes_no_test():
    table = make_table()
    days = analyse(table).comparisons[-1]
    months = analyse(replace(table, time=table.time / 30, unit=TimeUnit.MONTHS)).comparisons[-1]
    assert months.log_rank.chi2 == pytest.approx(days.log_rank.chi2)
    assert months.arms[0].median == pytest.approx(days.arms[0].median / 30)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 120])
def test_results_are_strict_json_and_come_back_equal_at_any_size(n):
    results = analyse(make_table(n))

    def refuse(constant):
        raise AssertionError(constant)

    text = results.model_dump_json()
    json.loads(text, parse_constant=refuse)
    assert SurvivalResults.model_validate_json(text) == results


@settings(deadline=None, max_examples=12)
@given(data=st.data(), n=st.integers(1, 9))
def test_no_small_table_breaks_the_analysis(data, n):
    def column(choices):
        return np.array(data.draw(st.lists(st.sampled_from(choices), min_size=n, max_size=n)))

    table = replace(
        make_table(n),
        time=column([0.0, 1.0, 2.0, 5.0, 900.0]),
        died=column([True, False]),
        markers=(
            Marker("idh", "IDH", ("wild-type", "mutant"), column([-1, 0, 1])),
            Marker("atrx", "ATRX", ("wild-type", "mutant"), column([-1, 0, 1])),
        ),
        groups=tuple(data.draw(st.lists(st.sampled_from([LGG, GBM, None]), min_size=n, max_size=n))),
        age=column([np.nan, 30.0, 60.0]),
    )
    results = analyse(table)
    assert SurvivalResults.model_validate_json(results.model_dump_json()) == results
    assert survival_text(results)
