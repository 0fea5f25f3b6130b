"""A survival analysis as files and as text for the terminal.

The folder is the coordinator's own. The steps of a Kaplan-Meier curve show the follow-up of single
patients, in a small group nearly all of them, so ``results.json``, ``curves.csv`` and the figures are to
be handled like the table that they come from; no message to or from a site ever holds them.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path

from fedglioma.survival.analysis import Adjusted, Comparison, SurvivalResults
from fedglioma.survival.columns import TimeUnit
from fedglioma.survival.cox import HazardRatio
from fedglioma.survival.curves import Arm
from fedglioma.survival.small_cells import passed_on
from fedglioma_server.records import write_text

SYNTHETIC = "SYNTHETIC DATA"
RESULTS = "results.json"
CURVES = "curves.csv"
PH_ALPHA = 0.05
"""Below this p-value of the proportional-hazards check a ratio is shown with a warning."""
CURVE_COLUMNS = (
    "group", "marker", "class", "time", "months", "survival", "low", "high", "at_risk", "died", "censored",
)  # fmt: skip


def write_survival(results: SurvivalResults, folder: Path, *, draw: bool = False) -> tuple[Path, ...]:
    """Write the analysis into ``folder`` and return the files: results, curves, with ``draw`` the figures.

    ``curves.csv`` has a row per step of every curve, its time in the table's unit and in months; an
    interval's end that does not exist is an empty cell. Each file appears whole or not at all. A run's
    report draws its own figures; ``draw`` is for an analysis that has no report.
    """
    files = {RESULTS: results.model_dump_json() + "\n", CURVES: _curves_csv(results)}
    if draw:
        files |= _drawings(results)
    for name, text in files.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in files)


def survival_text(results: SurvivalResults) -> str:
    """Return the analysis as aligned plain text: comparisons, numbers at risk, models, remarks."""
    blocks = [
        _head(results),
        _aligned(_comparison_rows(results), numeric={3, 4, 6, 7}),
        *_at_risk_blocks(results),
        *(_adjusted_block(adjusted) for adjusted in results.adjusted),
        "\n".join(_remarks(results)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def p_text(p: float) -> str:
    """Return a p-value with two significant digits: ``0.0086``, ``0.24``, ``4.5e-31``."""
    if p == 0:
        return "<1e-300"
    return f"{p:.1e}" if p < 0.001 else f"{p:#.2g}"


def _curves_csv(results: SurvivalResults) -> str:
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    months = results.months_per_unit
    for comparison in results.comparisons:
        for arm in comparison.arms:
            curve = arm.curve
            steps = zip(
                curve.time, curve.survival, curve.low, curve.high, curve.at_risk, curve.died, curve.censored,
                strict=True,
            )  # fmt: skip
            for time, *values in steps:
                numbers = (time, None if months is None else time * months, *values)
                cells = ("" if number is None else f"{number:.8g}" for number in numbers)
                writer.writerow((comparison.group.value, comparison.marker, arm.label, *cells))
    return stream.getvalue()


def _drawings(results: SurvivalResults) -> dict[str, str]:
    """Return an SVG per comparison by file name."""
    # Imported here: drawing takes matplotlib, which takes a second to load, and text and tables do not.
    from fedglioma_server.figures import kaplan_meier
    from fedglioma_server.report_survival import curve_steps

    scale = results.months_per_unit or 1.0
    return {
        _figure_name(comparison): kaplan_meier(
            curve_steps(comparison, scale),
            [tick * scale for tick in comparison.ticks],
            title=f"{comparison.title}, {comparison.group.value}",
            subtitle=f"log-rank p = {p_text(comparison.log_rank.p)}" if comparison.log_rank else "no test",
            axis="Months since diagnosis" if results.months_per_unit else "Time (unit not stated)",
            stamp=SYNTHETIC if results.synthetic else "",
        )
        for comparison in passed_on(results).comparisons
        if any(arm.curve.time for arm in comparison.arms)
    }


def _figure_name(comparison: Comparison) -> str:
    name = f"km-{comparison.group.value}-{comparison.marker}".casefold()
    return "".join(letter if letter.isalnum() else "-" for letter in name) + ".svg"


def _head(results: SurvivalResults) -> str:
    banner = (
        f"{SYNTHETIC}: made-up patients, nothing here is clinical evidence\n" if results.synthetic else ""
    )
    columns = results.columns
    used = f"{results.n} of {results.rows} patients, {results.events} of whom died"
    return (
        f"{banner}{results.source}: {used}; time {columns.time} ({results.unit.value}), event {columns.event}"
    )


def _comparison_rows(results: SurvivalResults) -> Iterator[Sequence[str]]:
    unit = "months" if results.months_per_unit else results.unit.value
    unit = "unit unknown" if results.unit is TimeUnit.UNKNOWN else unit
    yield (
        "group", "marker", "class", "patients", "died", f"median, {unit} (95 %)", "chi2", "log-rank p",
        "hazard ratio (95 %)",
    )  # fmt: skip
    scale = results.months_per_unit or 1.0
    before = ""
    for comparison in results.comparisons:
        group = comparison.group.value if comparison.group.value != before else ""
        before = comparison.group.value
        if not comparison.arms:
            yield (group, comparison.title, "all unknown", "0", "0", "-", "-", "-", "-")
        for place, arm in enumerate(comparison.arms):
            first = place == 0
            yield (
                group if first else "",
                comparison.title if first else "",
                arm.label,
                str(arm.n),
                str(arm.events),
                _median(arm, scale),
                *_test(comparison, last=place == len(comparison.arms) - 1),
                "1 (reference)" if first else _ratio_of(comparison, arm),
            )


def _test(comparison: Comparison, *, last: bool) -> tuple[str, str]:
    """Return chi2 and p beside the comparison's last class, where the eye arrives having seen them all."""
    if not last:
        return "", ""
    test = comparison.log_rank
    return ("-", "-") if test is None else (f"{test.chi2:.2f}", p_text(test.p))


def _median(arm: Arm, scale: float) -> str:
    low, middle, high = (
        "-" if value is None else f"{value * scale:.1f}"
        for value in (arm.median_low, arm.median, arm.median_high)
    )
    return "not reached" if arm.median is None else f"{middle} ({low} to {high})"


def _ratio_of(comparison: Comparison, arm: Arm) -> str:
    found = next((row for row in comparison.cox.rows if row.label == arm.label), None)
    return "-" if found is None else _ratio(found)


def _ratio(row: HazardRatio) -> str:
    ratio, low, high = (
        f"{value:.2f}" if value < 1000 else ">1000" for value in (row.ratio, row.low, row.high)
    )
    return f"{ratio} ({low} to {high})"


def _at_risk_blocks(results: SurvivalResults) -> Iterator[str]:
    scale = results.months_per_unit or 1.0
    unit = " months" if results.months_per_unit else ""
    for group in dict.fromkeys(comparison.group for comparison in results.comparisons):
        found = [c for c in results.comparisons if c.group is group and c.arms]
        if not found:
            continue
        ticks = found[0].ticks
        rows = [("", "", *(f"{tick * scale:g}" for tick in ticks))]
        for comparison in found:
            for place, arm in enumerate(comparison.arms):
                title = f"  {comparison.title}" if place == 0 else ""
                rows.append((title, arm.label, *(str(count) for count in arm.at_risk)))
        table = _aligned(rows, numeric=set(range(2, 2 + len(ticks))))
        yield f"at risk, {group.value}, after{unit}\n{table}"


def _adjusted_block(adjusted: Adjusted) -> str:
    model = adjusted.model
    head = f"all together, {adjusted.group.value}: {model.n} patients, {model.events} died"
    if not model.rows:
        return f"{head}: no model, {model.reason}"
    rows: list[Sequence[str]] = [("", "", "hazard ratio (95 %)", "p", "constant over time, p")]
    rows += [
        (
            f"  {row.covariate}",
            f"{row.label} against {row.reference}",
            _ratio(row),
            p_text(row.p),
            "-" if row.ph_p is None else p_text(row.ph_p),
        )
        for row in model.rows
    ]
    concordance = "" if model.concordance is None else f", concordance {model.concordance:.2f}"
    caution = f" (caution: {model.caution})" if model.caution else ""
    return f"{head}{concordance}{caution}\n" + _aligned(rows, numeric={3, 4})


def _remarks(results: SurvivalResults) -> Iterator[str]:
    for part in results.left_out:
        named = ", ".join(str(line) for line in part.lines)
        more = ", ..." if part.rows > len(part.lines) else ""
        yield f"left out: {part.rows} ({part.reason}; line{'s' * (part.rows > 1)} {named}{more})"
    concerns: dict[str, list[str]] = {}
    for comparison in results.comparisons:
        place = f"{comparison.group.value} {comparison.title}"
        for concern, detail in _concerns(comparison):
            concerns.setdefault(concern, []).append(place + detail)
    yield from (f"{concern}: {', '.join(places)}" for concern, places in concerns.items())
    yield from (f"note: {note}" for note in results.notes)


def _concerns(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield what stands against reading a comparison at face value, with what is special to this one."""
    if not comparison.arms:
        return
    if comparison.caution:
        yield "caution, too few deaths or patients to conclude anything", ""
    if comparison.log_rank_reason:
        yield f"no log-rank test, {comparison.log_rank_reason}", ""
    elif comparison.cox.reason:
        yield "no hazard ratio", f" ({comparison.cox.reason})"
    for row in comparison.cox.rows:
        if row.ph_p is not None and row.ph_p < PH_ALPHA:
            yield (
                "hazard ratio changes over time, one number sums it up only roughly",
                (f" {row.label} (p {p_text(row.ph_p)})"),
            )


def _aligned(rows: Iterable[Sequence[str]], numeric: set[int]) -> str:
    """Return rows as columns two spaces apart; those in ``numeric`` end flush on the right."""
    table = [tuple(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = (
        "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)
