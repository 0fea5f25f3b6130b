from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import GENES, Case, Gene, Genotype, Modality
from fedglioma.counts import count_cases, estimate, global_counts, round_up, suppress


def case(number, idh=-1, atrx=-1, codel=-1):
    return Case(
        patient=f"p{number}",
        site="ningxia",
        volumes={Modality.T1: Path("t1.nii.gz")},
        genotype=Genotype(idh=idh, atrx=atrx, codel_1p19q=codel),
    )


def test_small_cells_are_suppressed_and_empty_ones_are_not():
    assert [suppress(n, 5) for n in (0, 1, 4)] == [0, None, None]


def test_larger_cells_are_rounded_so_that_they_do_not_add_up_to_the_exact_total():
    assert [suppress(n, 5) for n in (5, 7, 8, 12, 13)] == [5, 5, 10, 10, 15]


def test_a_limit_of_one_suppresses_nothing():
    assert [suppress(n, 1) for n in range(4)] == [0, 1, 2, 3]


def test_totals_are_rounded_up():
    assert [round_up(n, 5) for n in (0, 1, 5, 6)] == [0, 5, 5, 10]


def test_suppressed_cell_is_taken_as_the_middle():
    assert estimate(None, 5) == 2.5
    assert estimate(7, 5) == 7.0


labels = st.sampled_from([-1, 0, 1])


@given(rows=st.lists(st.tuples(labels, labels, labels), max_size=40), limit=st.integers(2, 10))
@settings(deadline=None, max_examples=80)
def test_nothing_published_gives_a_small_cell_away(rows, limit):
    counts = count_cases([case(i, *row) for i, row in enumerate(rows)], limit)
    for index, gene in enumerate(GENES):
        true = Counter(row[index] for row in rows)
        published = counts.labels[gene]
        for cell, label in zip(published, (0, 1, -1), strict=True):
            assert cell is None or (cell == 0) == (true[label] == 0)
            assert (cell is None) == (0 < true[label] < limit)
            assert cell is None or (cell % limit == 0 and abs(cell - true[label]) <= limit / 2)
        assert counts.weights[gene.value] == sum(estimate(cell, limit) for cell in published[:2])


def test_suppressed_cell_does_not_follow_from_another_genes_cells():
    """15 wild-type and 8 mutant would give 23 cases, and then 22 intact the one codeleted case."""
    cases = [case(i, idh=int(i >= 15), codel=int(i == 0)) for i in range(23)]
    counts = count_cases(cases, 5)
    assert counts.labels[Gene.IDH] == (15, 10, 0)
    assert counts.labels[Gene.CODEL] == (20, None, 0)
    assert counts.cases == 25


@given(rows=st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_without_suppression_weights_are_the_labelled_cases(rows):
    counts = count_cases([case(i, *row) for i, row in enumerate(rows)], 1)
    assert counts.weights["trunk"] == sum(any(label >= 0 for label in row) for row in rows)
    for index, gene in enumerate(GENES):
        assert counts.weights[gene.value] == sum(row[index] >= 0 for row in rows)


def test_global_counts_are_sums_over_sites():
    one = count_cases([case(i, idh=1) for i in range(6)] + [case(9, idh=0)], 5)
    two = count_cases([case(i, idh=0) for i in range(7)], 5)
    total = global_counts([(one.labels, 5), (two.labels, 5)])
    assert total[Gene.IDH] == (2.5 + 5, 5.0)
    assert total[Gene.ATRX] == (0.0, 0.0)
