"""What a table of the report is, and the tables of the evaluation: no dash without its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase

from fedglioma.case import GENE_TITLES, GENES, Gene
from fedglioma.counts import shown
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.genotype import MAX_AUC_WIDTH, MIN_PATIENTS, MIN_RARER, GeneMetrics
from fedglioma.metrics.segmentation import SegmentationMetrics
from fedglioma.metrics.small_cells import outlined, told, who_cells, who_totals
from fedglioma.metrics.who import CLASSES, WHO_TITLES, WhoClass, WhoTable
from fedglioma_server import report_text as words

FOLD_ABOVE = 24
"""Rows above which a table starts folded."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the letter of its footnote, how many rows it spans, what it is."""

    text: str
    note: str = ""
    rows: int = 1
    head: bool = False
    number: bool = True
    strong: bool = False


@dataclass(frozen=True)
class Row:
    """One row; a faint one rests on too few patients to mean anything."""

    cells: tuple[Cell, ...]
    faint: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its title, footnotes by letter, and an optional line of headings over the columns.

    ``over`` holds (heading, columns) from left to right; ``words`` says which columns hold words, not
    numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    over: tuple[tuple[str, int], ...] = ()
    words: frozenset[int] = frozenset({0})
    notes: tuple[tuple[str, str], ...] = ()
    remark: str = ""
    fold: bool = False


@dataclass
class Notes:
    """Letters for footnotes; the same reason gets the same letter."""

    letters: dict[str, str] = field(default_factory=dict)

    def letter(self, reason: str | None) -> str:
        """Return the letter of a reason, a new one if it is new; no reason, no letter."""
        if not reason:
            return ""
        return self.exactly(words.general(reason))

    def exactly(self, text: str) -> str:
        """Return the letter of a note whose numbers are told."""
        if text not in self.letters:
            place = len(self.letters)
            again, first = divmod(place, len(ascii_lowercase))
            self.letters[text] = ascii_lowercase[first] * (again + 1)
        return self.letters[text]

    def listed(self) -> tuple[tuple[str, str], ...]:
        """Return (letter, reason) in the order in which the letters were given."""
        return tuple((letter, reason) for reason, letter in self.letters.items())


SMALL_GROUPS = (
    f"Grey rows rest on fewer than {MIN_PATIENTS} patients with a known status, on fewer than {MIN_RARER} of "
    f"the rarer kind, or on an AUC whose interval is wider than {MAX_AUC_WIDTH}: too few to tell."
)
MEASURES = (
    "Mutant or codeleted", "Unknown", "AUC", "Accuracy", "Always guessing", "Gain in points", "Sensitivity",
    "Specificity",
)  # fmt: skip


def overall_table(metrics: Mapping[Gene, GeneMetrics]) -> Table:
    """Return the measures of each marker over all held-out patients."""
    notes = Notes()
    rows = []
    for gene in (gene for gene in GENES if gene in metrics):
        row = _measures((_marker(gene),), metrics[gene], notes)
        log_loss = metrics[gene].log_loss
        cells = (*row.cells, Cell(words.decimal(log_loss.value), note=notes.letter(log_loss.reason)))
        rows.append(Row(cells, row.faint))
    return Table(
        title="All held-out patients",
        columns=("Marker", *MEASURES, "Log loss"),
        rows=tuple(rows),
        notes=notes.listed(),
        remark="In brackets: 95 % interval from resampling patients. Always guessing: the accuracy of naming "
        "the more frequent status for everybody; gain: the model's accuracy above that, in percentage points."
        + (f" {SMALL_GROUPS}" if any(row.faint for row in rows) else ""),
    )


def grouped_table(title: str, heading: str, groups: Mapping[str, Mapping[Gene, GeneMetrics]]) -> Table:
    """Return the measures of each marker per group, such as a site or a subset of sequences."""
    notes = Notes()
    rows = []
    for group, metrics in groups.items():
        genes = [gene for gene in GENES if gene in metrics]
        for place, gene in enumerate(genes):
            name = (Cell(group, rows=len(genes), head=True, number=False),)
            rows.append(_measures((*(name if place == 0 else ()), _marker(gene)), metrics[gene], notes))
    return Table(
        title=title,
        columns=(heading, "Marker", *MEASURES),
        rows=tuple(rows),
        words=frozenset({0, 1}),
        notes=notes.listed(),
        remark=SMALL_GROUPS if any(row.faint for row in rows) else "",
        fold=len(rows) > FOLD_ABOVE,
    )


def _marker(gene: Gene) -> Cell:
    return Cell(GENE_TITLES[gene], head=True, number=False)


def _measures(names: tuple[Cell, ...], metrics: GeneMetrics, notes: Notes) -> Row:
    def shown_measure(measure: Measure, text: str) -> Cell:
        return Cell(text, note=notes.letter(measure.reason))

    counts = told(metrics)
    return Row(
        cells=(
            *names,
            Cell(f"{counts.positive} of {counts.known}"),
            Cell(counts.unknown),
            shown_measure(metrics.auc, words.with_interval(metrics.auc)),
            shown_measure(metrics.accuracy, words.with_interval(metrics.accuracy, share=True)),
            shown_measure(metrics.majority, words.percent(metrics.majority.value)),
            shown_measure(metrics.gain, words.points(metrics.gain)),
            shown_measure(metrics.sensitivity, words.with_interval(metrics.sensitivity, share=True)),
            shown_measure(metrics.specificity, words.with_interval(metrics.specificity, share=True)),
        ),
        faint=metrics.caution is not None,
    )


def tumour_table(groups: Mapping[str, SegmentationMetrics]) -> Table:
    """Return how well the tumour was outlined, over all and per hospital."""
    notes = Notes()
    rows = []
    for name, found in groups.items():
        measures = (found.mean_dice, found.median_dice, found.mean_hd95_mm, found.mean_volume_error_ml)
        cells = (Cell(words.with_interval(m), note=notes.letter(m.reason)) for m in measures)
        rows.append(Row((Cell(name, head=True, number=False), Cell(outlined(found)), *cells)))
    return Table(
        title="Outline of the tumour",
        columns=("Patients of", "Outlined", "Dice", "Median Dice", "Distance in mm", "Volume off by mL"),
        rows=tuple(rows),
        notes=notes.listed(),
        remark="Dice: overlap with the expert's outline, 1 is perfect. Distance: 95th percentile between the "
        "two surfaces (HD95). Measured on the prepared grid.",
    )


WHO_SHORT: dict[WhoClass, str] = {
    WhoClass.OLIGODENDROGLIOMA: "Oligodendroglioma",
    WhoClass.ASTROCYTOMA: "Astrocytoma, IDH-mutant",
    WhoClass.IDH_WILDTYPE: "IDH-wild-type glioma",
    WhoClass.CONTRADICTORY: "Contradictory",
    WhoClass.UNDETERMINED: "Undetermined",
}


def who_table(who: WhoTable) -> Table:
    """Return measured class against predicted class; the two that are no class only where they occur."""
    known = [c for c in WhoClass if c in CLASSES or any(who.counts[c].values())]
    predicted = [c for c in WhoClass if c in CLASSES or any(who.counts[row][c] for row in WhoClass)]
    cells, totals = who_cells(who), who_totals(who)
    rows = tuple(
        Row(
            cells=(
                Cell(WHO_SHORT[row], head=True, number=False),
                *(Cell(cells[row][column], strong=row is column and row in CLASSES) for column in predicted),
                Cell(totals[row]),
            ),
        )
        for row in known
    )
    definitions = "; ".join(WHO_TITLES[c] for c in WhoClass if c in known or c in predicted)
    agreement = (
        f"Right in {words.with_interval(who.agreement, share=True)} of {shown(who.compared)} cases "
        f"whose measured markers give a class; always naming the most frequent class: "
        f"{words.percent(who.majority.value)}."
        if who.agreement.value is not None
        else f"No agreement can be given: {who.agreement.reason}."
    )
    return Table(
        title="Tumour class that the three markers imply (WHO 2021)",
        columns=("Measured", *(WHO_SHORT[c] for c in predicted), "All"),
        rows=rows,
        over=(("", 1), ("Predicted by the model", len(predicted)), ("", 1)),
        remark=f"{agreement} Classes: {definitions}. What the markers alone allow; it is no diagnosis.",
    )


def facts_table(title: str, facts: Mapping[str, object], *, fold: bool = False) -> Table:
    """Return names and values, one row each."""
    rows = tuple(
        Row((Cell(name, head=True, number=False), Cell(setting(value), number=False)))
        for name, value in facts.items()
    )
    return Table(title, ("What", "Value"), rows, words=frozenset({0, 1}), fold=fold)


def setting(value: object) -> str:
    """Return a value as text: yes and no, lists with commas, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(part) for part in value)
    return words.DASH if value is None else str(value)
