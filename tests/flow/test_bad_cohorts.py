"""Every kind of bad cohort ends in a finding or in an error of one line, and costs no other patient."""

import os
from pathlib import Path

import pytest

from fedglioma.case import Finding
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import Cohort, merge_cohorts, read_cohort
from fedglioma.data.prepare import Prepared, PrepareSettings, prepare_cases
from fedglioma.errors import FedGliomaError
from tests.bad_cohorts import BAD_COHORTS, BadCohort, write_cohort

SETTINGS = PrepareSettings(spacing_mm=8.0, correct_bias=False)


def _run(bad: BadCohort, root: Path) -> tuple[Cohort, Prepared]:
    write_cohort(root / "cohort")
    bad.breaks(root / "cohort")
    merged = merge_cohorts([read_cohort(root / name, layout=bad.layout) for name in bad.cohorts])
    return merged, prepare_cases(merged.cases, SETTINGS, Cache(root / "cache"))


def test_the_cohort_that_is_broken_here_is_whole_before(tmp_path: Path) -> None:
    merged, prepared = _run(BadCohort("whole", lambda _: None, "fine"), tmp_path)
    assert not (*merged.exclusions, *merged.warnings, *prepared.exclusions, *prepared.warnings)
    assert [done.case.patient for done in prepared.cases] == ["P1", "P2", "P3"]


def test_the_table_has_every_kind_once() -> None:
    names = [bad.name for bad in BAD_COHORTS]
    assert len(names) == len(set(names)) >= 20


@pytest.mark.parametrize("bad", BAD_COHORTS, ids=lambda bad: bad.name)
def test_bad_cohort_ends_as_expected(bad: BadCohort, tmp_path: Path) -> None:
    if not bad.holds_for_root and os.geteuid() == 0:
        pytest.skip("root may read what permissions forbid")
    how, what = bad.expected.split(":")
    if how == "exit":
        with pytest.raises(FedGliomaError) as raised:
            _run(bad, tmp_path)
        assert raised.value.exit_code == int(what)
        assert "\n" not in str(raised.value)
        return
    merged, prepared = _run(bad, tmp_path)
    exclusions = (*merged.exclusions, *prepared.exclusions)
    warnings = (*merged.warnings, *prepared.warnings)
    wanted, others = (exclusions, warnings) if how == "excluded" else (warnings, exclusions)
    assert [(finding.patient, finding.code) for finding in wanted] == [(bad.patient, what)]
    assert not others
    assert all(_is_one_plain_line(finding, tmp_path) for finding in wanted)
    assert len(prepared.cases) == bad.usable


def _is_one_plain_line(finding: Finding, root: Path) -> bool:
    return bool(finding.message) and "\n" not in finding.message and str(root) not in finding.message
