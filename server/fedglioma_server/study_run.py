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
from fedglioma.data.folds import Division
from fedglioma.data.prepare import Prepared, PrepareSettings
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma.metrics.genotype import MIN_PATIENTS, MIN_RARER
from fedglioma.training.learner import parameter_count
from fedglioma_server import simulate
from fedglioma_server.gather import Gathering, Hospital
from fedglioma_server.records import PrivacyRecord, read_json, write_json
from fedglioma_server.runfolder import RunFolder, now
from fedglioma_server.samerun import OtherRun, require_same_settings
from fedglioma_server.study_alone import OWN_MODELS, without_models
from fedglioma_server.study_baselines import TITLES, absent_baselines, absent_text, add_baselines
from fedglioma_server.study_cells import POOLED, Cell, divide, expand
from fedglioma_server.study_file import Study
from fedglioma_server.study_folds import leave_out_numberless, left_out_of, with_folds
from fedglioma_server.study_jobs import run_apart
from fedglioma_server.study_results import Known, RowName
from fedglioma_server.study_small_cells import passed_on
from fedglioma_server.study_table import (
    RESULTS,
    Entry,
    LeftOut,
    Line,
    StudyResult,
    gains_of,
    measures_of,
    table_of,
)
from fedglioma_server.trainable import require_trainable

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
    jobs: int = 1

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
    progress: Progress = silent,
) -> StudyResult:
    """Run what is missing of a study, measure, and return what was found; ``results.json`` has the same.

    ``prepared`` is what ``prepare_study`` returned. A run that fails leaves its arm out of the table, with
    the reason; the others go on. Runs that are complete are not repeated. Where all fail, the result that
    is there of before is kept. What is found does not depend on
    how many runs are made at a time, with the same number of threads each. ``progress`` counts runs.

    Raises
    ------
    OtherRun
        A folder holds a run of other settings or patients; of those that are there from the start, before
        any run begins.
    DataError
        No case can be used.
    FedGliomaError
        Every run failed, and there is a result of before.
    """
    cells = request.cells
    _require_same_patients(request, cells, prepared)
    for who, why in _without_models(request, cells).items():
        logger.warning("%s: no model of its own: %s", who, why)
    for row, why in _absent(request, cells, prepared).items():
        logger.warning("%s: cannot be computed: %s", row, why)
    progress(0, len(cells))
    make = _make_apart if request.jobs > 1 else _make
    failed = make(request, cells, prepared, told, progress)
    if len(failed) == len(cells) and _found_something(request.out):
        raise FedGliomaError(
            f"{request.out}: all {len(cells)} runs failed; the table that is there of before was kept; "
            f"{next(iter(failed))}: {next(iter(failed.values()))}"
        )
    result = passed_on(collect(request, cells, prepared, failed))
    write_json(request.out / RESULTS, result)
    return result


def _found_something(out: Path) -> bool:
    """Whether the folder holds a result with a row, or one that cannot be read and is not ours to replace."""
    file = out / RESULTS
    try:
        return file.exists() and bool(read_json(file, StudyResult).lines)
    except FedGliomaError:
        return True


def _make(
    request: StudyRun, cells: Sequence[Cell], prepared: PreparedWays, told: Told, progress: Progress
) -> dict[str, str]:
    """Make the runs one after another, and return why some failed."""
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        told(cell, number, len(cells))
        try:
            _run(request, cell, prepared[PrepareSettings.of(cell.settings)])
        except OtherRun:
            raise
        except FedGliomaError as error:
            logger.warning("%s: %s", cell.words, error)
            failed[cell.words] = str(error)
        progress(number, len(cells))
    return failed


def _make_apart(
    request: StudyRun, cells: Sequence[Cell], prepared: PreparedWays, told: Told, progress: Progress
) -> dict[str, str]:
    """Make several runs at a time, those that go on from another's model after all others."""
    done, begun, failed = 0, 0, dict[str, str]()

    def ended() -> None:
        nonlocal done
        done += 1
        progress(done, len(cells))

    for goes_on in (False, True):
        these = [cell for cell in cells if (cell.starts_from(request.out) is not None) == goes_on]

        def began(place: int, these: Sequence[Cell] = these) -> None:
            nonlocal begun
            begun += 1
            told(these[place], begun, len(cells))

        tasks = [(request, cell, prepared[PrepareSettings.of(cell.settings)]) for cell in these]
        names = [cell.words for cell in these]
        why = run_apart(_run_one, tasks, names, jobs=request.jobs, began=began, ended=ended)
        failed |= {names[place]: text for place, text in why.items()}
    return {cell.words: failed[cell.words] for cell in cells if cell.words in failed}


def _run_one(task: tuple[StudyRun, Cell, Prepared]) -> None:
    _run(*task)


def require_same_study(request: StudyRun) -> None:
    """Refuse a folder whose runs have other settings, before any of them is touched.

    Raises
    ------
    ConfigError
        A run that is there was made with other settings.
    """
    for cell in request.cells:
        require_same_settings(RunFolder(cell.folder(request.out)), cell.settings)


def _require_same_patients(request: StudyRun, cells: Sequence[Cell], prepared: PreparedWays) -> None:
    """Refuse a folder of whose runs one has other patients, labels or divisions, before any is touched."""
    for cell in cells:
        simulate.require_same_patients(*_own(request, cell, prepared[PrepareSettings.of(cell.settings)]))


def require_trainable_study(request: StudyRun) -> None:
    """Refuse a study of which a run could not be trained here, before anything is prepared.

    Raises
    ------
    ConfigError
        A device has not the numbers that were asked for, or a batch is too small for an arm's network.
    """
    everybody, alone = request.gathering, pooled(request.gathering)
    for cell in request.cells:
        gathering = alone if cell.protocol == "centralised" else everybody
        try:
            require_trainable(_simulation(request, cell, gathering))
        except ConfigError as error:
            raise ConfigError(f"{request.study.file}: {cell.words}: {error}") from None


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
    simulation, own = _own(request, cell, prepared)
    simulation.folder.require_new_or_ours()
    simulate.run(simulation, own)


def _own(request: StudyRun, cell: Cell, prepared: Prepared) -> tuple[simulate.Simulation, Prepared]:
    """Return a cell's run, and the cases as it knows them."""
    gathering = request.gathering
    if cell.protocol == "centralised":
        gathering, prepared = pooled(gathering), _moved(prepared)
    return _simulation(request, cell, gathering), prepared


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


def _epsilon(spent: Sequence[float | None]) -> float | None:
    """Return the largest epsilon of a row's runs; None where one of them is not private."""
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
    """Return the study's result from the runs that are complete; what cannot be read costs its row."""
    study = request.study
    site_of = {case.patient: case.site for case in request.gathering.cases}
    known, spent, failed = _taken(request, cells, failed, site_of)
    broken = {RowName(cell.arm.name, cell.protocol) for cell in cells if cell.words in failed}
    tasks = _tasks([cell for cell in cells if cell.words not in failed])
    order = [RowName(arm.name, protocol) for arm in study.arms for protocol in study.protocols]
    order = [row for row in order if row in known.rows]
    settings = cells[0].settings
    measures = measures_of(study, tasks)
    absent: dict[str, str] = {}
    divisions, cases = _for_baselines(request, cells, prepared)
    if known.rows:
        absent = add_baselines(known, study.baselines, divisions, cases, study.seeds, _measured(measures))
    order += [RowName(TITLES[name]) for name in study.baselines if RowName(TITLES[name]) in known.rows]
    absent |= leave_out_numberless(known, _measured(measures), order, study.seeds)
    reference = RowName(study.compared_with, study.protocols[0])
    entries = table_of(known, measures, order, reference, study.seeds, resamples=settings.bootstrap)
    # Of the divisions: where hospitals train alone, a fold may have no run.
    names = [division.name for division in divisions]
    entries = with_folds(entries, known, study.seeds, len(names))
    left_out: list[LeftOut] = []
    if study.divisions.kind == "sites":
        left_out = left_out_of(entries, known, study.seeds, names, resamples=settings.bootstrap)
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
        folds=len(names),
        fold_names=names,
        seeds=len(study.seeds),
        caution=_caution(entries, known, study.size),
        settings={name: str(value) for name, value in {**study.run, **request.given}.items()},
        runs=len(cells),
        failed=dict(failed),
        absent=absent,
        without_models=_without_models(request, cells),
        reference=(reference.arm, reference.protocol),
        measures=measures,
        lines=[
            Line(
                arm=row.arm,
                protocol=row.protocol,
                parameters=sizes.get(row.arm),
                epsilon=_epsilon(spent.get(row, [])),
                entries=entries[row],
            )
            for row in order
        ],
        gains=gains_of(known, measures, arms, study.protocols, study.seeds, resamples=settings.bootstrap),
        left_out=left_out,
        published=list(study.published),
        versions={name: version(name) for name in ("fedglioma", "torch")},
    )


def _taken(
    request: StudyRun, cells: Sequence[Cell], failed: Mapping[str, str], site_of: Mapping[str, str]
) -> tuple[Known, dict[RowName, list[float | None]], dict[str, str]]:
    """Return what the complete rows say, each one's epsilons, and why runs failed or cannot be read."""
    known, lost = Known(), dict(failed)
    spent: dict[RowName, list[float | None]] = {}
    broken = {RowName(cell.arm.name, cell.protocol) for cell in cells if cell.words in failed}
    for cell in cells:
        row, folder = RowName(cell.arm.name, cell.protocol), RunFolder(cell.folder(request.out)).path
        if row in broken:
            continue
        try:
            known.take(cell, request.out, site_of)
            spent.setdefault(row, []).append(read_json(folder / "privacy.json", PrivacyRecord).epsilon)
        except (FedGliomaError, OSError, ValueError) as error:
            logger.warning("%s: cannot be read: %s", cell.words, error)
            place = folder.relative_to(request.out)
            lost[cell.words] = f"{error}; remove the folder {place}, and the same command makes it again"
            broken.add(row)
            known.rows.pop(row, None)
    return known, spent, {cell.words: lost[cell.words] for cell in cells if cell.words in lost}


def _for_baselines(
    request: StudyRun, cells: Sequence[Cell], prepared: PreparedWays
) -> tuple[tuple[Division, ...], tuple[PreparedCase, ...]]:
    """Return the divisions, and the cases on the images from which rows without a network are made."""
    first = cells[0].settings
    # The threshold's Dice must be of the same outlines as the networks'.
    drawn = next((cell.settings for cell in cells if Task.SEGMENTATION in cell.settings.tasks), first)
    divisions = divide(request.study, request.gathering.cases, first)
    return divisions, prepared[PrepareSettings.of(drawn)].cases


def _absent(request: StudyRun, cells: Sequence[Cell], prepared: PreparedWays) -> dict[str, str]:
    """Return what cannot be computed without a network, before anything is trained."""
    divisions, cases = _for_baselines(request, cells, prepared)
    tasks = _measured(measures_of(request.study, _tasks(cells)))
    return absent_text(absent_baselines(request.study.baselines, divisions, cases, tasks))


def _without_models(request: StudyRun, cells: Sequence[Cell]) -> dict[str, str]:
    """Return why a hospital that was to train alone could not, by hospital and arm."""
    study, cases = request.study, request.gathering.cases
    if set(OWN_MODELS).isdisjoint(study.protocols):
        return {}
    tasks = {arm.name: study.settings(arm, study.seeds[0], request.given).tasks for arm in study.arms}
    return without_models(divide(study, cases, cells[0].settings), cases, tasks)


def _tasks(cells: Sequence[Cell]) -> list[Task]:
    return list(dict.fromkeys(task for cell in cells for task in cell.settings.tasks))


def _measured(measures: Sequence[str]) -> list[Task]:
    return list(dict.fromkeys(Task(name.partition(".")[0]) for name in measures))
