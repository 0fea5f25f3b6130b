"""A hospital's cohort into its cache, and a report of what was left out that stays in the hospital.

``<cache>/<site>/prepare-report.json`` and ``findings.csv`` name patients, so only their owner may read
them. Nothing else of a run reads or sends them.
"""

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fedglioma.case import Finding, Frozen
from fedglioma.config.radiomics import FILE_NAME as RADIOMICS_NAME
from fedglioma.config.radiomics import radiomics_settings, radiomics_sha256
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.console import Progress, silent
from fedglioma.data.cache import Cache
from fedglioma.data.extractor import AUTO, check_command
from fedglioma.data.prepare import NonePrepared, Prepared, PrepareSettings, prepare_cases
from fedglioma.errors import DataError
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.words import cell
from fedglioma_client.intake import Unusable, read_site_cohort, secret_of
from fedglioma_client.known_scale import last_scale
from fedglioma_client.quality import describe, write_quality
from fedglioma_client.quality_page import page_name
from fedglioma_client.remedies import REMEDIES, ROUTINE, Listed, by_reason, needs_a_look
from fedglioma_client.verdict import several

REPORT_NAME: Final = "prepare-report.json"
LIST_NAME: Final = "findings.csv"
NOTHING: Final = Prepared((), (), ())


class PrepareReport(Frozen):
    """What became of a cohort; stays in the hospital.

    ``made`` cases were prepared now, ``found`` ones were there already. ``reason`` says why none is
    usable, where none is. ``radiomics_sha256`` is the checksum of the settings file that the fusion model's
    feature tables are made with, where images were prepared for it; the file lies beside the report.
    """

    created: datetime
    fedglioma: str
    site: str
    data: Path
    cache: Path
    layout: str
    synthetic: bool
    settings: PrepareSettings
    made: int
    found: int
    seconds: float
    exclusions: tuple[Listed, ...]
    warnings: tuple[Listed, ...]
    reason: str | None = None
    radiomics_sha256: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or that of a data error where no case is usable."""
        return 0 if self.reason is None else DataError.exit_code

    @property
    def folder(self) -> Path:
        """Where the report lies: a site's own folder, since sites may share a cache."""
        return self.cache / self.site

    def public(self) -> dict[str, Any]:
        """Return the result for machines: counts and where the report lies, no patient."""
        return {
            "site": self.site,
            "synthetic": self.synthetic,
            "spacing_mm": self.settings.spacing_mm,
            "prepared": self.made + self.found,
            "made": self.made,
            "found": self.found,
            "excluded": by_reason(self.exclusions),
            "warned": by_reason(self.warnings),
            "seconds": self.seconds,
            "report": str(self.folder / REPORT_NAME),
            "findings": str(self.folder / LIST_NAME),
            "quality": str(self.folder / page_name(0)),
        }

    def text(self) -> str:
        """Return the summary for reading, without a patient in it."""
        lines = [
            f"{self.site}: {several(self.made + self.found, 'case')} prepared "
            f"at {self.settings.spacing_mm:g} mm ({self.made} now, {self.found} were there already) "
            f"in {self.seconds:.0f} s"
        ]
        if self.synthetic:
            lines.insert(0, "SYNTHETIC DATA: made-up patients, nothing here is clinical evidence")
        routine = [one for one in self.warnings if one.code in ROUTINE]
        parts: list[tuple[str, Sequence[Finding]]] = [
            ("left out", self.exclusions),
            ("warnings, cases kept", needs_a_look(self.warnings)),
        ]
        if routine:
            parts.append(("left aside, as usual", routine))
        for title, listed in parts:
            lines.append(f"{title}: {len(listed)}")
            lines += [
                f"  {count:>4} {code}: {REMEDIES.get(code, 'see the list')}"
                for code, count in by_reason(listed).items()
            ]
        if self.exclusions or self.warnings:
            lines.append(f"patients and reasons: {self.folder / LIST_NAME}")
        if self.radiomics_sha256:
            lines.append(f"settings for PyRadiomics: {self.folder / RADIOMICS_NAME}")
        lines.append(f"pictures and figures: {self.folder / page_name(0)}")
        lines.append(f"report: {self.folder / REPORT_NAME}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Result:
    """What preparing gave, whether or not any case was usable."""

    prepared: Prepared
    exclusions: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    reason: str | None = None

    @property
    def arrays(self) -> tuple[str, ...]:
        return tuple(case.array.name for case in self.prepared.cases)


def prepare_site(config: SiteConfig, run: RunConfig, progress: Progress = silent) -> PrepareReport:
    """Return what became of the site's cohort, after preparing what the cache does not hold yet.

    Parameters
    ----------
    run : RunConfig
        Of it counts what says how images are prepared.

    Stopped and run again, it goes on where it stopped. The quality report is written beside the cache's
    volumes, in the site's own folder.

    Raises
    ------
    DataError
        The folder, its layout or its table cannot be made out; no report is due then.
    OSError
        The cache cannot be written.
    """
    started = time.perf_counter()
    if config.brain_extractor != AUTO:
        check_command(config.brain_extractor)
    settings = PrepareSettings.of(run, config.brain_extractor)
    cache = Cache(config.cache)
    before = {path.name for path in cache.folder.glob("*.npy")}
    cohort = read_site_cohort(config, secret_of(config))
    layout: str = config.layout
    synthetic = False
    if isinstance(cohort, Unusable):
        result = _Result(NOTHING, cohort.exclusions, (), cohort.reason)
    else:
        layout, synthetic = cohort.layout, cohort.synthetic
        try:
            prepared = prepare_cases(cohort.cases, settings, cache, workers=config.workers, progress=progress)
        except NonePrepared as error:
            left_out = (*cohort.exclusions, *error.exclusions)
            result = _Result(NOTHING, left_out, cohort.warnings, str(error))
        else:
            result = _Result(
                prepared,
                (*cohort.exclusions, *prepared.exclusions),
                (*cohort.warnings, *prepared.warnings),
            )
    quality = describe(
        config.site,
        result.prepared.cases,
        result.prepared.records,
        result.exclusions,
        result.warnings,
        spacing_mm=settings.spacing_mm,
        small_cell_limit=config.small_cell_limit,
        synthetic=synthetic,
        scale=last_scale(config) if run.common_scale else None,
    )
    write_quality(cache.folder / config.site, quality, result.prepared.cases, result.prepared.records)
    made = sum(name not in before for name in result.arrays)
    return PrepareReport(
        created=datetime.now(UTC),
        fedglioma=version("fedglioma"),
        site=config.site,
        data=config.data,
        cache=cache.folder,
        layout=layout,
        synthetic=synthetic,
        settings=settings,
        made=made,
        found=len(result.arrays) - made,
        seconds=round(time.perf_counter() - started, 1),
        exclusions=tuple(map(Listed.of, result.exclusions)),
        warnings=tuple(map(Listed.of, result.warnings)),
        reason=result.reason,
        radiomics_sha256=radiomics_sha256() if run.preprocessing == "fusion" else None,
    )


def write_report(report: PrepareReport) -> None:
    """Write the report and the list of findings, readable by their owner only.

    The list opens in a spreadsheet: comma-separated UTF-8 with a mark by which one recognises it.
    """
    report.folder.mkdir(parents=True, exist_ok=True)
    with replacing(report.folder / REPORT_NAME, mode=PRIVATE) as file:
        file.write(report.model_dump_json(indent=2).encode() + b"\n")
    if report.radiomics_sha256:
        with replacing(report.folder / RADIOMICS_NAME) as file:
            file.write(radiomics_settings())
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["outcome", *Listed.model_fields])
    for outcome, listed in (("left out", report.exclusions), ("kept with a warning", report.warnings)):
        writer.writerows(_rows(outcome, listed))
    with replacing(report.folder / LIST_NAME, mode=PRIVATE) as file:
        file.write(table.getvalue().encode("utf-8-sig"))


def _rows(outcome: str, listed: Iterable[Listed]) -> list[list[str]]:
    return [[outcome, *map(cell, entry.model_dump().values())] for entry in listed]
