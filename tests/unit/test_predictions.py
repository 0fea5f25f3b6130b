import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import DataError, FedGliomaError
from fedglioma.metrics.predictions import COLUMNS, Predictions, read_csv


def predictions(known, probabilities, **changes):
    n = len(known)
    given = {
        "labels": np.array(known, dtype=np.int64).reshape(n, 3),
        "probabilities": np.array(probabilities, dtype=np.float64).reshape(n, 3),
        "sites": ("ningxia",) * n,
        "modalities": ("flair+t1ce",) * n,
        "split": ("report",) * n,
        "patients": np.arange(n),
    }
    return Predictions(**(given | changes))


def test_predictions_file_has_the_agreed_columns_and_no_patient(tmp_path):
    path = tmp_path / "predictions.csv"
    predictions([[1, -1, 0]], [[0.75, 0.5, 0.125]], patients=np.array([417])).write_csv(path)
    assert path.read_text() == (
        "case,site,modalities,split,idh,p_idh,atrx,p_atrx,codel_1p19q,p_codel_1p19q\n"
        "1,ningxia,flair+t1ce,report,1,0.75,,0.5,0,0.125\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3),
            st.lists(st.floats(0, 1), min_size=3, max_size=3),
        ),
        max_size=6,
    )
)
def test_predictions_survive_the_file_to_the_last_digit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("predictions") / "predictions.csv"
    before = predictions([r[0] for r in rows], [r[1] for r in rows])
    before.write_csv(path)
    after = read_csv(path)
    assert np.array_equal(after.labels, before.labels)
    assert np.array_equal(after.probabilities, before.probabilities)
    assert (after.sites, after.modalities, after.split) == (before.sites, before.modalities, before.split)


def test_predictions_of_a_diverged_network_are_refused_by_case_and_gene():
    with pytest.raises(FedGliomaError, match=r"case 2: p_atrx is nan.*learning rate"):
        predictions([[0, 0, 0], [1, 1, 0]], [[0.1, 0.2, 0.3], [0.1, np.nan, 0.3]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.full((1, 3), 2)}, "a label is not 0, 1"),
        ({"labels": np.zeros((1, 2), dtype=np.int64)}, "labels has shape"),
        ({"patients": np.arange(2)}, "2 patients"),
    ],
)
def test_predictions_refuse_what_does_not_fit_together(changes, words):
    with pytest.raises(FedGliomaError, match=words):
        predictions([[0, 0, 0]], [[0.1, 0.2, 0.3]], **changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns must be"),
        ("case,site\n1,a\n", "columns must be"),
        (",".join(COLUMNS) + "\n1,a,none,report,1\n", "line 2: 5 cells"),
        (",".join(COLUMNS) + "\n1,a,none,report,2,.5,0,.5,0,.5\n", "line 2: label '2'"),
        (",".join(COLUMNS) + "\n1,a,none,report,1,high,0,.5,0,.5\n", "line 2: 'high' is not a probability"),
        (",".join(COLUMNS) + "\n1,a,none,report,1,1.5,0,.5,0,.5\n", "line 2: '1.5' is not a probability"),
    ],
)
def test_a_broken_predictions_file_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_csv(path)


def test_an_absent_predictions_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"predictions\.csv: cannot be read"):
        read_csv(tmp_path / "predictions.csv")
