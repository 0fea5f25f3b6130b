import errno
import json
import os

import numpy as np
import pytest

from fedglioma.case import GENES, Gene
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.tables import Evaluation, evaluate


def predictions(n, *, atrx_known=True):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (n, len(GENES)))
    labels[:, 2] *= labels[:, 0]  # a codeleted tumour is IDH-mutant
    scores = 0.45 * labels + 0.55 * generator.random(labels.shape)
    if not atrx_known:
        labels[:, 1] = -1
    return Predictions(
        labels=labels,
        probabilities=scores,
        sites=tuple("henan" if i % 3 else "ningxia" for i in range(n)),
        modalities=tuple("flair+t1ce+t1+t2" if i % 2 else "flair" for i in range(n)),
        split=tuple("report" if i % 5 else "selection" for i in range(n)),
        patients=np.arange(n),
    )


def test_tables_hold_the_cases_of_their_split_in_every_grouping():
    table = evaluate(predictions(50), split="report", synthetic=True)
    assert table.n_cases == 40
    assert sum(site[Gene.IDH].n for site in table.by_site.values()) == 40
    assert sum(subset[Gene.IDH].n for subset in table.by_modalities.values()) == 40
    assert list(table.by_site) == ["henan", "ningxia"]
    assert sum(sum(row.values()) for row in table.who.counts.values()) == 40


def test_a_large_evaluation_needs_no_caution():
    table = evaluate(predictions(400), split="report", synthetic=False)
    assert (table.reliable, table.caution) == (True, None)


def test_a_small_evaluation_says_that_it_means_nothing():
    table = evaluate(predictions(15, atrx_known=False), split="report", synthetic=False)
    assert not table.reliable
    assert table.caution.startswith("Too few patients to judge the model (IDH: 12 patients")
    assert "ATRX" not in table.caution


def test_a_marker_that_nobody_measured_does_not_discredit_the_others():
    table = evaluate(predictions(400, atrx_known=False), split="report", synthetic=False)
    assert table.reliable
    assert table.overall[Gene.ATRX].caution == "no patient has a known status"


def test_an_empty_split_gives_empty_tables_and_says_so():
    table = evaluate(predictions(10), split="train", synthetic=False)
    assert table.caution == "No case was held out, so nothing was measured."
    assert table.by_site == {}


def test_metrics_file_is_strict_json_and_comes_back_equal(tmp_path):
    path = tmp_path / "metrics.json"
    table = evaluate(predictions(12), split="report", synthetic=True)
    table.write(path)

    def refuse(constant):
        raise AssertionError(constant)

    plain = json.loads(path.read_text(), parse_constant=refuse)
    assert set(plain["overall"]) == {"idh", "atrx", "codel_1p19q"}
    assert Evaluation.model_validate_json(path.read_text()) == table


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_file_that_does_not_get_onto_the_disk_gets_no_name(name, tmp_path, monkeypatch):
    found = predictions(6)
    table = evaluate(found, split="report", synthetic=True)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (table.write if name == "metrics.json" else found.write_csv)(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_tables():
    assert evaluate(predictions(30), split="report", synthetic=True) == evaluate(
        predictions(30), split="report", synthetic=True
    )
