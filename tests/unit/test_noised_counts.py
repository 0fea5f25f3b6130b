"""Counts with noise: each patient once, the sensitivity exact, the noise what the definition asks for."""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import CHANNELS, GENES, Case, Gene, Genotype, Modality, Task
from fedglioma.counts import count_cases, estimate
from fedglioma.errors import PrivacyError
from fedglioma.noise import delta_of
from fedglioma.privacy.noised_counts import (
    CELLS,
    SENSITIVITY,
    SUBSETS,
    cells_of,
    noised_counts,
    one_scan_each,
    published,
    with_noise,
)
from fedglioma.wire import StatisticsReply
from fedglioma_server.replies import believed

SECRET = bytes(range(32))
TERMS = {"epsilon": 1.0, "delta": 1e-5, "key": SECRET}


def case(number: int, labels=(-1, -1, -1), present=CHANNELS, *, mask: bool = False, scan: int = 1) -> Case:
    idh, atrx, codel = labels
    return Case(
        patient=f"p{number:04}",
        site="ningxia",
        volumes={m: Path(f"p{number}-{scan}-{m}.nii.gz") for m in present},
        mask=Path(f"p{number}-{scan}-seg.nii.gz") if mask else None,
        genotype=Genotype(idh=idh, atrx=atrx, codel_1p19q=codel),
    )


labels = st.tuples(*[st.sampled_from([-1, 0, 1])] * 3)
scans = st.builds(
    lambda number, found, present, mask, scan: case(number, found, tuple(present), mask=mask, scan=scan),
    st.integers(0, 30),
    labels,
    st.sets(st.sampled_from(CHANNELS)),
    st.booleans(),
    st.integers(1, 3),
)


@settings(deadline=None, max_examples=60)
@given(cases=st.lists(scans, max_size=25), seed=st.randoms())
def test_one_patient_moves_all_cells_together_by_no_more_than_the_sensitivity(cases, seed) -> None:
    whole = cells_of(cases)
    for patient in {found.patient for found in cases}:
        without = cells_of([found for found in cases if found.patient != patient])
        assert np.linalg.norm(whole - without) <= SENSITIVITY + 1e-12
        assert np.abs(whole - without).max() <= 1
    shuffled = list(cases)
    seed.shuffle(shuffled)
    np.testing.assert_array_equal(cells_of(shuffled), whole)


def test_a_patient_with_everything_reaches_the_sensitivity() -> None:
    full = case(1, (1, 0, 1), mask=True)
    assert np.linalg.norm(cells_of([full]) - cells_of([])) == pytest.approx(sqrt(7))
    assert pytest.approx(sqrt(7)) == SENSITIVITY


def test_every_patient_counts_once_and_always_by_the_same_scan() -> None:
    early, late = case(1, (1, 0, 1), scan=1), case(1, (1, 0, 1), (Modality.T2,), mask=True, scan=2)
    assert one_scan_each([late, early]) == one_scan_each([early, late, early])
    assert len(one_scan_each([early, late, case(2)])) == 2
    assert cells_of([early, late])[0] == 1


def test_cells_without_noise_are_the_counts_that_are_published_anyway() -> None:
    cases = [
        *(case(n, (1, 0, n % 2), mask=n < 6) for n in range(12)),
        *(case(n, (0, -1, -1), (Modality.T1,)) for n in range(12, 40)),
    ]
    exact, plain = published(cells_of(cases).astype(float), 5), count_cases(cases, 5)
    assert exact == plain
    only = published(cells_of(cases, (Task.SEGMENTATION,)).astype(float), 1)
    assert only.weights["trunk"] == 6.0


def test_noise_is_as_much_as_the_definition_of_privacy_asks_for() -> None:
    told = noised_counts([case(1)], 5, **TERMS)
    assert delta_of(told.sigma, 1.0, sqrt(7)) <= 1e-5 * (1 + 1e-9)
    assert delta_of(told.sigma * 0.999, 1.0, sqrt(7)) > 1e-5
    assert told.noise_multiplier == pytest.approx(told.sigma / sqrt(7))
    pld = privacy_loss_distribution.from_gaussian_mechanism(told.noise_multiplier)
    assert pld.get_epsilon_for_delta(1e-5) == pytest.approx(1.0, rel=1e-2)


def test_noised_cells_are_right_on_average_and_spread_as_the_closed_form_says() -> None:
    cells = cells_of([case(n, (n % 2, -1, 0), mask=n % 3 == 0) for n in range(40)])
    sigma, draws = 4.0, 3000
    drawn = np.array([with_noise(cells, sigma, n.to_bytes(32, "big")) for n in range(draws)])
    sums = np.zeros((4, CELLS))
    sums[:, 0] = -1
    for row, (first, after) in enumerate(((2, 5), (5, 8), (8, 11), (11, 27))):
        sums[row, first:after] = 1
    kept = np.eye(CELLS) - np.linalg.pinv(sums) @ sums
    spread = sigma * np.sqrt(np.diag(kept))
    assert (np.abs(drawn.mean(axis=0) - cells) < 5 * spread / sqrt(draws)).all()
    assert np.abs(drawn.std(axis=0) / spread - 1).max() < 5 / sqrt(2 * draws)
    # four ways to the number of patients: itself, the labels of three genes, the sequences
    assert spread[0] ** 2 == pytest.approx(sigma**2 / (1 + 3 / 3 + 1 / 16))
    assert np.abs(drawn @ sums.T).max() < 1e-9


def test_noise_follows_from_its_key_and_not_from_the_patients() -> None:
    """Else an answer that stays the same would say that nobody came or went."""
    cases = [case(n, (n % 2, 0, 1)) for n in range(60)]
    one, other = cells_of(cases), cells_of(cases[:-1])
    key = bytes(range(32))
    sums = with_noise(one, 5.0, key) - with_noise(other, 5.0, key)
    assert sums == pytest.approx(one - other, abs=1e-9)
    assert not np.intersect1d(with_noise(one, 5.0, key), with_noise(one, 5.0, key[::-1])).size


@settings(deadline=None, max_examples=60)
@given(
    cases=st.lists(scans, max_size=20),
    limit=st.integers(1, 10),
    epsilon=st.floats(0.05, 20),
    key=st.binary(min_size=32, max_size=32),
)
def test_whatever_noise_does_the_server_believes_the_answer(cases, limit, epsilon, key) -> None:
    counts = noised_counts(cases, limit, epsilon=epsilon, delta=1e-5, key=key).counts
    assert counts.cases % limit == 0
    assert counts.cases >= limit
    cells = [cell for gene in GENES for cell in counts.labels[gene]]
    for cell in (*cells, counts.masks, *counts.modalities.values()):
        assert cell is None or (cell % limit == 0 and 0 <= cell <= counts.cases)
    assert counts.weights["idh"] == sum(estimate(c, limit) for c in counts.labels[Gene.IDH][:2])
    reply = StatisticsReply(
        site="ningxia",
        version="0",
        layout="x",
        cases=counts.cases,
        labels=counts.labels,
        modalities=counts.modalities,
        masks=counts.masks,
        weights=counts.weights,
        small_cell_limit=limit,
    )
    assert believed(reply).weights == counts.weights
    assert 1 <= counts.weights["trunk"] <= counts.cases


def test_every_set_of_sequences_is_noised_also_one_that_nobody_has() -> None:
    cases = [case(n, (1, 1, 1)) for n in range(40)]
    assert len(SUBSETS) == 16
    seen: set[str] = set()
    for n in range(30):
        seen |= set(noised_counts(cases, 1, **TERMS | {"key": n.to_bytes(32, "big")}).counts.modalities)
    assert seen == set(SUBSETS)


@pytest.mark.parametrize(
    "terms", [{"epsilon": 0.0}, {"epsilon": float("nan")}, {"delta": 1.0}, {"delta": 0.0}]
)
def test_terms_that_promise_nothing_are_refused(terms) -> None:
    with pytest.raises(PrivacyError, match="noised counts: epsilon"):
        noised_counts([], 5, **TERMS | terms)


def test_a_limit_below_one_and_a_short_key_are_refused() -> None:
    with pytest.raises(PrivacyError, match="limit 0 at least 1"):
        noised_counts([], 0, **TERMS)
    with pytest.raises(PrivacyError, match="at least 32"):
        noised_counts([], 5, **TERMS | {"key": b"short"})
