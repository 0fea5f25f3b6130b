"""A study run: what is missing of its cells, then one table of what all of them found."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedglioma.case import GENES, Case, Task
from fedglioma.console import Progress, silent
from fedglioma.counts import without_few
from fedglioma.data.prepare import Prepared, PrepareSettings
from fedglioma.errors import FedGliomaError
from fedglioma.metrics.genotype import MIN_PATIENTS, MIN_RARER
from fedglioma.training.learner import parameter_count
from fedglioma_server import simulate
from fedglioma_server.gather import Gathering, Hospital
from fedglioma_server.records import PrivacyRecord, read_json, write_json
from fedglioma_server.runfolder import RunFolder, now
from fedglioma_server.samerun import require_same_settings
from fedglioma_server.study_baselines import TITLES, add_baselines
from fedglioma_server.study_cells import POOLED, Cell, divide, expand
from fedglioma_server.study_file import Study
from fedglioma_server.study_results import Known, RowName
from fedglioma_server.study_small_cells import passed_on
from fedglioma_server.study_table import (
    RESULTS,
    Entry,
    Line,
    StudyResult,
    gains_of,
    measures_of,
    table_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyRun:
    """A study, whose patients, and where."""

    study: Study
    gathering: Gathering
    out: Path
    cache: Path
    given: Mapping[str, Any]
    workers: int = 1
    threads: int = 0
    device: str = "cpu"
    command: str = ""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The runs that the study consists of."""
        return expand(self.study, self.gathering.cases, self.given)


PreparedWays = Mapping[PrepareSettings, Prepared]
"""The same cases, prepared in each of the ways that a study's arms ask for."""

Told = Callable[[Cell, int, int], None]
"""Told of each run before it begins, of its number from 1, and of how many there are."""


def run_study(
    request: StudyRun,
    prepared: PreparedWays,
    told: Told = lambda _cell, _number, _all: None,
) -> StudyResult:
    """Run what is missing of a study, measure, and return what was found; ``results.json`` has the same.

    ``prepared`` is what ``prepare_study`` returned. A run that fails leaves its arm out of the table, with
    the reason; the others go on. Runs that are complete are not repeated.

    Raises
    ------
    ConfigError
        A folder holds a run of other settings or patients.
    DataError
        No case can be used.
    """
    cells = request.cells
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        told(cell, number, len(cells))
        try:
            _run(request, cell, prepared[PrepareSettings.of(cell.settings)])
        except FedGliomaError as error:
            logger.warning("%s: %s", cell.words, error)
            failed[cell.words] = str(error)
    result = passed_on(collect(request, cells, prepared, failed))
    write_json(request.out / RESULTS, result)
    return result


def require_same_study(request: StudyRun) -> None:
    """Refuse a folder whose runs have other settings, before any of them is touched.

    Raises
    ------
    ConfigError
        A run that is there was made with other settings.
    """
    for cell in request.cells:
        require_same_settings(RunFolder(cell.folder(request.out)), cell.settings)


def prepare_study(request: StudyRun, progress: Progress = silent) -> PreparedWays:
    """Return the cases prepared in every way that the arms ask for.

    Raises
    ------
    DataError
        No case can be used.
    """
    found: dict[PrepareSettings, Prepared] = {}
    for cell in request.cells:
        settings = PrepareSettings.of(cell.settings)
        if settings not in found:
            found[settings] = simulate.prepare(_simulation(request, cell, request.gathering), progress)
    return found


def _simulation(request: StudyRun, cell: Cell, gathering: Gathering) -> simulate.Simulation:
    return simulate.Simulation(
        settings=cell.settings,
        gathering=gathering,
        folder=RunFolder(cell.folder(request.out)),
        cache=request.cache,
        workers=request.workers,
        threads=request.threads,
        device=request.device,
        command=request.command,
        division=cell.division,
        initial=cell.starts_from(request.out),
        reported=False,
    )


def _run(request: StudyRun, cell: Cell, prepared: Prepared) -> None:
    gathering = request.gathering
    if cell.protocol == "centralised":
        gathering, prepared = pooled(gathering), _moved(prepared)
    simulation = _simulation(request, cell, gathering)
    simulation.folder.require_new_or_ours()
    simulate.run(simulation, prepared)


def _caution(entries: Mapping[RowName, Mapping[str, Entry]], known: Known, size: str) -> str | None:
    """Return why the study's figures mean little; None where there are enough patients."""
    said = []
    if size == "test":
        said.append("Test size: it shows that the study runs, not that one row is better than another.")
    numbers = [entry.cases for row in entries.values() for entry in row.values()]
    fewest = min((number for number in numbers if isinstance(number, int)), default=0)
    measures = {name for row in entries.values() for name in row}
    genes = [gene for gene in GENES if any(name.startswith(f"{gene.value}.") for name in measures)]
    rarer = min((_rarer(known, GENES.index(gene)) for gene in genes), default=MIN_RARER)
    if fewest < MIN_PATIENTS or rarer < MIN_RARER:
        few = f"{fewest} cases with a known target in one of the measures"
        few += f", {rarer} of the rarer class" if rarer < MIN_RARER else ""
        said.append(
            f"Too few patients ({few}): no value and no difference means anything beyond its interval."
        )
    return without_few(" ".join(said)) or None


def _rarer(known: Known, column: int) -> int:
    labels = [case[column] for case in known.labels.values()]
    return min(labels.count(0), labels.count(1))


def _epsilon(request: StudyRun, complete: Sequence[Cell], row: RowName) -> float | None:
    """Return the largest epsilon of a row's runs; None where one of them is not private."""
    spent = [
        read_json(RunFolder(cell.folder(request.out)).path / "privacy.json", PrivacyRecord).epsilon
        for cell in complete
        if (cell.arm.name, cell.protocol) == (row.arm, row.protocol)
    ]
    known = [epsilon for epsilon in spent if epsilon is not None]
    return max(known) if known and len(known) == len(spent) else None


def pooled(gathering: Gathering) -> Gathering:
    """Return the same patients as if all hospitals were one."""
    first = gathering.hospitals[0].config
    cases = tuple(_at_pool(case) for case in gathering.cases)
    return replace(gathering, hospitals=(Hospital(first.model_copy(update={"site": POOLED}), cases),))


def _at_pool(case: Case) -> Case:
    return case.model_copy(update={"site": POOLED})


def _moved(prepared: Prepared) -> Prepared:
    return replace(prepared, cases=tuple(replace(item, case=_at_pool(item.case)) for item in prepared.cases))


def collect(
    request: StudyRun,
    cells: Sequence[Cell],
    prepared: PreparedWays,
    failed: Mapping[str, str],
) -> StudyResult:
    """Return the study's result from the runs that are complete."""
    study = request.study
    known, site_of = Known(), {case.patient: case.site for case in request.gathering.cases}
    complete = [cell for cell in cells if cell.words not in failed]
    broken = {RowName(cell.arm.name, cell.protocol) for cell in cells if cell.words in failed}
    tasks: dict[Task, None] = {}
    for cell in complete:
        tasks |= dict.fromkeys(cell.settings.tasks)
        if RowName(cell.arm.name, cell.protocol) not in broken:
            known.take(cell, request.out, site_of)
    order = [RowName(arm.name, protocol) for arm in study.arms for protocol in study.protocols]
    order = [row for row in order if row in known.rows]
    settings = cells[0].settings
    if known.rows:
        # The threshold's Dice must be of the same outlines as the networks'.
        drawn = next((cell.settings for cell in cells if Task.SEGMENTATION in cell.settings.tasks), settings)
        cases = prepared[PrepareSettings.of(drawn)].cases
        divisions = divide(study.divisions, request.gathering.cases, settings)
        add_baselines(known, study.baselines, divisions, cases, study.seeds, list(tasks))
    order += [RowName(TITLES[name]) for name in study.baselines if RowName(TITLES[name]) in known.rows]
    measures = measures_of(study, tasks)
    reference = RowName(study.compared_with, study.protocols[0])
    entries = table_of(known, measures, order, reference, study.seeds, resamples=settings.bootstrap)
    sizes = {cell.arm.name: parameter_count(cell.settings) for cell in cells}
    arms = [arm.name for arm in study.arms if not any(row.arm == arm.name for row in broken)]
    return StudyResult(
        title=study.title,
        description=study.description,
        size=study.size,
        created=now(),
        synthetic=request.gathering.synthetic,
        cohorts=list(request.gathering.cohorts),
        patients=len({key[1] for key in known.labels}),
        sites=sorted(set(site_of.values())),
        divisions=study.divisions.kind,
        folds=len({cell.fold for cell in cells}),
        seeds=len(study.seeds),
        caution=_caution(entries, known, study.size),
        settings={name: str(value) for name, value in {**study.run, **request.given}.items()},
        runs=len(cells),
        failed=dict(failed),
        reference=(reference.arm, reference.protocol),
        measures=measures,
        lines=[
            Line(
                arm=row.arm,
                protocol=row.protocol,
                parameters=sizes.get(row.arm),
                epsilon=_epsilon(request, complete, row),
                entries=entries[row],
            )
            for row in order
        ],
        gains=gains_of(known, measures, arms, study.protocols, study.seeds, resamples=settings.bootstrap),
        published=list(study.published),
        versions={name: version(name) for name in ("fedglioma", "torch")},
    )
