"""A study's report: one page, the same table as Markdown and CSV, and its figures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fedglioma.case import TASK_TITLES, Task
from fedglioma.metrics.genotype import MIN_PATIENTS
from fedglioma.page import rendered
from fedglioma_server import figures
from fedglioma_server import report_text as words
from fedglioma_server.figures import Interval
from fedglioma_server.records import read_json, write_text
from fedglioma_server.report_figures import Drawing, Figures
from fedglioma_server.report_tables import Cell, Notes, Row, Table
from fedglioma_server.study_small_cells import cases_of, cases_text, most, passed_on
from fedglioma_server.study_table import RESULTS, Entry, Gain, StudyResult
from fedglioma_server.study_words import (
    DASH,
    OTHERS,
    PROTOCOL_TITLES,
    SPENT,
    caution_text,
    compared_text,
    divisions_text,
    interval_text,
    measure_title,
    p_text,
    row_title,
    seeds_text,
)

SYNTHETIC_STAMP = "SYNTHETIC DATA"
ABSENT = "Rows that could not be computed"
WITHOUT_MODELS = "Hospitals without a model of their own"
GUESSING = {"auc": 0.5}
GREY = (
    f"Grey rows rest on fewer than {MIN_PATIENTS} cases, or on a number that is not told, and mean nothing "
    "beyond their interval"
)


def write_study_report(folder: Path) -> Path:
    """Write a study's page, tables and figures from its ``results.json``, and return the page's path.

    Raises
    ------
    ConfigError
        The folder holds no study.
    """
    result = passed_on(read_json(folder / RESULTS, StudyResult, "study's result"))
    drawn = _drawings(result)
    page = rendered(
        "fedglioma_server",
        "study.html.j2",
        result=result,
        facts=_facts(result),
        tables=_tables(result),
        published=[_published_table(result, place) for place in range(len(result.published))],
        figures=drawn,
        failed=sorted(result.failed.items()),
        absent=list(result.absent.items()),
        without_models=list(result.without_models.items()),
    )
    write_text(folder / "table.md", markdown(result))
    write_text(folder / "table.csv", csv_text(result))
    for drawing in drawn.drawings:
        write_text(folder / "figures" / f"{drawing.key}.svg", drawing.svg)
    path = folder / "report.html"
    write_text(path, page)
    return path


def _facts(result: StudyResult) -> dict[str, str]:
    return {
        "Patients reported": cases_text(result.patients),
        "Hospitals": words.listing(result.sites),
        "Division": divisions_text(result),
        "Runs": words.integer(result.runs) + (f", {len(result.failed)} failed" if result.failed else ""),
        "Size": result.size,
        "Settings of every row": ", ".join(f"{k} {v}" for k, v in result.settings.items()) or "defaults",
        "Compared with": next(
            (
                row_title(line, result)
                for line in result.lines
                if (line.arm, line.protocol) == result.reference
            ),
            result.reference[0],
        ),
        "Finished": words.moment(result.created),
    }


def _tables(result: StudyResult) -> list[Table]:
    return [*_main_tables(result), *_left_out_tables(result), *_gain_tables(result)]


def _main_tables(result: StudyResult) -> list[Table]:
    """Return one table per task."""
    tasks = dict.fromkeys(name.partition(".")[0] for name in result.measures)
    return [
        _task_table(result, TASK_TITLES[Task(task)], [m for m in result.measures if m.startswith(f"{task}.")])
        for task in tasks
    ]


def _task_table(result: StudyResult, title: str, measures: Sequence[str]) -> Table:
    rows = []
    notes = Notes()
    measured: list[Entry] = []
    private = any(line.epsilon is not None for line in result.lines)
    seeds = result.seeds > 1
    headings = ("Value", *["Seeds"] * seeds, "Difference")
    caution = caution_text(result)
    for line in result.lines:
        if not any(name in line.entries for name in measures):
            continue
        reference = (line.arm, line.protocol) == result.reference
        cells = [Cell(row_title(line, result), head=True, number=False, strong=reference)]
        for name in measures:
            entry = line.entries.get(name)
            cells.append(_value_cell(entry, notes))
            if seeds:
                # Without a network every seed is the same.
                cells.append(Cell(DASH if entry is None or not line.protocol else seeds_text(entry)))
            cells.append(_difference_cell(entry, notes))
            measured += [] if entry is None else [entry]
        if private:
            cells.insert(1, Cell(DASH if line.epsilon is None else f"{line.epsilon:.3g}"))
        rows.append(Row(tuple(cells)))
    return Table(
        title=f"{title}, {cases_text(most(measured))} cases",
        columns=("", *["Epsilon"] * private, *(text for _ in measures for text in headings)),
        rows=tuple(rows),
        over=(("", 1 + private), *((measure_title(name), len(headings)) for name in measures)),
        notes=notes.listed(),
        remark=f"{caution} {SPENT}" if private else caution,
    )


def _value_cell(entry: Entry | None, notes: Notes) -> Cell:
    if entry is None:
        return Cell(DASH)
    letters = [notes.letter(entry.value.reason), *(notes.exactly(note) for note in entry.notes)]
    return Cell(interval_text(entry.value), note=", ".join(filter(None, letters)))


def _difference_cell(entry: Entry | None, notes: Notes) -> Cell:
    if entry is None:
        return Cell(DASH)
    reason = None if entry.comparison is None else entry.comparison.difference.reason
    return Cell(compared_text(entry), note=notes.letter(reason))


def _left_out_tables(result: StudyResult) -> list[Table]:
    """Return one table per measure: what each row is worth at the hospital that it did not train on."""
    names = dict.fromkeys(found.measure for found in result.left_out)
    return [_left_out_table(result, name) for name in names]


def _left_out_table(result: StudyResult, name: str) -> Table:
    found = {(f.site, f.arm, f.protocol): f for f in result.left_out if f.measure == name}
    lines = [line for line in result.lines if name in line.entries]
    notes = Notes()
    rows = []
    for site in dict.fromkeys(site for site, _, _ in found):
        there = [found[site, line.arm, line.protocol] for line in lines]
        cells = [Cell(site, head=True, number=False), Cell(cases_text(there[0].cases))]
        cells += [Cell(interval_text(f.value), note=notes.letter(f.value.reason)) for f in there]
        rows.append(Row(tuple(cells), faint=_is_faint(there[0].cases)))
    return Table(
        title=f"Each hospital left out: {measure_title(name)}",
        columns=("Left out", "Cases", *(row_title(line, result) for line in lines)),
        rows=tuple(rows),
        notes=notes.listed(),
        remark=f"The patients of one hospital, by models that were trained without it. {GREY}.",
    )


def _is_faint(cases: int | str) -> bool:
    return isinstance(cases, str) or cases < MIN_PATIENTS


def _published_table(result: StudyResult, place: int) -> Table:
    paper = result.published[place]
    names = list(dict.fromkeys(name for figures_ in paper.rows.values() for name in figures_))
    own = {line.arm: line for line in result.lines if line.protocol in ("", result.lines[0].protocol)}
    rows = []
    for arm, found in paper.rows.items():
        cells = [Cell(arm, head=True, number=False)]
        for name in names:
            entry = own[arm].entries.get(name) if arm in own else None
            cells.append(Cell(f"{found[name]:.3f}" if name in found else DASH))
            cells.append(Cell(DASH if entry is None else interval_text(entry.value)))
        rows.append(Row(tuple(cells)))
    note = f" {paper.note}" if paper.note else ""
    return Table(
        title=f"Published: {paper.source}",
        columns=("", *(text for _ in names for text in ("Paper", "Here"))),
        rows=tuple(rows),
        over=(("", 1), *((measure_title(name), 2) for name in names)),
        remark=f"The paper's patients: {paper.data}. These are {OTHERS}.{note}",
    )


def _gain_tables(result: StudyResult) -> list[Table]:
    tables = []
    for arm in dict.fromkeys(gain.arm for gain in result.gains):
        for name in result.measures:
            gains = [gain for gain in result.gains if gain.arm == arm and gain.measure == name]
            if gains:
                tables.append(_gain_table(arm, name, gains))
    return tables


def _gain_table(arm: str, name: str, gains: Sequence[Gain]) -> Table:
    protocols = list(dict.fromkeys(protocol for gain in gains for protocol in gain.lines))
    others = [protocol for protocol in protocols if protocol != "local"]
    rows = []
    notes = Notes()
    for gain in gains:
        cases = cases_of(gain)
        cells = [Cell(gain.site, head=True, number=False), Cell(cases_text(cases))]
        cells += [_value_cell(gain.lines.get(protocol), notes) for protocol in protocols]
        for protocol in others:
            entry = gain.lines.get(protocol)
            comparison = None if entry is None else entry.comparison
            text = DASH if comparison is None else interval_text(comparison.difference, signed=True)
            cells.append(Cell(f"{text}, p {p_text(entry.p_adjusted)}" if comparison and entry else text))
        rows.append(Row(tuple(cells), faint=_is_faint(cases)))
    titles = [PROTOCOL_TITLES[protocol] for protocol in protocols]
    return Table(
        title=f"What each hospital gained: {measure_title(name)}, {arm}",
        columns=("Patients of", "Cases", *titles, *(PROTOCOL_TITLES[p] for p in others)),
        rows=tuple(rows),
        over=(("", 2), (measure_title(name), len(protocols)), ("Against each alone", len(others))),
        words=frozenset({0}),
        notes=notes.listed(),
        remark=f"{GREY}. Each hospital's own reported patients; 'each hospital alone' is "
        "the model that it would have without the others. p is adjusted for all hospitals and protocols of "
        "this table together (Holm), that of all patients for the protocols.",
    )


def _drawings(result: StudyResult) -> Figures:
    stamp = SYNTHETIC_STAMP if result.synthetic else ""
    drawings, missing = [], []
    for name in result.measures:
        title, measure = measure_title(name), name.partition(".")[2]
        rows = [
            Interval(row_title(line, result), entry.value.value, entry.value.low, entry.value.high)
            for line in result.lines
            if (entry := line.entries.get(name)) is not None and entry.value.value is not None
        ]
        papers = [
            Interval(f"{arm} (paper)", figures_[name], hollow=True)
            for paper in result.published
            for arm, figures_ in paper.rows.items()
            if name in figures_
        ]
        if not rows:
            missing.append(f"{title}: no row has a value.")
            continue
        svg = figures.forest(
            [*rows, *papers], title=title, axis=title, line=GUESSING.get(measure), stamp=stamp
        )
        caption = f"{title} with 95 % intervals" + (
            "; hollow: a paper's figure, of other patients." if papers else "."
        )
        drawings.append(Drawing(name.replace("_", "-").replace(".", "-"), svg, caption, caption))
    drawings += _gain_drawings(result, stamp)
    return Figures(tuple(drawings), tuple(missing))


def _gain_drawings(result: StudyResult, stamp: str) -> list[Drawing]:
    drawings: list[Drawing] = []
    for arm in dict.fromkeys(gain.arm for gain in result.gains):
        for name in result.measures:
            rows = [
                Interval(f"{gain.site}: {PROTOCOL_TITLES[protocol]}", value.value, value.low, value.high)
                for gain in result.gains
                if gain.arm == arm and gain.measure == name
                for protocol, entry in gain.lines.items()
                if entry.comparison is not None and (value := entry.comparison.difference).value is not None
            ]
            if not rows:
                continue
            title = f"Gain over each hospital alone, {measure_title(name)}"
            svg = figures.forest(rows, title=title, axis="difference", line=0.0, subtitle=arm, stamp=stamp)
            key = f"gain-{len(drawings) + 1}"
            drawings.append(Drawing(key, svg, f"{title}, {arm}.", f"{title}: right of the line, it gained."))
    return drawings


def markdown(result: StudyResult) -> str:
    """Return the study's tables as Markdown, with what they mean."""
    parts = [f"# {result.title}", ""]
    if result.synthetic:
        parts += ["**SYNTHETIC DATA: made-up patients, nothing here is clinical evidence.**", ""]
    if result.caution:
        parts += [f"**{result.caution}**", ""]
    if result.description:
        parts += [result.description.strip(), ""]
    parts += [f"{name}: {value}  " for name, value in _facts(result).items()]
    published = [_published_table(result, place) for place in range(len(result.published))]
    for table in (*_tables(result), *published):
        parts += ["", f"## {table.title}", "", *_markdown_rows(table), ""]
        parts += [f"({letter}) {note}  " for letter, note in table.notes] + [""] * bool(table.notes)
        parts += [table.remark]
    if result.without_models:
        parts += ["", f"## {WITHOUT_MODELS}", ""]
        parts += [f"- {who}: {why}" for who, why in result.without_models.items()]
    if result.absent:
        parts += ["", f"## {ABSENT}", "", *(f"- {row}: {why}" for row, why in result.absent.items())]
    if result.failed:
        parts += ["", "## Failed runs", "", *(f"- {run}: {why}" for run, why in result.failed.items())]
    return "\n".join(parts) + "\n\nResearch use only, not a medical device.\n"


def _markdown_rows(table: Table) -> list[str]:
    over = [heading for heading, columns in table.over for _ in range(columns)]
    headings = [
        " ".join(part for part in (above, column) if part)
        for above, column in zip(over or [""] * len(table.columns), table.columns, strict=True)
    ]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return lines + [f"| {' | '.join(map(_markdown_cell, row.cells))} |" for row in table.rows]


def _markdown_cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def csv_text(result: StudyResult) -> str:
    """Return one line per row and measure, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "protocol", "measure", "value", "low", "high", "difference", "difference_low",
         "difference_high", "p", "p_holm", "cases", "parameters", "epsilon", "seeds_low", "seeds_high",
         "note"]
    )  # fmt: skip
    for line in result.lines:
        for name, entry in line.entries.items():
            other = entry.comparison
            seeds = [value for value in entry.by_seed if value is not None]
            difference = [None] * 3 if other is None else [
                other.difference.value, other.difference.low, other.difference.high
            ]  # fmt: skip
            writer.writerow(
                [line.arm, line.protocol, name, entry.value.value, entry.value.low, entry.value.high,
                 *difference, None if other is None else other.p, entry.p_adjusted, cases_text(entry.cases),
                 line.parameters, line.epsilon, min(seeds, default=None), max(seeds, default=None),
                 "; ".join(filter(None, (entry.value.reason, *entry.notes)))]
            )  # fmt: skip
    return out.getvalue()


def summary_text(result: StudyResult) -> str:
    """Return the study's table for a terminal."""
    patients = cases_text(result.patients)
    lines = [f"{result.title} ({result.size} size): {patients} patients, {divisions_text(result)}"]
    if result.synthetic:
        lines.append("SYNTHETIC DATA: made-up patients, nothing here is clinical evidence")
    if result.caution:
        lines.append(result.caution)
    for name in result.measures:
        lines.append(measure_title(name))
        for line in result.lines:
            entry = line.entries.get(name)
            if entry is not None:
                compared = compared_text(entry)
                row = f"  {row_title(line, result):<44} {interval_text(entry.value):<20} {compared}"
                notes = "".join(f" ({note})" for note in entry.notes)
                lines.append(row.rstrip() + notes)
    lines += [f"no model of its own: {who}: {why}" for who, why in result.without_models.items()]
    lines += [f"not computed: {row}: {why}" for row, why in result.absent.items()]
    lines += [f"failed: {run}: {why}" for run, why in result.failed.items()]
    return "\n".join(lines)
