"""What a study writes of few patients."""

import csv
import json
from itertools import product
from pathlib import Path

import pytest

from fedglioma.counts import DASH
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.criterion import Criterion
from fedglioma.metrics.paired import Comparison
from fedglioma_server.records import write_json
from fedglioma_server.study_report import csv_text, markdown, summary_text, write_study_report
from fedglioma_server.study_small_cells import passed_on
from fedglioma_server.study_table import RESULTS, Entry, Gain, Line, StudyResult


def entry(cases: int, *, compared: bool = False) -> Entry:
    value = Measure(value=1.0, reason=f"no exception among {cases} patients: every resample gives the same")
    comparison = Comparison(
        measure=Criterion.ACCURACY,
        a="federated",
        b="local",
        value_a=value,
        value_b=value,
        difference=value,
        p=1.0,
        test="swap",
        n_patients=cases,
        folds=1,
        undefined_folds=0,
        seeds=1,
    )
    if 0 < cases < 5:
        return Entry(value=Measure(value=None, reason="fewer than 5 patients"), cases=cases)
    return Entry(value=value, comparison=comparison if compared else None, p_adjusted=None, cases=cases)


def result(sites: tuple[int, ...]) -> StudyResult:
    numbers = {"all": sum(sites)} | {f"site{'abc'[i]}": n for i, n in enumerate(sites)}
    return StudyResult(
        title="t",
        size="full",
        created="2026-01-01T00:00:00+00:00",
        synthetic=False,
        cohorts=[],
        patients=sum(sites),
        sites=list(numbers)[1:],
        divisions="kfold",
        folds=6,
        seeds=6,
        runs=6,
        reference=("A", "federated"),
        measures=["idh.accuracy"],
        lines=[Line(arm="A", protocol="federated", entries={"idh.accuracy": entry(sum(sites))})],
        gains=[
            Gain(
                site=site,
                arm="A",
                measure="idh.accuracy",
                lines={"federated": entry(n, compared=True), "local": entry(n)},
            )
            for site, n in numbers.items()
        ],
    )


def written(found: StudyResult) -> dict[str, int | str]:
    return {gain.site: gain.lines["federated"].cases for gain in found.gains}


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        ((7, 9, 12), {"all": 28, "sitea": 7, "siteb": 9, "sitec": 12}),
        ((3, 9, 12), {"all": 24, "sitea": "<5", "siteb": "≥5", "sitec": "≥5"}),
        ((1, 2, 4), {"all": 7, "sitea": "<5", "siteb": "<5", "sitec": "<5"}),
        ((4, 4, 4), {"all": 12, "sitea": DASH, "siteb": DASH, "sitec": DASH}),
        ((1, 0, 2), {"all": "<5", "sitea": "<5", "siteb": "<5", "sitec": "<5"}),
    ],
)
def test_hospitals_with_few_are_told_by_the_side_of_the_limit(
    sites: tuple[int, ...], told: dict[str, int | str]
) -> None:
    assert written(passed_on(result(sites))) == told


def could_be(told: dict[str, int | str], most: int) -> list[tuple[int, ...]]:
    """Every table of cells that what was written allows, by brute force."""

    def fits(cell: int, shown: int | str) -> bool:
        return {"<5": cell < 5, "≥5": cell >= 5, DASH: True}.get(str(shown), cell == shown)

    cells = [shown for site, shown in told.items() if site != "all"]
    return [
        guess
        for guess in product(range(most + 1), repeat=len(cells))
        if sum(guess) == told["all"]
        and all(fits(cell, shown) for cell, shown in zip(guess, cells, strict=True))
    ]


@pytest.mark.parametrize("sites", [(3, 9), (4, 12), (1, 8), (4, 5), (1, 2, 14), (4, 4, 4), (1, 5, 5)])
def test_no_number_from_one_to_four_is_written_and_none_follows_from_the_sum(sites: tuple[int, ...]) -> None:
    found = passed_on(result(sites))
    text = found.model_dump_json()
    assert not any(f'"cases":{n},' in text or f'"cases":{n}}}' in text for n in range(1, 5))
    tables = could_be(written(found), sum(sites))
    for place, cell in enumerate(sites):
        if cell < 5:
            assert len({table[place] for table in tables}) > 1
    hospitals = json.dumps([json.loads(g.model_dump_json()) for g in found.gains if g.site != "all"])
    for n in sites:
        assert f"among {n} patients" not in hospitals
        assert f'"n_patients": {n}' not in hospitals


def test_what_is_told_stays_as_it_is_when_it_is_told_again() -> None:
    for sites in ((7, 9, 12), (3, 9, 12), (4, 4, 4), (1, 0, 2)):
        once = passed_on(result(sites))
        assert passed_on(once) == once
        assert StudyResult.model_validate_json(once.model_dump_json()) == once


def test_numbers_of_an_older_result_are_kept_back_when_its_report_is_written_again(tmp_path: Path) -> None:
    write_json(tmp_path / RESULTS, result((3, 9, 12)))
    page = write_study_report(tmp_path).read_text()
    assert "&lt;5" in page
    table = (tmp_path / "table.md").read_text()
    assert "| sitea | <5 |" in table
    assert "| siteb | ≥5 |" in table
    assert "| all | 24 |" in table


def test_study_of_few_says_so_in_every_form() -> None:
    few = passed_on(result((1, 2)))
    assert "<5 patients" in summary_text(few)
    assert "Patients reported: <5" in markdown(few)
    (line,) = csv.DictReader(csv_text(few).splitlines())
    assert line["cases"] == "<5"
