"""The report's survival section: a Kaplan-Meier figure per comparison, medians, tests, hazard ratios."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedglioma.case import CLASS_TITLES, GENES
from fedglioma.counts import PASSED_ON, shown
from fedglioma.survival.analysis import Comparison, SurvivalResults
from fedglioma.survival.cox import HazardRatio
from fedglioma.survival.curves import Arm
from fedglioma.survival.small_cells import at_risk_text, deaths_text, passed_on, patients_text
from fedglioma.survival.values import Group
from fedglioma_server import figures
from fedglioma_server import report_text as words
from fedglioma_server.figures import SurvivalStep
from fedglioma_server.report_figures import Drawing, Figures
from fedglioma_server.report_tables import Cell, Notes, Row, Table

GROUP_TITLES: dict[Group, str] = {
    Group.LOWER_GRADE: "Lower-grade glioma",
    Group.GLIOBLASTOMA: "Glioblastoma",
    Group.MIXED: "All gliomas together",
}
_FEW = f"fewer than {PASSED_ON} patients of each status"
ENDS = f"A curve ends where fewer than {PASSED_ON} patients are still followed."
_STYLES = {name: place for gene in GENES for place, name in enumerate(reversed(CLASS_TITLES[gene]))}
"""Mutant and codeleted look alike in every figure, and so do wild-type and intact."""


@dataclass(frozen=True)
class Analyses:
    """What the run saved of survival: by measured and by predicted markers, or the reason for nothing."""

    measured: SurvivalResults | None = None
    predicted: SurvivalResults | None = None
    reason: str | None = None

    @property
    def passed_on(self) -> "Analyses":
        """The same without what is of too few patients."""
        measured, predicted = (
            None if results is None else passed_on(results) for results in (self.measured, self.predicted)
        )
        return Analyses(measured, predicted, self.reason)

    @property
    def found(self) -> tuple[tuple[str, SurvivalResults], ...]:
        """What there is, with the word that tells it from the other."""
        both = (("measured", self.measured), ("predicted", self.predicted))
        return tuple((word, results) for word, results in both if results is not None)


@dataclass(frozen=True)
class Part:
    """The figures of one group of patients."""

    title: str
    figures: Figures


@dataclass(frozen=True)
class SurvivalSection:
    """Everything that the section shows."""

    lead: str
    parts: tuple[Part, ...]
    tables: tuple[Table, ...]
    remarks: tuple[str, ...]

    @property
    def drawings(self) -> tuple[Drawing, ...]:
        """All figures of the section."""
        return tuple(drawing for part in self.parts for drawing in part.figures.drawings)


def survival_section(analyses: Analyses, stamp: str) -> SurvivalSection | None:
    """Return the section; None where the run saved nothing about survival."""
    if not analyses.found:
        if analyses.reason is None:
            return None
        return SurvivalSection(f"There is no survival analysis: {analyses.reason}", (), (), ())
    groups = dict.fromkeys(c.group for _, results in analyses.found for c in results.comparisons)
    parts = []
    for group in sorted(groups, key=list(GROUP_TITLES).index):
        for word, results in analyses.found:
            chosen = [c for c in results.comparisons if c.group is group]
            if chosen:
                title = f"{GROUP_TITLES[group]}, {word} markers"
                parts.append(Part(title, _figures(chosen, results, word, stamp)))
    tables = [
        table
        for word, results in analyses.found
        for table in (_comparisons_table(results, word), _adjusted_table(results, word))
        if table.rows
    ]
    lead = " ".join(
        f"By {word} marker: {words.few_or(results.n, 'held-out patient')} with a known follow-up, "
        f"{shown(results.events)} of whom died."
        for word, results in analyses.found
    )
    return SurvivalSection(lead, tuple(parts), tuple(tables), tuple(_remarks(analyses)))


def _remarks(analyses: Analyses) -> Iterator[str]:
    for word, results in analyses.found:
        for note in results.notes:
            yield f"{word.capitalize()}: {note}."
        for part in results.left_out:
            yield f"{word.capitalize()}: {words.few_or(part.rows, 'patient')} left out, {part.reason}."


def _figures(comparisons: Sequence[Comparison], results: SurvivalResults, word: str, stamp: str) -> Figures:
    drawings, missing = [], []
    for comparison in comparisons:
        group = GROUP_TITLES[comparison.group]
        marker = comparison.title.removesuffix(f" ({word})")
        if not comparison.arms:
            missing.append(f"{marker}: no curve, no patient has a known status.")
            continue
        if not any(arm.curve.time for arm in comparison.arms):
            missing.append(f"{marker}: no curve, {_FEW}.")
            continue
        scale = results.months_per_unit or 1.0
        test = _test(comparison)
        among = f"{word}, {group[0].lower()}{group[1:]}"
        svg = figures.kaplan_meier(
            curve_steps(comparison, scale),
            [tick * scale for tick in comparison.ticks],
            title=marker,
            subtitle=f"{among}, {test}",
            axis="Months since diagnosis" if results.months_per_unit else "Time (unit not stated)",
            stamp=stamp,
        )
        died = [f"{deaths_text(arm)} of {patients_text(arm)} {arm.label}" for arm in comparison.arms]
        caption = f"Died: {words.listing(died)}. {ENDS}"
        if comparison.caution:
            caption += f" {comparison.caution[0].upper()}{comparison.caution[1:]}."
        key = f"km-{word}-{_slug(comparison.group.value)}-{_slug(comparison.marker)}"
        spoken = f"Survival by {marker} ({among}), {test}. {caption}"
        drawings.append(Drawing(key, svg, spoken, caption))
    return Figures(tuple(drawings), tuple(missing))


def curve_steps(comparison: Comparison, scale: float) -> list[SurvivalStep]:
    """Return the classes that have a curve as a figure draws them."""
    return [curve_step(arm, place, scale) for place, arm in enumerate(comparison.arms) if arm.curve.time]


def curve_step(arm: Arm, place: int, scale: float) -> SurvivalStep:
    """Return an arm as a figure draws it, its times multiplied by ``scale``; ``place`` picks the style."""
    curve = arm.curve
    return SurvivalStep(
        label=arm.label,
        times=[0.0, *(time * scale for time in curve.time)],
        survival=[1.0, *curve.survival],
        lower=[1.0, *curve.low],
        upper=[1.0, *curve.high],
        censored=[time * scale for time, gone in zip(curve.time, curve.censored, strict=True) if gone],
        at_risk=tuple(at_risk_text(arm)),
        patients=patients_text(arm),
        style=_STYLES.get(arm.label, place),
    )


def _test(comparison: Comparison) -> str:
    if comparison.log_rank is None:
        return f"no test: {comparison.log_rank_reason or 'not defined'}"
    return f"log-rank {words.probability_value(comparison.log_rank.p)}"


def _comparisons_table(results: SurvivalResults, word: str) -> Table:
    notes = Notes()
    rows: list[Row] = []
    for group, title in GROUP_TITLES.items():
        comparisons = [c for c in results.comparisons if c.group is group and c.arms]
        first = [Cell(title, rows=sum(len(c.arms) for c in comparisons), head=True, number=False)]
        for comparison in comparisons:
            marker = comparison.title.removesuffix(f" ({word})")
            rows += _arm_rows(comparison, marker, first, results.months_per_unit or 1.0, notes)
            first = []
    caution = (
        " Grey rows: too few deaths or patients to conclude anything." if any(r.faint for r in rows) else ""
    )
    return Table(
        f"Median survival, tests and hazard ratios by {word} marker",
        ("Patients", "Marker", "Status", "Number", "Died", "Median months", "Log-rank", "Hazard ratio"),
        tuple(rows),
        words=frozenset({0, 1, 2}),
        notes=notes.listed(),
        remark="In brackets: 95 % interval. A dash under median: more than half were alive at the end, or "
        f"when fewer than {PASSED_ON} were still followed. "
        f"A hazard ratio below 1 means fewer deaths per month than in the other status.{caution}",
    )


def _arm_rows(
    comparison: Comparison, marker: str, group: Sequence[Cell], scale: float, notes: Notes
) -> Iterator[Row]:
    ratios = {ratio.label: ratio for ratio in comparison.cox.rows}
    arms = len(comparison.arms)
    p = words.probability_value(comparison.log_rank.p) if comparison.log_rank is not None else words.DASH
    before = [*group, Cell(marker, rows=arms, head=True, number=False)]
    test = [Cell(p, rows=arms, note=notes.letter(comparison.log_rank_reason))]
    for place, arm in enumerate(comparison.arms):
        ratio = Cell("1 (reference)")
        if place:
            ratio = _ratio(ratios.get(arm.label), notes.letter(comparison.cox.reason))
        cells = (
            *before,
            Cell(arm.label, number=False),
            Cell(patients_text(arm)),
            Cell(deaths_text(arm)),
            Cell(_median(arm, scale)),
            *test,
            ratio,
        )
        yield Row(cells, faint=comparison.caution is not None)
        before, test = [], []


def _median(arm: Arm, scale: float) -> str:
    if arm.median is None:
        return words.DASH
    ends = [words.DASH if end is None else f"{end * scale:.0f}" for end in (arm.median_low, arm.median_high)]
    if ends == [words.DASH, words.DASH]:
        return f"{arm.median * scale:.1f}"
    return f"{arm.median * scale:.1f} [{ends[0]} to {ends[1]}]".replace(f"to {words.DASH}", "or more")


def _ratio(ratio: HazardRatio | None, note: str = "") -> Cell:
    if ratio is None:
        return Cell(words.DASH, note=note)
    return Cell(f"{_times(ratio.ratio)} [{_times(ratio.low)}{words.DASH}{_times(ratio.high)}]")


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 1000 else ">1000"


def _adjusted_table(results: SurvivalResults, word: str) -> Table:
    rows = []
    for adjusted in results.adjusted:
        found = adjusted.model.rows
        for place, ratio in enumerate(found):
            group = (
                Cell(GROUP_TITLES[adjusted.group], rows=len(found), head=True, number=False),
                Cell(f"{shown(adjusted.model.n)} ({shown(adjusted.model.events)} died)", rows=len(found)),
            )
            cells = (
                *(group if place == 0 else ()),
                Cell(f"{ratio.covariate}: {ratio.label} against {ratio.reference}", number=False),
                _ratio(ratio),
                Cell(words.probability_value(ratio.p)),
            )
            rows.append(Row(cells, faint=adjusted.model.caution is not None))
    failed = [
        f"{GROUP_TITLES[adjusted.group]}: no model, {adjusted.model.reason}."
        for adjusted in results.adjusted
        if adjusted.model.reason
    ]
    cautions = [
        f"{GROUP_TITLES[adjusted.group]}: grey, {adjusted.model.caution}."
        for adjusted in results.adjusted
        if adjusted.model.caution
    ]
    return Table(
        f"All {word} markers and age together (Cox model)",
        ("Patients", "Number", "Compared", "Hazard ratio", ""),
        tuple(rows),
        words=frozenset({0, 2}),
        remark=" ".join(["Every line is adjusted for the others of its group.", *failed, *cautions]),
        fold=True,
    )


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
