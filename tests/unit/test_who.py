import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import DataError
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.who import WHO_TITLES, WhoClass, who_class, who_table

label = st.sampled_from([-1, 0, 1])


@pytest.mark.parametrize(
    ("idh", "atrx", "codel", "expected"),
    [
        (1, 0, 1, "oligodendroglioma"),
        (1, -1, 1, "oligodendroglioma"),
        (1, 1, 0, "astrocytoma"),
        (1, 0, 0, "astrocytoma"),
        (1, 1, -1, "astrocytoma"),
        (0, 0, 0, "idh-wildtype"),
        (0, 1, 0, "idh-wildtype"),
        (0, -1, -1, "idh-wildtype"),
        (0, 0, 1, "contradictory"),
        (1, 1, 1, "contradictory"),
        (-1, 1, 1, "contradictory"),
        (1, 0, -1, "undetermined"),
        (1, -1, -1, "undetermined"),
        (-1, 0, 1, "undetermined"),
        (-1, -1, -1, "undetermined"),
    ],
)
def test_three_markers_give_the_class(idh, atrx, codel, expected):
    assert who_class(idh, atrx, codel).value == expected


@settings(max_examples=27)
@given(idh=label, atrx=label, codel=label)
def test_learning_an_unknown_marker_never_moves_a_case_to_another_of_the_three_classes(idh, atrx, codel):
    before = who_class(idh, atrx, codel)
    if before in (WhoClass.UNDETERMINED, WhoClass.CONTRADICTORY):
        return
    learned = {
        who_class(i, a, c)
        for i in ((0, 1) if idh < 0 else (idh,))
        for a in ((0, 1) if atrx < 0 else (atrx,))
        for c in ((0, 1) if codel < 0 else (codel,))
    }
    assert learned <= {before, WhoClass.CONTRADICTORY}


def test_a_label_that_is_none_is_refused():
    with pytest.raises(DataError, match="atrx=2"):
        who_class(1, 2, 0)


def test_every_class_has_a_title():
    assert set(WHO_TITLES) == set(WhoClass)


def predictions(labels, probabilities):
    n = len(labels)
    return Predictions(
        labels=np.array(labels, dtype=np.int64).reshape(n, 3),
        probabilities=np.array(probabilities, dtype=np.float64).reshape(n, 3),
        sites=("henan",) * n,
        modalities=("none",) * n,
        split=("report",) * n,
        patients=np.arange(n),
    )


def test_the_table_counts_right_wrong_and_impossible_predictions():
    table = who_table(
        predictions(
            labels=[[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0], [-1, 0, 0]],
            probabilities=[
                [0.9, 0.1, 0.8],
                [0.9, 0.9, 0.9],
                [0.1, 0.1, 0.1],
                [0.9, 0.4, 0.2],
                [0.2, 0.1, 0.7],
            ],
        )
    )
    assert table.counts[WhoClass.OLIGODENDROGLIOMA][WhoClass.OLIGODENDROGLIOMA] == 1
    assert table.counts[WhoClass.ASTROCYTOMA][WhoClass.CONTRADICTORY] == 1
    assert table.counts[WhoClass.IDH_WILDTYPE][WhoClass.ASTROCYTOMA] == 1
    assert table.counts[WhoClass.UNDETERMINED][WhoClass.CONTRADICTORY] == 1
    assert (table.compared, table.agreement.value, table.majority.value) == (4, 0.5, 0.5)
    assert (table.contradictory_labels, table.contradictory_predictions) == (0, 2)
    assert table.contradiction_rate == pytest.approx(0.4)


def test_an_empty_table_has_no_rate():
    table = who_table(predictions([], []))
    assert table.contradiction_rate is None
    assert table.agreement.value is None
