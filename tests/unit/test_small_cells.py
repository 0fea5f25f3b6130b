"""Small cells after the site: what is passed on has no number of few patients and no figure of them."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import GENES, Gene, Task
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SMALL_CELL_LIMIT
from fedglioma.counts import DASH, PASSED_ON, is_few, shown, shown_cells, without_few
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.genotype import GeneMetrics
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.small_cells import passed_on, told, who_cells, who_totals
from fedglioma.metrics.tables import Evaluation, evaluate
from fedglioma.survival import small_cells as survival_cells
from fedglioma.survival.analysis import SurvivalResults, analyse
from fedglioma.survival.table import read_table
from fedglioma.training.predict import Scores
from fedglioma_server import report_tables
from fedglioma_server.bundle_config import _figures
from fedglioma_server.card import card_text
from fedglioma_server.gauges import ServerGauges
from fedglioma_server.heldout import describe, measure
from fedglioma_server.privacy import privacy_record
from fedglioma_server.records import DataIssue, RoundRecord, SplitCount, write_json
from fedglioma_server.report_figures import roc_figures, round_figures
from fedglioma_server.report_headline import cards
from fedglioma_server.report_run import issues_table, rounds_table, sites_table
from fedglioma_server.report_survival import Analyses, survival_section
from fedglioma_server.run_result import run_result
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.survival_report import write_survival
from tests.release_fixture import CHOSEN, run_record


def held_out(groups: dict[str, tuple[int, int, int]], *, repeats: int = 1, outlined: int = 0) -> Evaluation:
    """Measure made-up answers; each site has so many negative, positive and unknown patients of all genes."""
    rng = np.random.default_rng(4)
    labels, sites = [], []
    for site, (negative, positive, unknown) in groups.items():
        for label, number in ((0, negative), (1, positive), (-1, unknown)):
            labels += [label] * number * repeats
            sites += [site] * number * repeats
    n = len(labels)
    tumours = rng.uniform(0.1, 0.9, size=(n, 4)) if outlined else None
    if tumours is not None:
        tumours[outlined:] = np.nan
    predictions = Predictions(
        labels=np.tile(np.array(labels)[:, None], (1, 3)).astype(np.int64),
        probabilities=rng.uniform(size=(n, 3)),
        sites=tuple(sites),
        modalities=("flair",) * n,
        split=("report",) * n,
        patients=np.arange(n) // repeats,
        tumours=tumours,
    )
    return evaluate(predictions, split="report", synthetic=True, resamples=20)


def measures_of(found: GeneMetrics) -> list[Measure]:
    """Return every figure of a marker, whichever there are."""
    return [value for _, value in found if isinstance(value, Measure)]


# Where it is decided


def test_what_is_few_is_decided_in_one_place_and_is_the_sites_usual_limit() -> None:
    assert PASSED_ON == SMALL_CELL_LIMIT == 5
    assert [is_few(n) for n in (0, 1, 4, 5)] == [False, True, True, False]
    assert [shown(n) for n in (0, 1, 4, 5, 1204)] == ["0", "<5", "<5", "5", "1,204"]


@pytest.mark.parametrize("cells", [2, 3])
def test_no_cell_that_is_few_follows_from_the_printed_ones_and_their_sum(cells) -> None:
    """Somebody who knows the rule and the sum lists every table that would be printed like this one."""
    top = 25
    alike: defaultdict[tuple[int, tuple[str, ...]], list[tuple[int, ...]]] = defaultdict(list)
    for table in product(range(top), repeat=cells):
        if PASSED_ON <= sum(table) < top:
            alike[sum(table), tuple(shown_cells(table))].append(table)
    for tables in alike.values():
        for place in range(cells):
            possible = {table[place] for table in tables}
            assert not (len(possible) == 1 and is_few(possible.pop()))


def test_a_table_without_a_few_cell_is_printed_as_it_is() -> None:
    assert shown_cells([0, 5, 1200]) == ["0", "5", "1,200"]
    assert shown_cells([3, 40]) == ["<5", "\N{GREATER-THAN OR EQUAL TO}5"]
    assert shown_cells([]) == []


def test_numbers_of_patients_in_a_sentence_are_coarsened_and_other_numbers_are_not() -> None:
    assert (
        without_few("12 patients with a known status, 3 in the rarer class")
        == "12 patients with a known status, <5 in the rarer class"
    )
    kept = "the AUC's interval is 0.4 wide; 1p/19q, IDH-mutant, grade 4 tumours, WHO 2021 and <5 patients"
    assert without_few(kept) == kept


# Held-out figures


def test_figures_of_few_patients_of_a_status_are_kept_back_with_the_reason() -> None:
    found = passed_on(held_out({"henan": (40, 3, 2)})).overall[Gene.IDH]
    assert (told(found).known, told(found).positive, told(found).negative) == ("43", DASH, DASH)
    for measure_ in measures_of(found):
        assert measure_.value is measure_.low is measure_.high is None
        assert measure_.reason == "fewer than 5 patients of one status"
    assert found.caution == "43 patients with a known status, <5 in the rarer class"
    assert found.positives == 0, "not even in the object"


def test_of_few_known_patients_nothing_is_told() -> None:
    found = passed_on(held_out({"henan": (2, 2, 60)})).overall[Gene.IDH]
    assert told(found).known == "<5"
    assert told(found).unknown == DASH, "it would give the number of the known away"
    assert found.accuracy.value is found.log_loss.value is None


def test_enough_patients_change_nothing() -> None:
    evaluation = held_out({"henan": (9, 8, 1), "ningxia": (12, 5, 0)}, outlined=20)
    shared = passed_on(evaluation)
    assert shared.overall == evaluation.overall
    assert shared.by_site == evaluation.by_site
    assert told(shared.overall[Gene.IDH]).positive == "13"


def test_patients_count_and_not_their_scans() -> None:
    scans = held_out({"henan": (10, 4, 0)}, repeats=3)
    assert scans.overall[Gene.IDH].positives == 12
    assert passed_on(scans).overall[Gene.IDH].auc.value is None


def test_a_site_with_few_takes_the_exact_numbers_of_the_others_with_it() -> None:
    evaluation = held_out({"henan": (20, 18, 0), "ningxia": (12, 2, 0), "zhengzhou": (9, 9, 0)})
    shared = passed_on(evaluation)
    rows = {site: shared.by_site[site][Gene.IDH] for site in shared.by_site}
    assert {told(row).positive for row in rows.values()} == {DASH}
    assert {told(row).known for row in rows.values()} == {"\N{GREATER-THAN OR EQUAL TO}5"}
    assert rows["ningxia"].auc.value is None
    assert rows["henan"].auc.value == evaluation.by_site["henan"][Gene.IDH].auc.value
    assert rows["henan"].majority.value is None, "with the sum it would tell how many ningxia has"
    assert {row.accuracy.value for row in rows.values()} == {None}, "its right answers would follow"
    assert all(row.n in (1, 5) and row.positives == 0 for row in rows.values())


counts = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))


@settings(deadline=None, max_examples=25)
@given(sites=st.lists(counts, min_size=1, max_size=4), outlined=st.integers(0, 30))
def test_no_table_prints_a_number_from_one_to_four(sites, outlined) -> None:
    groups = {f"site-{'abcd'[n]}": found for n, found in enumerate(sites)}
    if not sum(map(sum, sites)):
        return
    shared = passed_on(held_out(groups, outlined=min(outlined, sum(map(sum, sites)))))
    assert passed_on(shared) == shared
    tables = [report_tables.overall_table(shared.overall)]
    tables.append(report_tables.grouped_table("By hospital", "Hospital", shared.by_site))
    counting = [row.cells[-9 if n == 0 else -8].text for n, t in enumerate(tables) for row in t.rows]
    assert not {part for text in counting for part in text.split(" of ")} & {"1", "2", "3", "4"}
    assert shared.who is not None
    cells = [text for row in who_cells(shared.who).values() for text in row.values()]
    assert not {*cells, *who_totals(shared.who).values()} & {"1", "2", "3", "4"}
    if shared.segmentation is not None:
        found = {"all": shared.segmentation, **shared.segmentation_by_site}
        texts = {row.cells[1].text for row in report_tables.tumour_table(found).rows}
        assert not texts & {"1", "2", "3", "4"}


def test_who_table_with_a_few_cell_tells_sides_only() -> None:
    who = passed_on(held_out({"henan": (40, 3, 0)})).who
    assert who is not None
    assert who.withheld
    # Wild type in all markers or mutant in all, which contradicts itself: no class has few.
    assert who.agreement.value is not None
    texts = Counter(text for row in who_cells(who).values() for text in row.values())
    assert set(texts) <= {"<5", "\N{GREATER-THAN OR EQUAL TO}5", DASH}


@pytest.mark.parametrize(("oligodendrogliomas", "told"), [(3, False), (5, True)])
def test_agreement_of_the_who_table_is_of_enough_cases_of_every_class(
    oligodendrogliomas: int, told: bool
) -> None:
    """Of a network that names one class for everybody it is the share of that class."""
    labels = np.array([[0, 0, 0]] * 40 + [[1, 0, 1]] * oligodendrogliomas)
    n = len(labels)
    predictions = Predictions(
        labels=labels.astype(np.int64),
        probabilities=np.zeros((n, 3)),
        sites=("henan",) * n,
        modalities=("flair",) * n,
        split=("report",) * n,
        patients=np.arange(n),
    )
    who = passed_on(evaluate(predictions, split="report", synthetic=True, resamples=20)).who
    assert who is not None
    assert (who.agreement.value is not None) is (who.majority.value is not None) is told
    assert ("No agreement can be given: fewer than 5" in report_tables.who_table(who).remark) is not told


def test_report_says_why_there_is_no_curve_and_its_headline_gives_no_number_away() -> None:
    shared = passed_on(held_out({"henan": (40, 3, 2)}))
    predictions = Predictions(
        labels=np.zeros((1, 3), np.int64),
        probabilities=np.full((1, 3), 0.5),
        sites=("henan",),
        modalities=("flair",),
        split=("report",),
        patients=np.arange(1),
    )
    drawn = roc_figures(shared.overall, predictions, "report", "")
    assert drawn.drawings == ()
    assert drawn.missing[0] == "IDH: no curve, fewer than 5 patients of one status."
    card = cards(shared)[0]
    assert (card.tested, card.usual, card.majority) == ("43 known", "the more frequent", DASH)


def test_model_card_and_bundle_give_no_figure_of_few() -> None:
    record = run_record(RunConfig())
    evaluation = held_out({"henan": (40, 3, 2), "ningxia": (3, 30, 0)})
    few = held_out({"henan": (40, 3, 2)})
    text = card_text(record, CHOSEN, few, "Not differentially private.", 1)
    assert "| IDH | 43 | - |" in text
    assert "3 in the rarer" not in text
    assert "&lt;5 in the rarer" in text or "<5 in the rarer" in text
    assert _figures(few) == {}
    assert "idh_auc" in _figures(evaluation)
    lines = card_text(record, CHOSEN, evaluation, "", 1).splitlines()
    by_site = [line for line in lines if line.startswith(("| henan | - (", "| ningxia | - ("))]
    assert len(by_site) == 2


def test_end_of_a_run_prints_no_figure_of_few(tmp_path: Path) -> None:
    """Of a server it is kept in logs."""
    folder = RunFolder(tmp_path)
    folder.evaluation.mkdir()
    held_out({"henan": (40, 3, 2)}).write(folder.evaluation / "metrics.json")
    record = run_record(RunConfig())
    write_json(tmp_path / "privacy.json", privacy_record(record))
    data, text = run_result(record, folder)
    assert "IDH     AUC -                  accuracy -                  (majority class -; 43 known)" in text
    assert "<5 in the rarer class" in text
    assert "evaluation/metrics.json alone" in text
    assert data["evaluation"]["overall"]["idh"]["accuracy"]["value"] is None
    held_out({"henan": (40, 5, 2)}).write(folder.evaluation / "metrics.json")
    assert "metrics.json" not in run_result(record, folder)[1]


# Rounds, hospitals, what was left out


def scores(positive: int, negative: int, outlined: int) -> Scores:
    n = positive + negative
    labels = torch.tensor([[1] * 3] * positive + [[0] * 3] * negative)
    dice = np.full(n, np.nan)
    dice[:outlined] = 0.5
    return Scores(
        logits=torch.linspace(-1, 1, 6 * n).reshape(n, 3, 2),
        labels=labels,
        losses=np.tile([0.7123, 0.3, 0.5], (n, 1)),
        dice=dice,
    )


def test_a_rounds_figures_of_few_are_neither_logged_nor_monitored_and_the_choice_is_as_before() -> None:
    tasks = [Task(gene) for gene in GENES]
    found = measure(scores(3, 20, 2), tasks, RunConfig())
    assert set(found.auc.values()) == set(found.accuracy.values()) == {None}
    assert set(found.loss_by_task.values()) == {None}
    assert found.dice is None
    assert found.loss == pytest.approx((0.7123 + 0.3 + 0.5) / 3)
    line = RoundRecord(round=1, heldout=found)
    gauges = ServerGauges("run")
    gauges.round_finished(line)
    for name in ("auc", "accuracy", "loss"):
        assert np.isnan(gauge(gauges, name, "idh"))
    assert gauge(gauges, "loss", "") == 0.5
    assert "held-out loss 0.5; IDH AUC -" in describe(line, 3)
    table = rounds_table([line], None)
    assert [cell.text for cell in table.rows[0].cells[1:8]] == ["0.5", *[DASH] * 6]
    assert "Fewer than 5 of them" in table.remark
    (drawn, *_) = round_figures([line], 1, "", finished=True).drawings
    assert "0.504" not in drawn.svg


def gauge(gauges: ServerGauges, name: str, region: str) -> float:
    labels = {"run_id": "run", "name": name, "region": region, "site": ""}
    value = gauges.registry.get_sample_value("fedglioma_metric", labels)
    assert value is not None
    return value


@pytest.mark.parametrize("rare", [1, 2, 3, 4])
def test_network_that_says_one_thing_of_everybody_tells_no_count_of_a_status(rare: int) -> None:
    """Its accuracy is the share of a status, and so is what its loss follows."""
    told = scores(rare, 7 - rare, 0)
    told.logits[:] = torch.tensor([2.0, -2.0])
    lost = torch.nn.functional.cross_entropy(
        told.logits[:, 0], told.labels[:, 0].clamp(min=0), reduction="none"
    ).numpy()
    told = replace(told, losses=np.stack([lost] * 3, axis=1))
    found = measure(told, [Task(gene) for gene in GENES], RunConfig())
    assert not [v for t in (found.auc, found.accuracy, found.loss_by_task) for v in t.values() if v]
    shared = passed_on(held_out({"henan": (7 - rare, rare, 0)}))
    assert all(m.value is None for metrics in shared.overall.values() for m in measures_of(metrics))


def test_a_rounds_figures_are_of_patients_and_not_of_their_scans() -> None:
    tasks, whose = [Task(gene) for gene in GENES], ["a", "b", "c", "d"] * 2 + [f"p{n}" for n in range(12)]
    assert None not in measure(scores(8, 12, 8), tasks, RunConfig()).accuracy.values()
    found = measure(scores(8, 12, 8), tasks, RunConfig(), whose)
    assert {*found.accuracy.values(), *found.loss_by_task.values(), found.dice} == {None}


def test_loss_of_one_gene_does_not_follow_from_the_others_and_their_mean() -> None:
    told = scores(9, 11, 6)
    told.losses[2:, 1] = np.nan
    found = measure(told, [Task(gene) for gene in GENES], RunConfig())
    assert found.coarse
    assert set(found.loss_by_task.values()) == {None}


def test_a_rounds_figures_of_enough_are_those_of_all() -> None:
    found = measure(scores(9, 11, 6), [Task(gene) for gene in GENES], RunConfig())
    assert found.told_loss == found.loss
    assert all(value is not None for value in (*found.auc.values(), *found.accuracy.values()))
    assert found.dice == pytest.approx(0.5)
    assert found.loss_by_task[Task.IDH] == pytest.approx(0.7123)


def test_splits_and_exclusions_with_few_cases_are_coarsened() -> None:
    record = run_record(RunConfig()).model_copy(
        update={
            "splits": {
                "henan": SplitCount(train=30, selection=3, report=8),
                "ningxia": SplitCount(train=40, selection=7, report=9),
            }
        }
    )
    rows = [[cell.text for cell in row.cells[1:4]] for row in sites_table(record).rows]
    assert rows == [["30", "<5", "8"], ["40", "\N{GREATER-THAN OR EQUAL TO}5", "9"]]
    issues = [
        DataIssue(site="henan", kind="excluded", code="blank", cases=2, explanation="blank"),
        DataIssue(site="henan", kind="excluded", code="series", cases=9, explanation="no series"),
        DataIssue(site="henan", kind="warning", code="mask", cases=7, explanation="no mask"),
    ]
    assert [row.cells[3].text for row in issues_table(issues).rows] == [
        "<5", "\N{GREATER-THAN OR EQUAL TO}5", "7",
    ]  # fmt: skip


# Survival


def survival(tmp_path: Path, mutant: int, wild: int, deaths: int = 1000) -> SurvivalResults:
    rng = np.random.default_rng(2)
    lines = ["os_days,os_event,idh"]
    days = rng.permutation(np.arange(100, 100 + 30 * (mutant + wild), 30))
    for n, day in enumerate(days):
        lines.append(f"{day},{int(n % 5 > 0 and n < deaths)},{'mutant' if n < mutant else 'wildtype'}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return analyse(read_table(path))


def test_a_curve_ends_where_fewer_than_the_limit_are_followed(tmp_path: Path) -> None:
    results = survival(tmp_path, 30, 20)
    shared = survival_cells.passed_on(results)
    for before, after in zip(results.comparisons[0].arms, shared.comparisons[0].arms, strict=True):
        assert min(after.curve.at_risk) == 5
        kept = len(after.curve.time)
        assert after.curve.survival == before.curve.survival[:kept]
        assert before.curve.at_risk[kept] == 4
        texts = list(survival_cells.at_risk_text(after))
        assert not set(texts) & {"1", "2", "3", "4"}
        assert all(
            text == (str(n) if n == 0 or n >= 5 else "<5")
            for text, n in zip(texts, before.at_risk, strict=True)
        )
    assert survival_cells.passed_on(shared) == shared


def test_a_class_of_few_has_no_curve_no_median_no_test_and_no_ratio(tmp_path: Path) -> None:
    shared = survival_cells.passed_on(survival(tmp_path, 3, 30))
    (comparison,) = shared.comparisons
    wild, mutant = comparison.arms
    assert mutant.curve.time == ()
    assert mutant.median is None
    assert wild.curve.time
    assert [survival_cells.patients_text(arm) for arm in comparison.arms] == [
        "\N{GREATER-THAN OR EQUAL TO}5", "<5",
    ]  # fmt: skip
    assert comparison.log_rank is None
    assert comparison.log_rank_reason == comparison.cox.reason == "fewer than 5 patients of one status"
    assert comparison.cox.rows == ()
    assert shared.adjusted[0].model.rows == ()
    assert "3 patients" not in (comparison.caution or "")


def test_few_deaths_in_a_class_take_the_exact_deaths_of_the_other_with_them(tmp_path: Path) -> None:
    shared = survival_cells.passed_on(survival(tmp_path, 12, 20, deaths=15))
    assert [survival_cells.deaths_text(arm) for arm in shared.comparisons[0].arms] == [
        "<5", "\N{GREATER-THAN OR EQUAL TO}5",
    ]  # fmt: skip
    assert [survival_cells.patients_text(arm) for arm in shared.comparisons[0].arms] == ["20", "12"]
    none = survival_cells.passed_on(survival(tmp_path, 12, 20, deaths=4)).comparisons[0]
    assert none.log_rank is None
    assert none.log_rank_reason == "fewer than 5 deaths"


def test_a_median_beyond_the_end_of_the_curve_is_not_told(tmp_path: Path) -> None:
    lines = ["os_days,os_event,idh", *(f"{100 + n},0,mutant" for n in range(8))]
    lines += ["900,1,mutant", "950,1,mutant", *(f"{50 + 10 * n},1,wildtype" for n in range(12))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    results = analyse(read_table(tmp_path / "table.csv"))
    mutant = next(arm for arm in results.comparisons[0].arms if arm.label == "mutant")
    assert mutant.median == 900.0
    shared = survival_cells.passed_on(results).comparisons[0].arms
    assert next(arm for arm in shared if arm.label == "mutant").median is None
    assert next(arm for arm in shared if arm.label == "wild-type").median is not None


def test_survival_section_prints_no_number_of_few(tmp_path: Path) -> None:
    section = survival_section(Analyses(measured=survival(tmp_path, 3, 30)).passed_on, "")
    assert section is not None
    texts = [cell.text for table in section.tables for row in table.rows for cell in row.cells]
    assert not set(texts) & {"1", "2", "3", "4"}
    (drawing,) = section.drawings
    assert "A curve ends where fewer than 5 patients are still followed." in drawing.caption
    assert "mutant" not in drawing.svg, "a class of few is not drawn"


def test_figures_on_disk_are_cut_and_the_holders_own_results_are_not(tmp_path: Path) -> None:
    results = survival(tmp_path, 30, 20)
    out = tmp_path / "out"
    write_survival(results, out, draw=True)
    saved = json.loads((out / "results.json").read_text())
    assert min(saved["comparisons"][0]["arms"][0]["curve"]["at_risk"]) == 1
    (svg,) = out.glob("*.svg")
    assert "&lt;5" in svg.read_text()
