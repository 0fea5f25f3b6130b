import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import Gene
from fedglioma.metrics.bootstrap import Measure
from fedglioma_server import report_text as words

EN = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (None, "p not defined"),
        (0.0, "p < 0.001"),
        (2.9e-70, "p < 0.001"),
        (0.00134, "p = 0.001"),
        (0.0086, "p = 0.009"),
        (0.063, "p = 0.063"),
        (0.24, "p = 0.24"),
        (0.9999, "p > 0.99"),
    ],
)
def test_p_values_read_as_journals_print_them(p: float | None, text: str) -> None:
    assert words.probability_value(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, EN),
        (0, "0 s"),
        (0.01, "<0.1 s"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (100, "1 min 40 s"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_carry_the_units_that_matter(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (4_100_000_000, "4.1 GB"),
    ],
)
def test_sizes_are_in_powers_of_a_thousand(number: int, text: str) -> None:
    assert words.size(number) == text


@given(st.integers(min_value=0, max_value=10**14))
@settings(deadline=None, max_examples=50)
def test_sizes_never_show_four_digits_before_the_unit(number: int) -> None:
    shown = words.size(number).split(" ")[0]
    assert len(shown.split(".")[0]) <= 3


@given(st.floats(min_value=0, max_value=10**7))
@settings(deadline=None, max_examples=100)
def test_durations_never_show_sixty_of_a_smaller_unit(seconds: float) -> None:
    assert "60 s" not in words.duration(seconds)
    assert "60 min" not in words.duration(seconds)


def test_a_measure_stands_with_its_interval() -> None:
    assert words.with_interval(Measure(value=0.858, low=0.781, high=0.93)) == f"0.86 [0.78{EN}0.93]"
    assert words.with_interval(Measure(value=0.81, low=0.74, high=0.88), share=True) == f"81 % [74{EN}88]"


def test_a_measure_without_interval_or_value_shows_neither_nan_nor_none() -> None:
    assert words.with_interval(Measure(value=1.0, reason="no exception")) == "1.00"
    assert words.with_interval(Measure(value=None, reason="one class only")) == EN


def test_a_gain_has_a_sign_and_zero_has_none() -> None:
    assert words.points(Measure(value=0.17, low=-0.001, high=0.25)) == "+17 [0 to +25]"
    assert words.points(Measure(value=-0.08)) == "\N{MINUS SIGN}8"
    assert words.points(Measure(value=None, reason="nobody")) == EN


def test_a_suppressed_cell_says_less_than_the_limit_and_zero_stays_zero() -> None:
    assert [words.cell(n, 5) for n in (None, 0, 7)] == ["<5", "0", "7"]


def test_long_listings_end_in_a_number() -> None:
    assert words.listing([]) == ""
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.listing([str(i) for i in range(9)], most=2) == "0, 1 and 7 more"


def test_times_are_told_in_words_and_foreign_text_is_kept() -> None:
    assert words.moment("2026-11-21T06:46:08+02:00") == "21 November 2026, 04:46 UTC"
    assert words.moment("yesterday") == "yesterday"


def test_subsets_are_named_by_their_sequences() -> None:
    assert words.subset_title("flair+t1ce+t1+t2") == "All four sequences"
    assert words.subset_title("flair+t1ce") == "FLAIR, T1 with contrast"
    assert words.subset_title("none") == "No sequence"


def test_counts_are_told_by_status() -> None:
    assert words.class_counts(Gene.CODEL, 3, 10) == "3 codeleted, 7 intact"
    assert words.count(1, "patient") == "1 patient"
    assert words.count(1200, "patient") == "1,200 patients"


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (
            "one class only: none of the 7 known cases is positive",
            "one class only: none of the known cases is positive",
        ),
        ("all 12 known cases are positive", "all known cases are positive"),
        (
            "defined in 41 of 100 resamples only: too few patients of one class",
            "defined in too few resamples: too few patients of one class",
        ),
        ("no exception among 9 patients: as it is", "no exception among the patients: as it is"),
    ],
)
def test_reasons_lose_the_numbers_that_their_row_shows(reason: str, text: str) -> None:
    assert words.general(reason) == text
