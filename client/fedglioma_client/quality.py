"""The quality report of a prepared cohort: ``quality.html`` to look at, ``quality.json`` for machines.

Both name patients, show their images, lie beside the report of ``prepare`` and are readable by their owner
only. ``public_counts`` of the JSON file is the one part made to leave the hospital, if it wants to: counts
alone, small ones suppressed. Nothing sends it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from fedglioma.case import CHANNELS, Finding, Frozen, Modality
from fedglioma.counts import round_up, suppress
from fedglioma.data.cache import Moved, Record
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.quality import Measures
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.scale import Scale
from fedglioma_client.agreement import Agreement, agreement
from fedglioma_client.pictures import Pictures, pictures_of
from fedglioma_client.quality_page import page_name, render
from fedglioma_client.remedies import Listed, needs_a_look

DATA_NAME: Final = "quality.json"
CASES_PER_PAGE: Final = 50
FEWEST_FOR_UNUSUAL: Final = 8
UNUSUAL_DEVIATIONS: Final = 3.0
_MAD: Final = 1.4826


class CaseQuality(Frozen):
    """What is known of one prepared case; ``unusual`` names figures far from this hospital's own median."""

    patient: str
    scanner: str | None
    status: Literal["pass", "warn"]
    reference: Modality
    brain_ml: float | None
    mask_agreement: float | None
    tumour_ml: float | None = None
    modalities: dict[Modality, Measures]
    movements: dict[Modality, Moved]
    unusual: tuple[str, ...] = ()
    warnings: tuple[Listed, ...]


class PublicCounts(Frozen):
    """Counts that could leave the hospital: totals rounded up, small cells None; ``limit`` says how small."""

    limit: int
    cases: int
    passed: int | None
    warned: int | None
    excluded: int | None
    warned_by_code: dict[str, int | None]
    excluded_by_code: dict[str, int | None]


class SiteQuality(Frozen):
    """The whole report, without pictures."""

    created: datetime
    site: str
    synthetic: bool
    spacing_mm: float
    cases: tuple[CaseQuality, ...]
    warnings: tuple[Listed, ...]
    exclusions: tuple[Listed, ...]
    agreement: tuple[Agreement, ...]
    public_counts: PublicCounts


def describe(
    site: str,
    prepared: Sequence[PreparedCase],
    records: Sequence[Record],
    exclusions: Sequence[Finding],
    warnings: Sequence[Finding],
    *,
    spacing_mm: float,
    small_cell_limit: int,
    synthetic: bool = False,
    scale: Scale | None = None,
) -> SiteQuality:
    """Return the report of a cohort; ``warnings`` about no prepared patient stand in it by themselves."""
    by_patient: dict[str, list[Listed]] = defaultdict(list)
    for finding in warnings:
        by_patient[finding.patient].append(Listed.of(finding))
    patients = {one.case.patient for one in prepared}
    unusual = _unusual(records)
    cases = tuple(
        _case(one, record, tuple(by_patient[one.case.patient]), strange)
        for one, record, strange in zip(prepared, records, unusual, strict=True)
    )
    return SiteQuality(
        created=datetime.now(UTC),
        site=site,
        synthetic=synthetic,
        spacing_mm=spacing_mm,
        cases=cases,
        warnings=tuple(one for name, told in by_patient.items() if name not in patients for one in told),
        exclusions=tuple(map(Listed.of, exclusions)),
        agreement=agreement(records, [one.case.scanner for one in prepared], scale),
        public_counts=count(cases, exclusions, small_cell_limit),
    )


def count(cases: Sequence[CaseQuality], exclusions: Sequence[Finding], limit: int) -> PublicCounts:
    """Return counts of patients, once per code, small cells suppressed."""
    left_out = {finding.patient for finding in exclusions if finding.patient}
    statuses = Counter(case.status for case in cases)
    warned = Counter(code for case in cases for code in {one.code for one in case.warnings})
    excluded = Counter(code for _, code in {(f.patient, f.code) for f in exclusions})
    return PublicCounts(
        limit=limit,
        cases=round_up(len(cases) + len(left_out), limit),
        passed=suppress(statuses["pass"], limit),
        warned=suppress(statuses["warn"], limit),
        excluded=suppress(len(left_out), limit),
        warned_by_code={code: suppress(number, limit) for code, number in sorted(warned.items())},
        excluded_by_code={code: suppress(number, limit) for code, number in sorted(excluded.items())},
    )


def write_quality(
    folder: Path, report: SiteQuality, prepared: Sequence[PreparedCase], records: Sequence[Record]
) -> None:
    """Write ``quality.html``, a page more for every 50 cases, and ``quality.json``; one case open at a time.

    Raises
    ------
    OSError
        The folder cannot be written or a prepared volume not be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = max(1, -(-len(report.cases) // CASES_PER_PAGE))
    known: list[CaseQuality] = []
    for page in range(pages):
        shown: list[tuple[CaseQuality, Pictures]] = []
        for number in range(page * CASES_PER_PAGE, min((page + 1) * CASES_PER_PAGE, len(report.cases))):
            pictures = pictures_of(prepared[number], records[number])
            case = report.cases[number].model_copy(update={"tumour_ml": pictures.tumour_ml})
            shown.append((case, pictures))
        known += [case for case, _ in shown]
        with replacing(folder / page_name(page), mode=PRIVATE) as file:
            file.write(render(report, shown, page, pages).encode())
    for old in folder.glob("quality-*.html"):
        if old.name not in {page_name(page) for page in range(pages)}:
            old.unlink()
    data: dict[str, Any] = report.model_copy(update={"cases": tuple(known)}).model_dump(mode="json")
    with replacing(folder / DATA_NAME, mode=PRIVATE) as file:
        file.write(json.dumps(data, indent=1).encode() + b"\n")


def _case(
    prepared: PreparedCase, record: Record, warnings: tuple[Listed, ...], unusual: tuple[str, ...]
) -> CaseQuality:
    quality = record.quality
    return CaseQuality(
        patient=prepared.case.patient,
        scanner=prepared.case.scanner,
        status="warn" if needs_a_look(warnings) else "pass",
        reference=record.reference,
        brain_ml=None if quality is None else quality.brain_ml,
        mask_agreement=None if quality is None else quality.mask_agreement,
        modalities={} if quality is None else quality.modalities,
        movements=record.movements,
        unusual=unusual,
        warnings=warnings,
    )


def _unusual(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return each case's contrast figures that lie over 3 robust deviations from the cohort's median."""
    found: list[list[str]] = [[] for _ in records]
    for modality in CHANNELS:
        for name in ("cnr", "cjv"):
            values = {
                number: float(value)
                for number, record in enumerate(records)
                if record.quality
                and modality in record.quality.modalities
                and (value := getattr(record.quality.modalities[modality], name)) is not None
            }
            if len(values) < FEWEST_FOR_UNUSUAL:
                continue
            middle = float(np.median(list(values.values())))
            deviation = _MAD * float(np.median([abs(value - middle) for value in values.values()]))
            for number, value in values.items():
                if deviation > 0 and abs(value - middle) > UNUSUAL_DEVIATIONS * deviation:
                    found[number].append(f"{modality.value}.{name}")
    return [tuple(names) for names in found]
