from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.data.split import Split, assign_split
from fedglioma.errors import ConfigError

patients = st.text(min_size=1, max_size=12)
seeds = st.integers(0, 2**32)


def split(patient: str, seed: int = 7, selection: float = 0.2, report: float = 0.3) -> Split:
    return assign_split(patient, seed=seed, selection=selection, report=report)


def test_split_never_changes_between_versions() -> None:
    # Stored runs are resumed and compared by it.
    assert [split(f"sub-{n:02}").value for n in range(6)] == [
        "report",
        "train",
        "report",
        "train",
        "train",
        "selection",
    ]


@given(st.lists(patients, unique=True), patients, seeds)
def test_adding_a_patient_moves_no_other(cohort: list[str], newcomer: str, seed: int) -> None:
    before = {p: split(p, seed) for p in cohort}
    after = {p: split(p, seed) for p in [newcomer, *reversed(cohort)]}
    assert all(after[p] is before[p] for p in cohort)


def test_no_patient_is_in_two_splits() -> None:
    visits = ["a", "b", "a", "c", "b", "a"]
    assert len({(patient, split(patient)) for patient in visits}) == 3


def test_fractions_hold_on_average() -> None:
    n = 4000
    share = Counter(split(f"patient-{i}") for i in range(n))
    # Four standard deviations of a fraction of 4000.
    assert share[Split.SELECTION] / n == pytest.approx(0.2, abs=0.026)
    assert share[Split.REPORT] / n == pytest.approx(0.3, abs=0.029)


def test_other_seed_is_an_independent_division() -> None:
    both = sum(split(f"{i}", 1) is split(f"{i}", 2) is Split.REPORT for i in range(4000))
    assert both / 4000 == pytest.approx(0.3 * 0.3, abs=0.02)


@given(patients, seeds)
def test_larger_selection_takes_from_training_only(patient: str, seed: int) -> None:
    small, large = split(patient, seed, selection=0.1), split(patient, seed, selection=0.4)
    assert large is small or (small, large) == (Split.TRAIN, Split.SELECTION)


@given(patients, seeds)
def test_nothing_held_out_means_all_train(patient: str, seed: int) -> None:
    assert split(patient, seed, selection=0.0, report=0.0) is Split.TRAIN


@pytest.mark.parametrize(("selection", "report"), [(-0.1, 0.2), (0.5, 0.5), (float("nan"), 0.1)])
def test_impossible_fractions_are_refused(selection: float, report: float) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        split("a", selection=selection, report=report)
