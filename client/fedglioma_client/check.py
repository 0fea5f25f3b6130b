"""Preflight: everything that a round would trip over, looked at beforehand and told in one line each."""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from fedglioma.case import CLASS_TITLES, GENE_TITLES, GENES, UNKNOWN, Case, Finding, subset_name
from fedglioma.config.site import SiteConfig
from fedglioma.data import cache_identity
from fedglioma.data.cohort import Cohort
from fedglioma.data.manifest import WHOLE_COHORT
from fedglioma.errors import ConfigError, DataError, IdentityError
from fedglioma.pseudonym import SECRET_BYTES
from fedglioma_client.budget import check_budget
from fedglioma_client.check_server import check_way
from fedglioma_client.intake import Unusable, load_settings, read_site_cohort
from fedglioma_client.linkage import check_linkage
from fedglioma_client.machine import (
    check_cache,
    check_device,
    check_memory,
    check_processor,
    check_software,
    check_telemetry,
)
from fedglioma_client.remedies import by_reason, needs_a_look, remedy_of
from fedglioma_client.verdict import Status, Verdict, doubtful, failed, fine, several

SHOWN_PER_REASON: Final = 10
_COLOURS: Final = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red"}
_DATA: Final = DataError.exit_code


@dataclass(frozen=True)
class Checked:
    """Every verdict, and the cohort behind them; findings name patients and are for this terminal only."""

    site: str
    verdicts: tuple[Verdict, ...]
    cases: tuple[Case, ...] = ()
    exclusions: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    synthetic: bool = False

    @property
    def exit_code(self) -> int:
        """Exit code of the first failure, 0 where nothing failed."""
        return next((verdict.exit_code for verdict in self.verdicts if verdict.status is Status.FAILED), 0)

    def count(self, status: Status) -> int:
        """Return how many checks ended so."""
        return sum(verdict.status is status for verdict in self.verdicts)

    def data(self) -> dict[str, Any]:
        """Return the result for machines: counts and verdicts, no patient."""
        return {
            "site": self.site,
            "synthetic": self.synthetic,
            "checks": [
                {"check": v.subject, "status": v.status.value, "detail": v.detail, "remedy": v.remedy}
                for v in self.verdicts
            ],
            "cases": len(self.cases),
            "excluded": by_reason(self.exclusions),
            "warned": by_reason(self.warnings),
            "labels": label_counts(self.cases),
            "modalities": modality_counts(self.cases),
        }

    def summary(self) -> str:
        """Return one closing line."""
        warnings, failures = self.count(Status.WARNING), self.count(Status.FAILED)
        if failures:
            return f"{self.site}: {several(failures, 'check')} failed, {several(warnings, 'warning')}"
        return f"{self.site}: nothing failed, {several(warnings, 'warning')}"


@dataclass
class _Gathered:
    """What the data checks found out, for those that follow."""

    verdicts: list[Verdict] = field(default_factory=list)
    cases: tuple[Case, ...] = ()
    exclusions: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    synthetic: bool = False


def check_site(site: str, path: Path, spacing_mm: float) -> Checked:
    """Return what stands between a site and its first round.

    Nothing is written or made. Checks that build on a failed one are left out.
    """
    verdicts: list[Verdict] = []
    found = _Gathered()
    try:
        config = load_settings(path)
    except ConfigError as error:
        remedy = "correct the file; site_config/example.yaml explains every line"
        verdicts.append(failed("settings", str(error), remedy, exit_code=error.exit_code))
    else:
        verdicts.append(fine("settings", str(path)))
        found = _check_data(config)
        verdicts += found.verdicts
        verdicts += [
            check_cache(config.cache, len(found.cases), spacing_mm),
            _judge_cache(config, found),
            *check_linkage(config, found.cases),
            *check_budget(config),
            check_processor(config),
            check_memory(config.workers, spacing_mm),
            check_device(config.device, config.processes),
            *check_way(config),
        ]
    verdicts += [check_software(), check_telemetry()]
    return Checked(
        site, tuple(verdicts), found.cases, found.exclusions, found.warnings, synthetic=found.synthetic
    )


def _check_data(config: SiteConfig) -> _Gathered:
    """Return the verdicts on folder, cases, labels and sequences."""
    try:
        read = read_site_cohort(config, secrets.token_bytes(SECRET_BYTES))
    except DataError as error:
        remedy = "set data and layout in the settings file, or correct the folder"
        return _Gathered([failed("data", str(error), remedy, exit_code=error.exit_code)])
    if isinstance(read, Unusable):
        detail = "no patient can be used"
        remedy = "the list names each patient of the table; the first reason stands with it"
        blame = Finding(patient=WHOLE_COHORT, site=config.site, code="no_usable_case", message=read.reason)
        return _Gathered(
            [fine("data", str(config.data)), failed("cases", detail, remedy, exit_code=_DATA)],
            exclusions=(blame, *read.exclusions),
        )
    verdicts = [
        fine(
            "data",
            f"{config.data}: layout {read.layout}" + (", SYNTHETIC patients" if read.synthetic else ""),
        ),
        _judge_cases(read),
        _judge_labels(read.cases),
        fine("sequences", "; ".join(f"{name} {n}" for name, n in modality_counts(read.cases).items())),
    ]
    return _Gathered(verdicts, read.cases, read.exclusions, read.warnings, read.synthetic)


def _judge_cache(config: SiteConfig, found: _Gathered) -> Verdict:
    """Return whether what was prepared before says nowhere who the patients are."""
    everybody = {case.patient for case in found.cases} | {finding.patient for finding in found.exclusions}
    try:
        files = cache_identity.check_cache(config.cache, everybody)
    except IdentityError as error:
        remedy = "find out how they came there"
        return failed("identity", str(error), remedy, exit_code=error.exit_code)
    except OSError as error:
        detail = f"{config.cache}: cannot be looked through ({error.strerror or error})"
        remedy = "give this user the right to read it"
        return failed("identity", detail, remedy, exit_code=ConfigError.exit_code)
    return fine("identity", f"{several(files, 'file')} in the cache, none says who the patients are")


def _judge_cases(cohort: Cohort) -> Verdict:
    detail = f"{len(cohort.cases)} usable, {len(cohort.exclusions)} left out{_reasons(cohort.exclusions)}"
    warnings = needs_a_look(cohort.warnings)
    if warnings:
        detail += f", {several(len(warnings), 'warning')}{_reasons(warnings)}"
    if cohort.exclusions or warnings:
        return doubtful("cases", detail, "the list on the terminal says what to do for each")
    return fine("cases", detail)


def _judge_labels(cases: Sequence[Case]) -> Verdict:
    """Return how many labels of each marker are known; without any, a site has nothing to train on."""
    parts, unknown = [], []
    for gene in GENES:
        counts = label_counts(cases)[gene.value]
        known = len(cases) - counts["unknown"]
        zero, one = CLASS_TITLES[gene]
        parts.append(f"{GENE_TITLES[gene]} {known} known ({counts['1']} {one}, {counts['0']} {zero})")
        if not known:
            unknown.append(GENE_TITLES[gene])
    detail = "; ".join(parts)
    if len(unknown) == len(GENES):
        remedy = "fill idh, atrx or codel_1p19q in participants.tsv"
        return failed("labels", f"no marker is known: {detail}", remedy, exit_code=_DATA)
    if unknown:
        remedy = f"fill {', '.join(unknown)} in participants.tsv if measured; the site trains on the others"
        return doubtful("labels", detail, remedy)
    return fine("labels", detail)


def label_counts(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Return, for each marker, how many cases have label 0, label 1 and no known label."""
    counts = {gene.value: {"0": 0, "1": 0, "unknown": 0} for gene in GENES}
    for case in cases:
        for gene in GENES:
            label = case.genotype.label(gene)
            counts[gene.value]["unknown" if label == UNKNOWN else str(label)] += 1
    return counts


def modality_counts(cases: Sequence[Case]) -> dict[str, int]:
    """Return how many cases have each set of sequences, the most frequent first."""
    return dict(Counter(subset_name(case.present) for case in cases).most_common())


def print_verdicts(checked: Checked, console: Console) -> None:
    """Print one line per check, and the summary; nothing in them names a patient."""
    for verdict in checked.verdicts:
        remedy = f" -> {verdict.remedy}" if verdict.remedy else ""
        status = f"[{_COLOURS[verdict.status]}]{verdict.status.value:<8}[/]"
        console.print(f"{status} {verdict.subject:<10} {escape(verdict.detail + remedy)}", soft_wrap=True)
    console.print(checked.summary(), markup=False, soft_wrap=True)


def print_patients(checked: Checked, console: Console) -> None:
    """Print who was left out or warned about, with reason and remedy, for the hospital's own eyes."""
    for title, findings in (("left out", checked.exclusions), ("kept, with a warning", checked.warnings)):
        if findings:
            console.print(f"[bold]{title}[/] (patients are named on this terminal only)")
        for line in _grouped(findings):
            console.print(line, markup=False, soft_wrap=True)


def _grouped(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the findings by reason: the remedy once, then the first few patients."""
    ordered = sorted(findings, key=lambda finding: finding.code)  # stable: the table's order within a reason
    for code, group in groupby(ordered, key=lambda finding: finding.code):
        members = list(group)
        yield f"  {code} ({len(members)}): {remedy_of(members[0])}"
        for finding in members[:SHOWN_PER_REASON]:
            yield f"    {finding.patient or 'whole cohort'}: {finding.message}"
        if len(members) > SHOWN_PER_REASON:
            yield f"    and {len(members) - SHOWN_PER_REASON} more; prepare writes the whole list"


def _reasons(findings: Sequence[Finding]) -> str:
    told = ", ".join(f"{n} {code}" for code, n in by_reason(findings).items())
    return f" ({told})" if told else ""
