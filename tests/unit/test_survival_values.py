import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.survival import values
from fedglioma.survival.values import Group


@pytest.mark.parametrize(
    "cell",
    ["1", "1.0", "mutant", "Mutant", "MUT", "mutated (NOS)", "true", "Yes", "codeleted", "co-deleted",
     "codel", "methylated", "R132H", "IDH1 p.R132H", "IDHmut", "IDH-mutant", "loss", "Positive"],
)  # fmt: skip
def test_words_for_an_altered_marker_mean_one(cell):
    assert values.binary(cell) == 1


@pytest.mark.parametrize(
    "cell",
    ["0", "0.0", "wildtype", "Wild-type", "wild type", "WT", "IDHwt", "false", "no", "intact",
     "non-codeleted", "noncodel", "not codeleted", "unmethylated", "retained", "negative"],
)  # fmt: skip
def test_words_for_an_unaltered_marker_mean_zero(cell):
    assert values.binary(cell) == 0


@pytest.mark.parametrize(
    "cell", ["", "n/a", "NA", "nan", "unknown", "[Not Available]", "-1", "indeterminate"]
)
def test_missing_words_mean_unknown(cell):
    assert values.binary(cell) == -1
    assert values.is_missing(cell)


@pytest.mark.parametrize("cell", ["2", "0.5", "maybe", "mutant?", "male", "R132H/WT"])
def test_other_words_are_not_guessed(cell):
    assert values.binary(cell) is None


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("1", 1), ("1.0", 1), ("Dead", 1), ("1:DECEASED", 1), ("yes", 1), ("0", 0), ("alive", 0),
     ("0:LIVING", 0), ("censored", 0), ("", -1), ("n/a", -1), ("2", None), ("lost", None)],
)  # fmt: skip
def test_events_are_read_in_their_usual_spellings(cell, expected):
    assert values.died(cell) == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("2", 2), ("3.0", 3), ("WHO 2", 2), ("WHO grade III", 3), ("Grade IV", 4), ("G3", 3), ("iv", 4),
     ("CNS WHO grade 4", 4), ("1", 1), ("5", None), ("2/3", None), ("", None), ("high", None)],
)  # fmt: skip
def test_grades_are_read_in_their_usual_spellings(cell, expected):
    assert values.grade(cell) == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("LGG", Group.LOWER_GRADE), ("lower-grade", Group.LOWER_GRADE), ("TCGA-GBM", Group.GLIOBLASTOMA),
     ("Glioblastoma", Group.GLIOBLASTOMA), ("WHO 2", Group.LOWER_GRADE), ("3", Group.LOWER_GRADE),
     ("IV", Group.GLIOBLASTOMA), ("1", None), ("HGG", None), ("", None)],
)  # fmt: skip
def test_cohorts_and_grades_become_groups(cell, expected):
    assert values.group(cell) is expected


@pytest.mark.parametrize("cell", ["", "n/a", "inf", "nan", "1e400", "12 days", "1,234"])
def test_what_is_no_finite_number_is_none(cell):
    assert values.number(cell) is None


@given(st.text(max_size=30))
def test_no_text_breaks_the_readers(cell):
    for read in (values.binary, values.died):
        assert read(cell) in (0, 1, -1, None)
    assert values.grade(cell) in (1, 2, 3, 4, None)
    values.group(cell)
    values.number(cell)
