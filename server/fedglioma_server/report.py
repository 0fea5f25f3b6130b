"""report.html of a run folder: one file that opens anywhere, made from what the run saved and nothing else.

A folder whose run is still going, was interrupted or has no evaluation gets a report that says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedglioma.case import CLASS_TITLES, GENE_TITLES
from fedglioma.metrics.small_cells import passed_on
from fedglioma.metrics.tables import Evaluation
from fedglioma.page import rendered
from fedglioma_server import report_linkage as duplicates
from fedglioma_server import report_run as tables
from fedglioma_server import report_scale as intensities
from fedglioma_server import report_tables as results
from fedglioma_server import report_text as words
from fedglioma_server.attack_report import attack_words
from fedglioma_server.records import RunRecord, write_text
from fedglioma_server.report_figures import Drawing, Figures, roc_figures, round_figures
from fedglioma_server.report_headline import cards, facts, notices, summary, tested
from fedglioma_server.report_saved import Saved, read_saved
from fedglioma_server.report_survival import SurvivalSection, survival_section
from fedglioma_server.report_tables import Table

SYNTHETIC_STAMP = "SYNTHETIC DATA"
MOST_SENTENCES = 12


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` and the figures of a run folder, and return the report's path.

    Raises
    ------
    ConfigError
        The folder holds no run, or one of its files is damaged.
    """
    saved = read_saved(run_folder)
    html, figures = render(saved)
    for folder, drawings in figures.items():
        for drawing in drawings:
            write_text(run_folder / folder / f"{drawing.key}.svg", drawing.svg)
    path = run_folder / "report.html"
    write_text(path, html)
    return path


def render(saved: Saved) -> tuple[str, dict[str, Sequence[Drawing]]]:
    """Return the page, and the figures by the folder that they belong into."""
    # From here on nothing is known that a reader elsewhere must not know.
    evaluation = None if saved.evaluation is None else passed_on(saved.evaluation)
    saved = replace(saved, evaluation=evaluation, survival=saved.survival.passed_on)
    stamp = SYNTHETIC_STAMP if saved.synthetic else ""
    course = round_figures(saved.rounds, saved.chosen, stamp, finished=saved.run.status == "completed")
    roc = Figures()
    if saved.evaluation is not None:
        roc = roc_figures(saved.evaluation.overall, saved.predictions, saved.evaluation.split, stamp)
    survival = survival_section(saved.survival, stamp)
    html = rendered(
        "fedglioma_server",
        "report.html.j2",
        run=saved.run,
        synthetic=saved.synthetic,
        begun=words.moment(saved.run.created),
        contents=_contents(saved, survival is not None),
        notices=notices(saved),
        summary=summary(saved),
        cards=cards(saved.evaluation),
        facts=facts(saved),
        evaluation=_evaluation(saved.evaluation),
        roc=roc,
        survival=survival,
        data=_data(saved.run),
        training=_training(saved, course),
        settings=_settings(saved),
        privacy=saved.privacy,
        attacks=[] if saved.attack is None else [*saved.attack.refusals, *attack_words(saved.attack)],
    )
    return html, {"evaluation": [*course.drawings, *roc.drawings], "survival": _drawings(survival)}


def _drawings(section: SurvivalSection | None) -> Sequence[Drawing]:
    return section.drawings if section is not None else ()


def _contents(saved: Saved, survival: bool) -> list[tuple[str, str]]:
    return [
        ("result", "Main result"),
        *([("markers", "Markers")] if saved.evaluation is not None else []),
        *([("survival", "Survival")] if survival else []),
        ("data", "Patients and data"),
        ("training", "Training"),
        ("settings", "Settings"),
        ("privacy", "Privacy"),
        ("reading", "How to read this"),
    ]


def _evaluation(evaluation: Evaluation | None) -> dict[str, object] | None:
    if evaluation is None:
        return None
    subsets = sorted(evaluation.by_modalities, key=words.subset_order)
    by_subset = {words.subset_title(name): evaluation.by_modalities[name] for name in subsets}
    shown = [
        results.overall_table(evaluation.overall),
        results.grouped_table("By hospital", "Hospital", evaluation.by_site),
        results.grouped_table("By MRI sequences present", "Sequences", by_subset),
        *([] if evaluation.who is None else [results.who_table(evaluation.who)]),
        *_tumours(evaluation),
    ]
    shown = [table for table in shown if table.rows]
    return {"tested": tested(evaluation), "tables": shown}


def _tumours(evaluation: Evaluation) -> list[Table]:
    if evaluation.segmentation is None:
        return []
    groups = {"All held-out patients": evaluation.segmentation, **evaluation.segmentation_by_site}
    return [results.tumour_table(groups)]


def _data(run: RunRecord) -> dict[str, object]:
    issues = tables.issues_table(run.issues)
    out, warned = (
        words.few_or(sum(issue.cases for issue in run.issues if issue.kind == kind), "case")
        for kind in ("excluded", "warning")
    )
    lead = f"From {words.listing(run.cohorts) or 'an unnamed cohort'}."
    if run.issues:
        lead += f" {out} left out, {warned} kept with a warning."
    shown: list[Table] = [tables.sites_table(run), tables.modalities_table(run)]
    if run.scale is not None:
        shown.append(intensities.scale_table(run, run.scale))
    if run.linkage is not None:
        shown.append(duplicates.linkage_table(run.linkage))
        lead += f" {duplicates.lead(run.linkage)}"
    lead += f" {intensities.lead(run)}"
    return {"lead": lead, "tables": shown, "issues": issues}


def _training(saved: Saved, course: Figures) -> dict[str, object]:
    left_out = [
        f"Round {record.round}, {name}: {words.STATUS_TITLES[site.status]}, {site.reason or 'cause unknown'}."
        for record in saved.rounds
        for name, site in record.sites.items()
        if site.status not in ("ok", "idle")
    ]
    idle = sorted({n for r in saved.rounds for n, site in r.sites.items() if site.status == "idle"})
    lead = "After every round the shared model was measured on held-out patients set aside to choose it."
    if idle:
        lead += f" {words.listing(idle)} had no patient with a known marker and did not train."
    shown = [
        tables.site_summary_table(saved.rounds),
        tables.rounds_table(saved.rounds, saved.chosen),
        tables.site_rounds_table(saved.rounds),
    ]
    if len(left_out) > MOST_SENTENCES:
        left_out = [*left_out[:MOST_SENTENCES], f"{len(left_out) - MOST_SENTENCES} more in the table below."]
    return {"lead": lead, "figures": course, "left_out": left_out, "tables": shown}


def _settings(saved: Saved) -> list[Table]:
    run = saved.run
    facts: dict[str, object] = {
        "Run": run.run_id,
        "Engine": run.engine,
        "Cohorts": run.cohorts,
        "Digest of the data (SHA-256)": run.data_digest,
        **({"Digest of the model's weights": saved.model.digest} if saved.model is not None else {}),
        "Parameters of the network": words.integer(run.parameters),
        "Size of one update": f"{words.size(run.payload_bytes)} ({words.integer(run.payload_bytes)} bytes)",
        **(
            {"Weights of the three tasks": run.settings.task_weighting} if run.settings.weighs_markers else {}
        ),
        **{f"Version of {name}": version for name, version in run.versions.items()},
    }
    for gene, (wild, mutant) in run.class_counts.items() if run.settings.weighs_markers else ():
        negative, positive = CLASS_TITLES[gene]
        facts[f"{GENE_TITLES[gene]} counts behind the loss"] = f"{wild:g} {negative}, {mutant:g} {positive}"
    return [results.facts_table("This run", facts), tables.settings_table(run.settings)]
