import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2 as chi2_distribution

from fedglioma.survival.curves import log_rank, make_arm, risk_ticks

# Remission in weeks of 42 children with leukaemia: Freireich et al. (1963), Blood 21(6), 699-716, the
# textbook example of Gehan (1965) and of Kleinbaum and Klein, "Survival Analysis", tables 1.1 and 2.1.
TREATED = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"


def read(text):
    words = text.split()
    return np.array([float(w.rstrip("+")) for w in words]), np.array([not w.endswith("+") for w in words])


def both_arms():
    treated, placebo = read(TREATED), read(PLACEBO)
    time = np.concatenate([treated[0], placebo[0]])
    died = np.concatenate([treated[1], placebo[1]])
    return time, died, np.repeat([0, 1], 21)


def test_kaplan_meier_gives_the_textbooks_curve():
    arm = make_arm("treated", *read(TREATED), ticks=(0, 10, 20, 30))
    steps = {t: s for t, s, d in zip(arm.curve.time, arm.curve.survival, arm.curve.died, strict=True) if d}
    expected = {6: 0.8571, 7: 0.8067, 10: 0.7529, 13: 0.6902, 16: 0.6275, 22: 0.5378, 23: 0.4482}
    assert steps == {t: pytest.approx(s, abs=5e-5) for t, s in expected.items()}
    assert (arm.n, arm.events, arm.median) == (21, 9, 23)
    assert arm.at_risk == (21, 15, 8, 4)
    assert make_arm("placebo", *read(PLACEBO), ticks=()).median == 8


def test_log_rank_gives_the_textbooks_statistic():
    test, reason = log_rank(*both_arms())
    assert reason is None
    assert test.chi2 == pytest.approx(16.793, abs=5e-4)
    assert (test.degrees, test.p) == (1, pytest.approx(4.169e-5, abs=1e-8))


def test_kaplan_meier_of_five_patients_by_hand():
    # Deaths at 1, 2 and 4 with 5, 4 and 2 at risk, one patient censored at 2: 4/5, 3/5, 3/10.
    arm = make_arm("all", np.array([1.0, 2, 2, 4, 5]), np.array([1, 1, 0, 1, 0], dtype=bool), ticks=(0, 2, 5))
    assert arm.curve.time == (1, 2, 4, 5)
    assert arm.curve.survival == pytest.approx((0.8, 0.6, 0.3, 0.3))
    assert arm.curve.at_risk == (5, 4, 2, 1)
    assert arm.curve.died == (1, 1, 1, 0)
    assert arm.curve.censored == (0, 1, 0, 1)
    assert arm.median == 4
    assert arm.at_risk == (5, 4, 1)


def test_log_rank_of_four_patients_by_hand():
    # Classes a: deaths at 1 and 3; b: deaths at 2 and 4. Expected deaths in a: 1/2 + 1/3 + 1/2 + 0 = 4/3;
    # variance: 1/4 + 2/9 + 1/4 + 0 = 13/18; chi2 = (2 - 4/3)^2 / (13/18) = 8/13.
    test, _ = log_rank(np.array([1.0, 3, 2, 4]), np.ones(4, dtype=bool), np.array([0, 0, 1, 1]))
    assert test.chi2 == pytest.approx(8 / 13)
    assert test.p == pytest.approx(chi2_distribution.sf(8 / 13, 1))


def reference_log_rank(time, died, codes):
    """Mantel's statistic for two classes, death time by death time."""
    excess = variance = 0.0
    for t in np.unique(time[died]):
        at_risk = time >= t
        n, n1 = at_risk.sum(), (at_risk & (codes == 1)).sum()
        d = (died & (time == t)).sum()
        excess += (died & (time == t) & (codes == 1)).sum() - d * n1 / n
        if n > 1:
            variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1)
    return excess**2 / variance if variance > 0 else None


patients = st.lists(
    st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 1)), min_size=1, max_size=14
)  # few times, so that ties abound


@settings(deadline=None, max_examples=60)
@given(rows=patients)
def test_log_rank_agrees_with_mantels_sum_or_says_why_not(rows):
    time, died, codes = (np.array(column) for column in zip(*rows, strict=True))
    test, reason = log_rank(time.astype(float), died, codes)
    expected = reference_log_rank(time, died, codes) if len(set(codes)) > 1 else None
    if expected is None:
        assert test is None
        assert reason in ("one class only", "nobody died", "no death while more than one class was followed")
    else:
        assert test.chi2 == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(rows=patients)
def test_a_curve_only_falls_and_accounts_for_everybody(rows):
    time, died, _ = (np.array(column) for column in zip(*rows, strict=True))
    curve = make_arm("all", time.astype(float), died, ticks=()).curve
    survival = np.array([1.0, *curve.survival])
    assert (np.diff(survival) <= 1e-12).all()
    assert survival[-1] >= -1e-12
    assert sum(curve.died) == died.sum()
    assert sum(curve.died) + sum(curve.censored) == len(rows)


def test_a_class_gone_before_the_first_death_costs_no_degree_of_freedom():
    time, died = np.array([1.0, 2, 5, 6, 7]), np.array([0, 0, 1, 1, 1], dtype=bool)
    three, _ = log_rank(time, died, np.array([0, 0, 1, 2, 1]))
    two, _ = log_rank(time[2:], died[2:], np.array([1, 2, 1]))
    assert three == two
    assert three.degrees == 1


def test_three_classes_have_two_degrees_of_freedom():
    time, died, codes = both_arms()
    test, _ = log_rank(time, died, np.where(np.arange(42) % 3 == 0, 2, codes))
    assert test.degrees == 2


def test_nobody_dying_gives_a_flat_curve_and_no_test():
    time, died = np.array([1.0, 2, 3]), np.zeros(3, dtype=bool)
    arm = make_arm("all", time, died, ticks=(0,))
    assert (arm.median, arm.median_low, arm.median_high) == (None, None, None)
    assert set(arm.curve.survival) == {1.0}
    assert log_rank(time, died, np.array([0, 1, 1])) == (None, "nobody died")


def test_follow_up_of_zero_days_is_a_curve_too():
    arm = make_arm("all", np.zeros(2), np.array([True, False]), ticks=(0,))
    assert (arm.curve.time, arm.curve.survival, arm.median) == ((0,), (0.5,), 0)


@pytest.mark.parametrize(
    ("longest", "months_per_unit", "expected"),
    [
        (200, 1.0, (0, 36, 72, 108, 144, 180)),
        (20, 1.0, (0, 3, 6, 9, 12, 15, 18)),
        (4, 12.0, (0, 1, 2, 3, 4)),
        (70, None, (0, 10, 20, 30, 40, 50, 60, 70)),
        (0.7, None, (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
        (0, 1.0, (0,)),
    ],
)
def test_numbers_at_risk_are_counted_at_round_times(longest, months_per_unit, expected):
    ticks = risk_ticks(longest, months_per_unit)
    assert ticks == pytest.approx(expected)


@given(longest=st.floats(1e-3, 1e6), months=st.sampled_from([1.0, 1 / 30.4375, 12.0, None]))
def test_ticks_are_few_and_inside_the_follow_up(longest, months):
    ticks = risk_ticks(longest, months)
    assert 1 <= len(ticks) <= 9
    assert max(ticks) <= longest * (1 + 1e-9)
