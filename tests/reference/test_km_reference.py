"""Log-rank statistics and medians of the TCGA gliomas, as computed once with lifelines 0.30 directly.

The table is Ceccarelli et al. (2016), Cell 164(3), 550-563, with the survival of Liu et al. (2018), Cell
173(2), 400-416. It is read through the whole path here: guessed columns, words for classes, groups.
"""

import csv
import os
from pathlib import Path

import pytest

from fedglioma.errors import ConfigError
from fedglioma.survival.analysis import analyse
from fedglioma.survival.table import read_table
from fedglioma_server.survival_report import p_text

REAL_DATA = os.environ.get("FEDGLIOMA_REAL_DATA")
pytestmark = pytest.mark.skipif(
    not REAL_DATA, reason="FEDGLIOMA_REAL_DATA is unset: the clinical table of real patients is not there"
)
TIMES = {"Ceccarelli 2016 (months)": "os_months_2016", "TCGA-CDR OS (days)": "os_days_cdr"}
GROUPS = {"LGG": "lower-grade", "GBM": "glioblastoma", "mixed": "mixed"}

# As the data's README prints them: (months of the 2016 table, days of TCGA-CDR).
PRINTED = {
    ("idh", "LGG"): ("9.0e-21", "4.5e-31"),
    ("idh", "GBM"): ("2.2e-06", "8.4e-07"),
    ("idh", "mixed"): ("2.9e-70", "3.0e-96"),
    ("atrx", "LGG"): ("0.24", "0.063"),
    ("atrx", "GBM"): ("0.0086", "0.0013"),
    ("atrx", "mixed"): ("5.9e-12", "5.5e-15"),
}


@pytest.fixture(scope="module")
def clinical():
    return Path(REAL_DATA) / "clinical"


@pytest.fixture(scope="module")
def comparisons(clinical):
    found = {}
    for time in TIMES.values():
        results = analyse(read_table(clinical / "tcga_glioma_clinical.csv", time=time))
        found |= {(time, c.marker, c.group.value): c for c in results.comparisons}
    return found


def same(value, printed):
    """Whether a number agrees with a printed one to all the digits that were printed."""
    return float(f"{value:.{len(printed.split('e')[0].replace('.', '').lstrip('0'))}g}") == float(printed)


def test_all_twelve_reference_rows_are_reproduced_to_their_digits(clinical, comparisons):
    with (clinical / "km_reference.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    for row in rows:
        found = comparisons[TIMES[row["survival"]], row["marker"], GROUPS[row["cohort"]]]
        wildtype, mutant = found.arms
        place = f"{row['survival']} {row['marker']} {row['cohort']}"
        assert (found.n, found.events) == (int(row["n"]), int(row["events"])), place
        assert (mutant.n, wildtype.n) == (int(row["n_mutant"]), int(row["n_wildtype"])), place
        assert round(found.log_rank.chi2, 3) == float(row["chi2"]), place
        assert same(found.log_rank.p, row["p"]), place
        assert mutant.median == float(row["median_mutant"]), place
        assert wildtype.median == float(row["median_wildtype"]), place


def test_p_values_print_as_the_readme_of_the_data_prints_them(comparisons):
    for (marker, cohort), printed in PRINTED.items():
        for time, text in zip(TIMES.values(), printed, strict=True):
            assert p_text(comparisons[time, marker, GROUPS[cohort]].log_rank.p) == text


def test_the_table_has_two_survival_times_and_neither_is_guessed(clinical):
    with pytest.raises(ConfigError, match=r"--time os_months_2016 .* or --time os_days_cdr"):
        read_table(clinical / "tcga_glioma_clinical.csv")


@pytest.mark.parametrize(("cohort", "patients"), [("lgg_hospitals_nc", 40), ("glioma", 8)])
def test_a_cohort_folder_is_analysed_without_naming_a_column(cohort, patients):
    results = analyse(read_table(Path(REAL_DATA) / cohort))
    assert results.n == patients
    assert all(comparison.caution for comparison in results.comparisons)
