"""Figures of the report: from numbers to SVG text, the same numbers giving the same text.

Colours are Okabe and Ito's, told apart by colour-blind readers; every line has its own dash and marker
as well, so that a grey print still tells them apart. Text stays text: it can be searched, read aloud,
and takes the page's font.
"""

import re
import textwrap
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from math import ceil
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import blended_transform_factory

INK, SOFT, FAINT = "#1d2733", "#5b6775", "#dfe4ea"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072b2", "#d55e00", "#009e73", "#b0578d", "#c98a00", "#4a9fd0", INK,
)  # fmt: skip
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LINE = 0.2
"""Inches between two lines of a legend or of the numbers at risk."""
LONGEST = 24
"""Letters of a name that a legend or the numbers at risk show."""
FOREST_LONGEST = 48
"""Letters of a row's name in a forest plot."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "text.parse_math": False,  # a site's name may hold a dollar sign
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#8b96a3",
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": "#8b96a3",
    "ytick.color": "#8b96a3",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}


@dataclass(frozen=True)
class Curve:
    """A line over the rounds; None where there is no value.

    ``style`` picks colour, dash and marker; None is the one bold line that the others belong to.
    """

    label: str
    values: Sequence[float | None]
    style: int | None = 0


@dataclass(frozen=True)
class Interval:
    """A value with its interval, as a row of a forest plot; ``bold`` is the row that others are read against.

    ``hollow`` marks a value of other patients, such as a paper's.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    bold: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class SurvivalStep:
    """One group's Kaplan-Meier curve: step times with survival and its band, and who is at risk.

    The steps begin at time 0 with survival 1. A band is None where it is not defined. ``at_risk`` holds
    one count per tick of the shared axis, in its order: a number, or ``<5``.
    """

    label: str
    times: Sequence[float]
    survival: Sequence[float]
    lower: Sequence[float | None]
    upper: Sequence[float | None]
    censored: Sequence[float]
    at_risk: Sequence[int | str]
    patients: int | str
    style: int = 0


def round_curves(
    rounds: Sequence[int],
    curves: Sequence[Curve],
    *,
    title: str,
    axis: str,
    chosen: int | None = None,
    chosen_label: str = "chosen",
    chance: float | None = None,
    span: tuple[float, float] | None = None,
    stamp: str = "",
) -> str:
    """Return the SVG of values by round; the chosen round is marked by a vertical band.

    Parameters
    ----------
    rounds : round numbers, one per value of each curve.
    chance : value of guessing, drawn as a thin line.
    span : fixed limits of the value axis.
    stamp : a warning in the corner that stays with the figure wherever it goes, as for the others below.
    """
    columns = _columns([_short(curve.label) for curve in curves], 4.15)
    legend = LINE * ceil(len(curves) / columns)
    with _figure(4.3, 2.95 + legend) as figure:
        axes = _axes(figure, left=0.62, right=0.12, bottom=0.5, top=0.5 + legend)
        _title(figure, title, stamp=stamp)
        if chance is not None:
            axes.axhline(chance, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        if chosen is not None:
            axes.axvline(chosen, color=SOFT, linewidth=5, alpha=0.18, zorder=0.5)
            axes.annotate(
                chosen_label, (chosen, 1.0), xycoords=("data", "axes fraction"),
                xytext=(0, 2), textcoords="offset points", ha=_side(chosen, rounds), va="bottom",
                color=SOFT, fontsize=8,
            )  # fmt: skip
        for curve in curves:
            _draw_curve(axes, rounds, curve)
        axes.set_xlabel("Round")
        axes.set_ylabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        first, last = min(rounds, default=0), max(rounds, default=1)
        margin = max(0.35, 0.02 * (last - first))
        axes.set_xlim(first - margin, last + margin)
        if span is not None:
            axes.set_ylim(*span)
        _legend(figure, axes, columns=columns, top=0.28)
        return _svg(figure, title)


def roc_curve(
    false_positive: Sequence[float],
    true_positive: Sequence[float],
    *,
    title: str,
    subtitle: str,
    threshold_point: tuple[float, float] | None = None,
    stamp: str = "",
) -> str:
    """Return the SVG of a receiver operating characteristic, both axes from 0 to 100 %.

    ``threshold_point`` is (1 - specificity, sensitivity) at the threshold that the tables use.
    """
    with _figure(3.7, 3.95) as figure:
        axes = _axes(figure, left=0.58, right=0.14, bottom=0.5, top=0.52)
        _title(figure, title, subtitle, stamp)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.fill_between(false_positive, true_positive, color=BLUE, alpha=0.08, linewidth=0)
        axes.plot(false_positive, true_positive, color=BLUE, solid_joinstyle="miter")
        if threshold_point is not None:
            axes.plot(
                *threshold_point, marker="o", markersize=7, color="white", markeredgecolor=VERMILLION,
                markeredgewidth=1.8, linestyle="none", label="at a probability of 50 %", clip_on=False,
            )  # fmt: skip
            axes.legend(loc="lower right", handletextpad=0.2, borderaxespad=0.3)
        for limit in (axes.set_xlim, axes.set_ylim):
            limit(-0.015, 1.015)
        percent = FuncFormatter(lambda value, _: f"{100 * value:.0f}")
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.set_xlabel("False alarms (1 - specificity, %)")
        axes.set_ylabel("Found (sensitivity, %)")
        return _svg(figure, title)


def membership_curve(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    allowed: Callable[[float], float] | None,
    title: str,
    subtitle: str,
    least: float,
    stamp: str = "",
) -> str:
    """Return the SVG of attacks as true over false positive rates, both axes logarithmic.

    They go from ``least`` to 1. ``allowed`` is the largest true positive rate that privacy leaves at a
    false positive rate.
    """
    labels = [name for name, _ in curves] + (["allowed"] if allowed is not None else [])
    columns = _columns(labels, 3.6)
    legend = LINE * ceil(len(labels) / columns)
    with _figure(3.9, 4.0 + legend) as figure:
        axes = _axes(figure, left=0.62, right=0.14, bottom=0.5, top=0.52 + legend)
        _title(figure, title, subtitle, stamp)
        grid = [least * (1 / least) ** (step / 200) for step in range(201)]
        axes.plot(grid, grid, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        for style, (name, points) in enumerate(curves):
            shown = [(max(false, least), max(true, least)) for false, true in points]
            false, true = [point[0] for point in shown], [point[1] for point in shown]
            axes.plot(false, true, drawstyle="steps-post", label=_short(name), **_look(style))
        if allowed is not None:
            values = [allowed(value) for value in grid]
            axes.plot(grid, values, color=INK, linewidth=2.2, label="allowed")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for limit in (axes.set_xlim, axes.set_ylim):
            limit(least, 1.05)
        percent = FuncFormatter(lambda value, _: f"{100 * value:g}")
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.set_xlabel("Non-members taken for members (%)")
        axes.set_ylabel("Members found (%)")
        _legend(figure, axes, columns=columns, top=0.5)
        return _svg(figure, title)


def forest(
    rows: Sequence[Interval],
    *,
    title: str,
    axis: str,
    subtitle: str = "",
    line: float | None = None,
    stamp: str = "",
) -> str:
    """Return the SVG of values with their intervals, one row each, from top to bottom.

    ``line`` is drawn from top to bottom: guessing, or no difference.
    """
    shown = [textwrap.shorten(row.label, FOREST_LONGEST, placeholder="...") for row in rows]
    left = 0.25 + 0.072 * max((len(label) for label in shown), default=0)
    with _figure(left + 3.4, 1.15 + 0.26 * len(rows)) as figure:
        axes = _axes(figure, left=left, right=0.2, bottom=0.5, top=0.55 if subtitle else 0.4)
        _title(figure, title, subtitle, stamp)
        if line is not None:
            axes.axvline(line, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        for place, row in enumerate(rows):
            color = SOFT if row.hollow else BLUE
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=color, linewidth=1.4)
            axes.plot(
                row.value, place, marker="D" if row.hollow else "o", markersize=7 if row.bold else 5.5,
                markerfacecolor="white" if row.hollow else color, markeredgecolor=color, linestyle="none",
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), shown)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(axis)
        return _svg(figure, title)


def kaplan_meier(
    groups: Sequence[SurvivalStep],
    ticks: Sequence[float],
    *,
    title: str,
    subtitle: str,
    axis: str = "Months since diagnosis",
    stamp: str = "",
) -> str:
    """Return the SVG of survival curves with 95 % bands, censor ticks and the numbers at risk below.

    ``ticks`` are the times at which the numbers at risk are counted.
    """
    labels = [f"{_short(group.label)} (n = {group.patients})" for group in groups]
    columns = _columns(labels, 4.1)
    legend = LINE * ceil(len(groups) / columns)
    table = LINE * (len(groups) + 1)
    left = max(0.75, 0.3 + 0.078 * max((len(_short(group.label)) for group in groups), default=0))
    with _figure(4.3, 2.85 + legend + table) as figure:
        axes = _axes(figure, left=left, right=0.2, bottom=0.55 + table, top=0.56 + legend)
        _title(figure, title, subtitle, stamp)
        for group, label in zip(groups, labels, strict=True):
            _draw_group(axes, group, label)
        axes.set_ylim(-0.02, 1.03)
        last = max([*ticks, *(time for group in groups for time in group.times)], default=0) or 1.0
        axes.set_xlim(-0.015 * last, last * 1.015)
        axes.set_xticks(list(ticks))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlabel(axis)
        axes.set_ylabel("Patients alive")
        _legend(figure, axes, columns=columns, top=0.47)
        _numbers_at_risk(figure, axes, groups, ticks)
        return _svg(figure, title)


def embed(svg: str, key: str, description: str) -> str:
    """Return an SVG ready to stand inside an HTML page beside others.

    The XML declaration, doctype and namespaces go (HTML knows them), the ids that are used get ``key``
    in front so that two figures never share one, and the figure gets a description to be read aloud.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\s+xmlns(?::\w+)?="[^"]*"', "", body)
    for name in sorted(set(re.findall(r'\bid="([^"]+)"', body)), key=len, reverse=True):
        body = body.replace(f'id="{name}"', f'id="{key}-{name}"').replace(f'#{name}"', f'#{key}-{name}"')
        body = body.replace(f"url(#{name})", f"url(#{key}-{name})")
    body = body.replace("xlink:href", "href")
    opening, rest = body.split(">", 1)
    rest = re.sub(r"\s*<title>.*?</title>", "", rest, count=1, flags=re.DOTALL)
    spoken = f'<title id="{key}-label">{escape(description)}</title>'
    return f'{opening} role="img" aria-labelledby="{key}-label">\n{spoken}{rest}'


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width, height))


def _axes(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> Axes:
    """Return axes with margins in inches, so that what stands around them keeps its size."""
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )


def _title(figure: Figure, title: str, subtitle: str = "", stamp: str = "") -> None:
    width, height = figure.get_size_inches()
    figure.text(0.06 / width, 1 - 0.05 / height, title, fontsize=10.5, fontweight="bold", va="top")
    if subtitle:
        figure.text(0.06 / width, 1 - 0.27 / height, subtitle, fontsize=9, color=SOFT, va="top")
    if stamp:
        figure.text(
            1 - 0.06 / width, 1 - 0.05 / height, stamp, fontsize=8, color=VERMILLION, fontweight="bold",
            va="top", ha="right",
        )  # fmt: skip


def _side(value: float, values: Sequence[int]) -> str:
    first, last = min(values), max(values)
    share = (value - first) / (last - first) if last > first else 0.5
    return "left" if share < 0.15 else "right" if share > 0.85 else "center"


def _columns(labels: Sequence[str], width: float) -> int:
    """Return how many legend entries fit side by side in so many inches."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(4, len(labels), int(width / (0.55 + 0.075 * longest))))


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _look(style: int) -> dict[str, Any]:
    return {"color": COLORS[style % len(COLORS)], "linestyle": DASHES[style % len(DASHES)]}


def _draw_curve(axes: Axes, rounds: Sequence[int], curve: Curve) -> None:
    values = _numbers(curve.values)
    if curve.style is None:
        axes.plot(rounds, values, color=INK, linewidth=2.4, label=_short(curve.label), **_dot(rounds))
        return
    every = max(1, len(rounds) // 12)
    axes.plot(
        rounds, values, linewidth=1.6, marker=MARKERS[curve.style % len(MARKERS)], markersize=5,
        markeredgecolor="white", markeredgewidth=0.6, markevery=(curve.style % every, every),
        label=_short(curve.label), **_look(curve.style),
    )  # fmt: skip


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _dot(rounds: Sequence[int]) -> dict[str, Any]:
    """Return a marker for a line of one point, which would otherwise be invisible."""
    return {"marker": "o", "markersize": 5} if len(rounds) < 2 else {}


def _draw_group(axes: Axes, group: SurvivalStep, label: str) -> None:
    look = _look(group.style)
    lower, upper = _numbers(group.lower), _numbers(group.upper)
    axes.fill_between(group.times, lower, upper, step="post", color=look["color"], alpha=0.13, linewidth=0)
    # a dashed line over a solid one leaves both to be seen where they run together
    axes.plot(
        group.times, group.survival, drawstyle="steps-post", label=label, zorder=2 + 0.1 * group.style, **look
    )
    heights = [_survival_at(group, time) for time in group.censored]
    axes.plot(
        group.censored, heights, linestyle="none", marker="|", markersize=6, markeredgewidth=1.0,
        color=look["color"],
    )  # fmt: skip


def _survival_at(group: SurvivalStep, time: float) -> float:
    step = bisect_right(group.times, time)
    return group.survival[step - 1] if step else 1.0


def _numbers_at_risk(
    figure: Figure, axes: Axes, groups: Sequence[SurvivalStep], ticks: Sequence[float]
) -> None:
    width, height = figure.get_size_inches()
    top = LINE * len(groups) + 0.12
    figure.text(0.06 / width, top / height, "At risk", color=SOFT, fontsize=8.5, va="center")
    # months across, inches up: the counts stand under their ticks at the height of their group's name
    place = blended_transform_factory(axes.transData, figure.dpi_scale_trans)
    for row, group in enumerate(groups, start=1):
        level = top - LINE * row
        figure.text(
            0.06 / width, level / height, _short(group.label), color=_look(group.style)["color"],
            fontsize=8.5, va="center", fontweight="bold",
        )  # fmt: skip
        for tick, count in zip(ticks, group.at_risk, strict=True):
            axes.text(tick, level, str(count), transform=place, ha="center", va="center", fontsize=8.5)


def _legend(figure: Figure, axes: Axes, *, columns: int, top: float) -> None:
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    if handles:
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0.06 / width, 1 - top / height), ncols=columns,
            borderpad=0, borderaxespad=0, labelspacing=0.35, columnspacing=1.4, handlelength=2.3,
        )  # fmt: skip


def _svg(figure: Figure, title: str) -> str:
    """Return the figure's SVG: no date, no maker, ids that depend on the drawing alone, short numbers."""
    nothing: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        # text stays text: what this machine's font lacks, such as a Chinese name, the reader's has
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict(nothing))
    return _tidy(buffer.getvalue(), title)


def _tidy(svg: str, title: str) -> str:
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), svg)
    used = set(re.findall(r"#([\w-]+)[)\"]", svg))
    svg = re.sub(r'\s+id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    opening = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:opening]}\n <title>{escape(title)}</title>{svg[opening:]}"
