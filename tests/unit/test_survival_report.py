import csv
from dataclasses import replace

import numpy as np
import pytest

from fedglioma.survival.analysis import SurvivalResults, analyse
from fedglioma.survival.columns import Columns, TimeUnit
from fedglioma.survival.markers import Marker
from fedglioma.survival.table import LeftOut, SurvivalTable
from fedglioma.survival.values import Group
from fedglioma_server.survival_report import p_text, survival_text, write_survival

CODES = np.repeat([0, 1], 20)
TABLE = SurvivalTable(
    source="clinical.csv",
    rows=43,
    columns=Columns(time="os_days", event="os_event", groups=("idh",)),
    unit=TimeUnit.DAYS,
    time=np.concatenate([np.arange(1, 21) * 30.4375, np.arange(1, 21) * 91.3125]),
    died=np.arange(40) % 4 != 0,
    markers=(Marker("idh", "IDH", ("wild-type", "mutant"), CODES),),
    groups=(Group.LOWER_GRADE,) * 40,
    age=None,
    left_out=(LeftOut(reason="os_days missing", rows=3, lines=(4, 9, 12)),),
)


@pytest.fixture(scope="module")
def results():
    return analyse(TABLE)


def test_the_folder_holds_results_that_read_back_equal(results, tmp_path):
    paths = write_survival(results, tmp_path / "survival")
    assert [p.name for p in paths] == ["results.json", "curves.csv"]
    assert sorted(p.name for p in (tmp_path / "survival").iterdir()) == ["curves.csv", "results.json"]
    assert SurvivalResults.model_validate_json(paths[0].read_text()) == results


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_curves_have_a_row_per_step_in_the_tables_unit_and_in_months(results, tmp_path):
    _, path = write_survival(results, tmp_path)
    rows = read(path)
    assert len(rows) == 40
    assert (rows[0]["group"], rows[0]["marker"], rows[0]["class"]) == ("lower-grade", "idh", "wild-type")
    assert (rows[1]["time"], rows[1]["months"], rows[1]["at_risk"]) == ("60.875", "2", "19")
    unknown = analyse(replace(TABLE, unit=TimeUnit.UNKNOWN))
    _, path = write_survival(unknown, tmp_path)
    assert {row["months"] for row in read(path)} == {""}


def test_figures_are_drawn_where_asked(results, tmp_path):
    *_, figure = write_survival(results, tmp_path, draw=True)
    assert figure.name == "km-lower-grade-idh.svg"
    assert "SYNTHETIC" not in figure.read_text()
    *_, figure = write_survival(analyse(TABLE, synthetic=True), tmp_path, draw=True)
    assert "SYNTHETIC DATA" in figure.read_text()


def test_the_text_shows_patients_medians_test_ratio_and_numbers_at_risk(results):
    lines = survival_text(results).splitlines()
    assert lines[0] == "clinical.csv: 40 of 43 patients, 30 of whom died; time os_days (days), event os_event"
    wild, mutant = (next(line for line in lines if word in line) for word in ("wild-type", "mutant"))
    assert wild.split()[:5] == ["lower-grade", "IDH", "wild-type", "20", "15"]
    assert mutant.split()[:3] == ["mutant", "20", "15"]
    median = results.comparisons[0].arms[1].median * 12 / 365.25
    assert f"{median:.1f} (" in mutant
    assert p_text(results.comparisons[0].log_rank.p) in mutant
    assert "at risk, lower-grade, after months" in lines
    assert "left out: 3 (os_days missing; lines 4, 9, 12)" in lines


def test_columns_of_the_text_are_aligned(results):
    lines = survival_text(results).splitlines()
    header = next(line for line in lines if line.startswith("group"))
    rows = lines[lines.index(header) + 1 : lines.index(header) + 3]
    place = header.index("hazard ratio")
    assert all(line[place - 2 : place] == "  " and line[place] != " " for line in rows)
    assert not any(line.endswith(" ") for line in lines)


def test_synthetic_patients_are_announced_first():
    assert survival_text(analyse(TABLE, synthetic=True)).startswith("SYNTHETIC DATA")


def test_cautions_are_gathered_in_one_line():
    few = analyse(replace(TABLE, died=np.arange(40) < 3))
    text = survival_text(few)
    assert "caution, too few deaths or patients to conclude anything: lower-grade IDH\n" in text
    assert "no hazard ratio: lower-grade IDH (nobody with IDH mutant died" in text


@pytest.mark.parametrize(
    ("p", "expected"),
    [(4.46e-31, "4.5e-31"), (9.0e-21, "9.0e-21"), (0.0086, "0.0086"), (0.24, "0.24"), (0.3, "0.30"),
     (1, "1.0"), (0.0, "<1e-300")],
)  # fmt: skip
def test_p_values_have_two_significant_digits(p, expected):
    assert p_text(p) == expected
