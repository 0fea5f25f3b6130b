"""Cohorts in, hospitals out: whose cases a simulated federation is made of.

Sites come from one of four places: the cohorts' ``site`` column, a choice of names from it, a number of
hospitals to divide the patients into, or hospitals' own settings files.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedglioma.case import Case, Finding
from fedglioma.config.privacy import LARGEST_DELTA
from fedglioma.config.site import (
    MOST_EPSILON,
    SMALL_CELL_LIMIT,
    PrivacyLimits,
    SiteConfig,
    load_site_config,
    site_name,
)
from fedglioma.data.cohort import Cohort, read_cohort, read_cohorts
from fedglioma.data.person import NUMBER, Sign, signs
from fedglioma.errors import ConfigError, DataError
from fedglioma.words import cell, without_quoted
from fedglioma_server.device import usable_device
from fedglioma_server.records import DataIssue, write_text


@dataclass(frozen=True)
class Hospital:
    """A simulated site: its settings, its usable cases, and whether a file of its own describes it."""

    config: SiteConfig
    cases: tuple[Case, ...]
    described: bool = False


@dataclass(frozen=True)
class Gathering:
    """Everything that was read: hospitals by name, and what was found wrong."""

    hospitals: tuple[Hospital, ...]
    exclusions: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    synthetic: bool
    cohorts: tuple[str, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """All usable cases, hospital by hospital."""
        return tuple(case for hospital in self.hospitals for case in hospital.cases)


@dataclass(frozen=True)
class SiteDefaults:
    """Settings of hospitals that have no file of their own."""

    cache: Path
    workers: int = 1
    threads: int = 0
    device: str = "cpu"
    small_cell_limit: int = SMALL_CELL_LIMIT


def gather(
    folders: Sequence[Path], spec: str | None, defaults: SiteDefaults, *, purpose: str = "research"
) -> Gathering:
    """Return the hospitals of a simulation.

    Parameters
    ----------
    folders : sequence of Path
        Cohorts; may be empty where ``spec`` names settings files.
    spec : str, optional
        ``None``: the site column. A number: divide the patients into that many hospitals. Names,
        separated by commas: only these sites. Paths of settings files or of a folder of them,
        separated by commas: these hospitals with their own data.
    purpose : str
        What the run is for; patients who agreed to something else are left out.

    Raises
    ------
    ConfigError
        The specification fits neither, or names a site that the cohorts do not have.
    DataError
        A cohort cannot be read, or no usable case is left.
    """
    files = settings_files(spec)
    if files:
        if folders:
            raise ConfigError(f"--sites {spec}: settings files name their own data; leave --cohort out")
        return _from_settings(files, defaults, purpose)
    if not folders:
        raise ConfigError(
            "nothing to simulate on: give --cohort DIR, --synthetic N, or --sites with settings files"
        )
    cohort = read_cohorts(folders, purpose=purpose)
    names = tuple(folder.resolve().name for folder in folders)
    groups = _divide(cohort, spec)
    hospitals = tuple(
        Hospital(_settings(name, folders[0], defaults), tuple(cases))
        for name, cases in sorted(groups.items())
    )
    return Gathering(
        hospitals, _by_site(cohort.exclusions), _by_site(cohort.warnings), cohort.synthetic, names
    )


def _by_site(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings under their site's name, as cases stand, where its words make a name."""
    named = []
    for finding in findings:
        try:
            named.append(finding.model_copy(update={"site": site_name(finding.site)}))
        except ConfigError:
            named.append(finding)
    return tuple(named)


def settings_files(spec: str | None) -> list[Path]:
    """Return the settings files that a specification names; none where it names something else.

    Raises
    ------
    ConfigError
        Only some of its parts are settings files.
    """
    found: list[Path] = []
    others: list[str] = []
    for part in map(Path, names_in(spec or "")):
        inside = sorted(path for path in part.glob("*.yaml") if path.stem != "example")
        if part.suffix in (".yaml", ".yml"):
            found.append(part)
        elif inside:
            found += inside
        else:
            others.append(str(part))
    if found and others:
        raise ConfigError(f"--sites {spec}: {others[0]} is no settings file and no folder of them")
    return found


def names_in(text: str) -> list[str]:
    """Return what stands between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_settings(files: Sequence[Path], defaults: SiteDefaults, purpose: str) -> Gathering:
    hospitals, exclusions, warnings, synthetic = [], [], [], False
    seen: set[str] = set()
    for path in files:
        config = load_site_config(path)
        if config.site in seen:
            raise ConfigError(f"{path}: site {config.site} has a second settings file")
        seen.add(config.site)
        usable_device(config.device, f"{path}: device:")
        layout = None if config.layout == "auto" else config.layout
        cohort = read_cohort(config.data, layout=layout, purpose=purpose)
        cases = tuple(case.model_copy(update={"site": config.site}) for case in cohort.cases)
        hospitals.append(Hospital(config.model_copy(update={"cache": defaults.cache}), cases, described=True))
        exclusions += [finding.model_copy(update={"site": config.site}) for finding in cohort.exclusions]
        warnings += [finding.model_copy(update={"site": config.site}) for finding in cohort.warnings]
        synthetic = synthetic or cohort.synthetic
    _require_distinct(hospitals)
    names = tuple(hospital.config.site for hospital in hospitals)
    return Gathering(tuple(hospitals), tuple(exclusions), tuple(warnings), synthetic, names)


def _require_distinct(hospitals: Sequence[Hospital]) -> None:
    owners: dict[Sign, str] = {}
    for hospital in hospitals:
        for case in hospital.cases:
            for sign in signs(case.patient, case.linkage_id):
                other = owners.setdefault(sign, hospital.config.site)
                if other != hospital.config.site:
                    what = "linkage_id" if sign.kind == NUMBER else "id"
                    raise DataError(
                        f"{hospital.config.site} and {other} hold a patient of the same {what}: a patient in "
                        "two hospitals could be trained on and held out at once; remove one, or correct the "
                        f"{what} if they are two people"
                    )


def _divide(cohort: Cohort, spec: str | None) -> dict[str, list[Case]]:
    if spec is not None and spec.strip().isdecimal():
        return _deal(cohort.cases, int(spec))
    groups: dict[str, list[Case]] = {}
    for case in cohort.cases:
        name = site_name(case.site)
        groups.setdefault(name, []).append(case.model_copy(update={"site": name}))
    if spec is None:
        return groups
    wanted = [site_name(text) for text in names_in(spec)]
    if not wanted:
        raise ConfigError("--sites: empty; name hospitals, say how many, or leave it out")
    absent = [name for name in wanted if name not in groups]
    if absent:
        raise ConfigError(
            f"--sites {spec}: no usable case of {', '.join(absent)}; there are {', '.join(sorted(groups))}"
        )
    return {name: groups[name] for name in wanted}


def _deal(cases: Sequence[Case], number: int) -> dict[str, list[Case]]:
    if not 1 <= number <= len(cases):
        raise ConfigError(f"--sites {number}: between 1 and {len(cases)}, the number of usable patients")
    shuffled = sorted(cases, key=lambda case: hashlib.sha256(case.patient.encode()).digest())
    width = len(str(number))
    groups: dict[str, list[Case]] = {}
    for index, case in enumerate(shuffled):
        name = f"site-{index % number + 1:0{width}d}"
        groups.setdefault(name, []).append(case.model_copy(update={"site": name}))
    return groups


def _settings(name: str, data: Path, defaults: SiteDefaults) -> SiteConfig:
    return SiteConfig(
        site=name,
        data=data.resolve(),
        cache=defaults.cache,
        device=defaults.device,
        workers=defaults.workers,
        threads=defaults.threads,
        small_cell_limit=defaults.small_cell_limit,
        # A hospital that exists in the simulation alone has made no terms.
        privacy=PrivacyLimits(
            max_epsilon=None,
            max_delta=LARGEST_DELTA,
            min_noise_multiplier=1e-6,
            max_counts_epsilon=MOST_EPSILON,
        ),
    )


def summarise(
    exclusions: Sequence[Finding], warnings: Sequence[Finding], patients: Iterable[str]
) -> list[DataIssue]:
    """Return findings counted by site and reason, the patients' ids taken out of the words.

    ``patients`` are the others whom a finding may speak of, as that of a duplicate does.
    """
    others = {*patients, *(finding.patient for finding in (*exclusions, *warnings))}
    issues: dict[tuple[str, str, str], DataIssue] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for kind, findings in (("excluded", exclusions), ("warning", warnings)):
        for finding in findings:
            key = (finding.site, kind, finding.code)
            counts[key] += 1
            if key not in issues:
                issues[key] = DataIssue.model_validate(
                    {
                        "site": finding.site,
                        "kind": kind,
                        "code": finding.code,
                        "cases": 0,
                        "explanation": without_ids(finding, others),
                    }
                )
    return [issues[key].model_copy(update={"cases": counts[key]}) for key in sorted(issues)]


def without_ids(finding: Finding, others: Iterable[str]) -> str:
    """Return a finding's words with every patient's id replaced, in whatever case it is spelled.

    Names of files and texts of the table, which may hold anything, are left out.

    A number of up to three digits is taken for another patient's id only after the word ``patient`` or
    ``as``: elsewhere it is far more often a row, a size or a label.
    """
    words = _replaced(without_quoted(finding.message), [finding.patient], "the case")
    numbers = {name for name in others if name.isdecimal() and len(name) <= 3}
    words = _replaced(words, {*others} - numbers, "another case")
    return re.sub(r"\b(patient|as) (\d{1,3})\b", r"\1 another case", words) if numbers else words


def _replaced(text: str, names: Iterable[str], by: str) -> str:
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name)
    if not pattern:
        return text
    return re.sub(rf"(?<![^\W_])(?:sub-)?(?:{pattern})(?![^\W_])", by, text, flags=re.IGNORECASE)


def write_findings(path: Path, exclusions: Sequence[Finding], warnings: Sequence[Finding]) -> None:
    """Write every finding with its patient's id, for the owner of the data on this machine only."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "site", "patient", "stage", "code", "message"])
    for kind, findings in (("excluded", exclusions), ("warning", warnings)):
        for finding in findings:
            told = (finding.site, finding.patient, finding.stage, finding.code, finding.message)
            writer.writerow([kind, *map(cell, told)])
    write_text(path, text.getvalue())
    path.chmod(0o600)
