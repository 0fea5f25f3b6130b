"""``quality.html``: self-contained, no script, nothing fetched, each value escaped by the template engine."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.prepare import MIN_COVERAGE
from fedglioma.data.quality import (
    LEAST_DICE,
    NOISE_LIMITS,
    PEAK_LIMITS,
    VOLUME_WARN_ML,
    Measures,
)
from fedglioma.page import rendered
from fedglioma_client.pictures import Pictures
from fedglioma_client.remedies import REMEDIES, ROUTINE, by_reason, needs_a_look

if TYPE_CHECKING:
    from fedglioma_client.quality import CaseQuality, SiteQuality

TITLES: Final = {Modality.FLAIR: "FLAIR", Modality.T1CE: "T1 contrast", Modality.T1: "T1", Modality.T2: "T2"}
NOT_MEASURED: Final = "-"


@dataclass(frozen=True)
class Figure:
    """One cell: the text, and whether it asks for a look."""

    text: str
    warn: bool = False


@dataclass(frozen=True)
class Column:
    """One modality of a case: its title, picture and figures; no picture where it is missing."""

    title: str
    image: str | None
    place: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Card:
    """One case as the page shows it."""

    case: "CaseQuality"
    anchor: str
    columns: tuple[Column, ...]
    head: str | None
    brain: Figure
    masks: Figure | None


def page_name(page: int) -> str:
    """Return the file of a page, counted from 0."""
    return "quality.html" if page == 0 else f"quality-{page + 1}.html"


def render(
    report: "SiteQuality", shown: Sequence[tuple["CaseQuality", Pictures]], page: int, pages: int
) -> str:
    """Return one page; the first has the summary above its cases."""
    left_out = {finding.patient for finding in report.exclusions if finding.patient}
    attention = [case for case in report.cases if case.status == "warn"]
    return rendered(
        "fedglioma_client",
        "quality.html.j2",
        report=report,
        cards=[_card(case, pictures, page, number) for number, (case, pictures) in enumerate(shown)],
        page=page,
        names=[page_name(number) for number in range(pages)],
        passed=len(report.cases) - len(attention),
        attention=len(attention),
        left_out=len(left_out),
        by_code=_by_code(report),
        agreement=[
            (
                TITLES[row.modality],
                row.tissue,
                row.scanners,
                row.cases,
                *map(_percent, (row.raw, row.zscore, row.common, row.iiv_raw, row.iiv_common)),
            )
            for row in report.agreement
        ],
        scaled=any(row.common is not None for row in report.agreement),
        rows=ROWS,
        snr=NOISE_LIMITS,
        peak=PEAK_LIMITS,
        volume=VOLUME_WARN_ML,
        coverage=MIN_COVERAGE,
    )


ROWS: Final = (
    ("signal to noise", "brain over noise, on the scanner's own voxels"),
    ("contrast to noise", "grey against white matter; higher is better"),
    ("joint variation", "spread of grey and white matter over their distance; lower is better"),
    ("brain seen", "share of the brain inside the sequence's field of view"),
    ("fit to reference", "how many times more it shares with the reference here than 8 mm beside"),
    ("moved by", "turn and shift that laid it over the reference"),
)


def _card(case: "CaseQuality", pictures: Pictures, page: int, number: int) -> Card:
    low, high = VOLUME_WARN_ML
    volume = case.brain_ml
    agreed = case.mask_agreement
    return Card(
        case=case,
        anchor=f"case-{page + 1}-{number + 1}",
        columns=tuple(_column(case, modality, pictures) for modality in CHANNELS),
        head=None if pictures.head is None else _inline(pictures.head),
        brain=Figure(NOT_MEASURED)
        if volume is None
        else Figure(f"{volume:.0f} mL", not low <= volume <= high),
        masks=None if agreed is None else Figure(f"{agreed:.2f}", agreed < LEAST_DICE),
    )


def _column(case: "CaseQuality", modality: Modality, pictures: Pictures) -> Column:
    image = pictures.modalities.get(modality)
    measures = case.modalities.get(modality)
    reference = case.reference == modality
    return Column(
        title=TITLES[modality],
        image=None if image is None else _inline(image),
        place="reference" if reference else "",
        figures=() if measures is None else _figures(case, modality, measures),
    )


def _figures(case: "CaseQuality", modality: Modality, found: Measures) -> tuple[Figure, ...]:
    moved = case.movements.get(modality)
    still = "reference" if case.reference == modality else "same grid"
    return (
        _figure(found.snr, ".0f", below=NOISE_LIMITS[0]),
        _figure(found.cnr, ".2f", unusual=f"{modality.value}.cnr" in case.unusual),
        _figure(found.cjv, ".2f", unusual=f"{modality.value}.cjv" in case.unusual),
        Figure(f"{100 * found.coverage:.0f} %", found.coverage < MIN_COVERAGE),
        Figure("reference")
        if case.reference == modality
        else _figure(found.peak, ".1f", below=PEAK_LIMITS[0]),
        Figure(still if moved is None else f"{moved.degrees:.1f}°, {moved.millimetres:.1f} mm"),
    )


def _figure(value: float | None, form: str, *, below: float | None = None, unusual: bool = False) -> Figure:
    if value is None:
        return Figure(NOT_MEASURED)
    return Figure(format(value, form), unusual or (below is not None and value < below))


def _by_code(report: "SiteQuality") -> list[tuple[str, str, int, str]]:
    """Return what happened to how many patients and what to do, exclusions first."""
    kept = [one for case in report.cases for one in case.warnings] + list(report.warnings)
    return [
        (outcome, code, number, REMEDIES.get(code, "do what the message says"))
        for outcome, findings in (
            ("left out", report.exclusions),
            ("kept, look", needs_a_look(kept)),
            ("left aside", [one for one in kept if one.code in ROUTINE]),
        )
        for code, number in by_reason(findings).items()
    ]


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()
