"""A federation on this machine: N virtual nodes, the same two apps, a run folder at the end."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path

from flwr.clientapp import ClientApp

from fedglioma.case import Case
from fedglioma.config.run import RunConfig
from fedglioma.config.site import MOST_PROCESSES
from fedglioma.console import Progress, silent
from fedglioma.counts import has_target
from fedglioma.data.cache import Cache
from fedglioma.data.folds import Division
from fedglioma.data.plan import PLAN_KEY, SimulationPlan, SitePlan
from fedglioma.data.prepare import Prepared, PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split, assign_split
from fedglioma.errors import ConfigError, DataError
from fedglioma.machine import usable_cores
from fedglioma.payload import packed_bytes
from fedglioma.training.learner import layout_of, parameter_count
from fedglioma.training.released import model_digest, model_spent, taken_scale
from fedglioma_server.app import make_app
from fedglioma_server.gather import Gathering, summarise, write_findings
from fedglioma_server.inline import run_inline
from fedglioma_server.ray_engine import run_ray
from fedglioma_server.records import RoundRecord, RunRecord, SplitCount, write_json, write_text
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import recorded
from fedglioma_server.samerun import data_digest, new_record, other_run, require_same_settings

logger = logging.getLogger(__name__)


class Engine(StrEnum):
    """What carries the messages of a simulation."""

    INLINE = "inline"
    RAY = "ray"


@dataclass(frozen=True)
class Simulation:
    """One request: terms, data, engine and where to write."""

    settings: RunConfig
    gathering: Gathering
    folder: RunFolder
    cache: Path
    engine: Engine = Engine.INLINE
    workers: int = 1
    threads: int = 0
    device: str = "cpu"
    command: str = ""
    division: Division | None = None
    initial: Path | None = None
    reported: bool = True

    def split_of(self, case: Case) -> Split | None:
        """Return whether a patient trains, helps to choose the model, or is reported on; None: none of it.

        As the division says where there is one, else drawn from the run's seed.
        """
        if self.division is not None:
            return self.division.of(case.patient) if self.division.names(case.patient) else None
        settings = self.settings
        return assign_split(
            case.patient, seed=settings.seed, selection=settings.selection, report=settings.report
        )


def outline(simulation: Simulation) -> dict[str, object]:
    """Return what a run would be: settings, sites, cases, parameters, bytes; nothing is trained."""
    settings = simulation.settings
    sizes = layout_of(settings).sizes
    down = packed_bytes("float32", sizes)
    up = packed_bytes(settings.payload, sizes)
    return {
        "settings": settings.model_dump(mode="json"),
        "engine": simulation.engine.value,
        "synthetic": simulation.gathering.synthetic,
        "sites": {name: count.model_dump() for name, count in count_splits(simulation).items()},
        "cases": len(simulation.gathering.cases),
        "excluded": len(simulation.gathering.exclusions),
        "warnings": len(simulation.gathering.warnings),
        "parameters": parameter_count(settings),
        "payload_bytes": up,
        "payload_bytes_down": down,
        "payload_bytes_per_round": (down + up)
        * sum(count.train > 0 for count in count_splits(simulation).values()),
    }


def count_splits(simulation: Simulation) -> dict[str, SplitCount]:
    """Return the cases per split of each hospital."""
    counts = {}
    for hospital in simulation.gathering.hospitals:
        tally = Counter(simulation.split_of(case) for case in hospital.cases)
        counts[hospital.config.site] = SplitCount(
            train=tally[Split.TRAIN], selection=tally[Split.SELECTION], report=tally[Split.REPORT]
        )
    return counts


def prepare(simulation: Simulation, progress: Progress = silent) -> Prepared:
    """Return all cases, prepared into the cache."""
    settings = PrepareSettings.of(simulation.settings)
    cases = simulation.gathering.cases
    return prepare_cases(
        cases, settings, Cache(simulation.cache), workers=simulation.workers, progress=progress
    )


def write_plan(simulation: Simulation, prepared: Prepared) -> SimulationPlan:
    """Write the plan, the findings and run.json, and return the plan; nothing changes for a resumed run.

    Raises
    ------
    DataError
        No case is left to train on.
    ConfigError
        The folder holds a run of other settings or other data.
    """
    folder, settings = simulation.folder, simulation.settings
    folder.sweep()
    by_split: dict[Split, list[PreparedCase]] = {split: [] for split in Split}
    for item in prepared.cases:
        split = simulation.split_of(item.case)
        if split is not None:
            by_split[split].append(item)
    plan = SimulationPlan(
        run_folder=folder.path.resolve(),
        settings=settings,
        sites=_site_plans(simulation, by_split[Split.TRAIN]),
        selection=tuple(by_split[Split.SELECTION]),
        report=tuple(by_split[Split.REPORT]),
        device=simulation.device,
        threads=simulation.threads,
        initial=simulation.initial,
        reported=simulation.reported,
    )
    if not any(has_target(item.case, settings.tasks) for item in by_split[Split.TRAIN]):
        raise DataError(
            "no training case has a known marker: give labelled cases, or lower --selection and --report"
        )
    record = _record(simulation, prepared, by_split)
    if folder.exists():
        require_same_settings(folder, settings)
        require_same_patients(simulation, prepared)
        if folder.read().initial_digest != record.initial_digest:
            raise other_run(folder, "another model to start from", "this is")
    write_text(plan_file(folder), plan.model_dump_json(indent=1))
    plan_file(folder).chmod(0o600)
    write_findings(
        folder.work / "findings.csv",
        [*simulation.gathering.exclusions, *prepared.exclusions],
        [*simulation.gathering.warnings, *prepared.warnings],
    )
    if not folder.exists():  # last: a folder with a record has all the rest
        write_json(folder.record_file, record)
    return plan


def plan_file(folder: RunFolder) -> Path:
    """Return where a run's plan lies."""
    return folder.work / "plan.json"


def _site_plans(simulation: Simulation, training: list[PreparedCase]) -> tuple[SitePlan, ...]:
    plans = []
    for hospital in simulation.gathering.hospitals:
        own = tuple(item for item in training if item.case.site == hospital.config.site)
        if own:
            plans.append(SitePlan(settings=hospital.config, cases=own, described=hospital.described))
        else:
            logger.warning(
                "%s: all of its patients are held out or excluded, it does not train", hospital.config.site
            )
    if not plans:
        raise DataError("no hospital has a case to train on: add patients, or lower --selection and --report")
    return tuple(plans)


def _record(
    simulation: Simulation, prepared: Prepared, by_split: dict[Split, list[PreparedCase]]
) -> RunRecord:
    splits = {hospital.config.site: SplitCount() for hospital in simulation.gathering.hospitals}
    for split, items in by_split.items():
        for site, number in Counter(item.case.site for item in items).items():
            splits[site] = splits[site].model_copy(update={split.value: number})
    gathering, initial = simulation.gathering, simulation.initial
    scale = None if initial is None else taken_scale(initial, simulation.settings)
    return new_record(
        simulation.folder,
        simulation.settings,
        engine=simulation.engine.value,
        command=simulation.command,
        cases=prepared.cases,
        cohorts=gathering.cohorts,
        issues=summarise(
            [*gathering.exclusions, *prepared.exclusions],
            [*gathering.warnings, *prepared.warnings],
            [case.patient for case in gathering.cases],
        ),
        synthetic=gathering.synthetic,
        splits=splits,
    ).model_copy(
        update={
            "made_up_sites": [h.config.site for h in simulation.gathering.hospitals if not h.described],
            "division": None if simulation.division is None else simulation.division.name,
            "division_digest": _division_digest(simulation),
            "initial_digest": None if initial is None else model_digest(initial),
            "initial_spent": None if initial is None else model_spent(initial),
            "scale": scale,
            "scale_id": None if scale is None else scale.id,
            "scale_from_model": scale is not None,
        }
    )


def require_same_patients(simulation: Simulation, prepared: Prepared) -> None:
    """Refuse a folder that holds a run of other sites, cases or divisions; nothing in it is touched.

    Raises
    ------
    OtherRun
        It holds one; the message says what is other.
    """
    folder = simulation.folder
    if not folder.exists():
        return
    there = folder.read()
    limits = {h.config.site: h.config.small_cell_limit for h in simulation.gathering.hospitals}
    if set(there.splits) != set(limits):
        raise other_run(folder, f"sites {', '.join(there.splits)}", f"{', '.join(limits)} are")
    if there.data_digest != data_digest(prepared.cases):
        raise other_run(folder, "other cases, or cases divided otherwise", "these are")
    if there.division_digest != _division_digest(simulation):
        raise other_run(folder, "patients divided otherwise", "these are")
    for name, limit in limits.items():
        if name in there.sites and there.sites[name].small_cell_limit != limit:
            old = there.sites[name].small_cell_limit
            raise other_run(folder, f"small-cell limit {old} of {name}", f"{limit} is")


def _division_digest(simulation: Simulation) -> str | None:
    return None if simulation.division is None else simulation.division.digest


def run(simulation: Simulation, prepared: Prepared, progress: Progress = silent) -> RunRecord:
    """Run the federation, or what is left of it, and return the finished run's record.

    ``progress`` counts sites' replies with the inline engine and rounds with Ray.
    """
    with simulation.folder.locked():
        return _run(simulation, prepared, progress)


def _run(simulation: Simulation, prepared: Prepared, progress: Progress) -> RunRecord:
    folder = simulation.folder
    plan = write_plan(simulation, prepared)
    if folder.read().status == "completed":
        logger.info("%s: this run is complete, nothing is left to do", folder.path)
        return folder.read()
    folder.update(engine=simulation.engine.value)
    with recorded(folder):
        _ENGINES[simulation.engine](simulation, plan, progress)
    return folder.read()


def _run_inline(simulation: Simulation, plan: SimulationPlan, progress: Progress) -> None:
    done, total = 0, reply_total(simulation, plan)

    def step() -> None:
        nonlocal done
        done = min(done + 1, total)
        progress(done, total)

    progress(done, total)
    run_inline(
        make_app(lambda _line: step()),
        client_app(),
        sites=len(plan.sites),
        run_config={PLAN_KEY: str(plan_file(simulation.folder).resolve())},
        replied=step,
    )
    progress(total, total)


def reply_total(simulation: Simulation, plan: SimulationPlan) -> int:
    """Return the steps of a progress bar: a reply per site and an evaluation per round that is left."""
    left = simulation.settings.rounds - max((line.round for line in simulation.folder.rounds()), default=0)
    training = sum(
        any(has_target(item.case, plan.settings.tasks) for item in site.cases) for site in plan.sites
    )
    return len(plan.sites) + left * (training + 1) + (left == simulation.settings.rounds)


def _run_ray(simulation: Simulation, plan: SimulationPlan, progress: Progress) -> None:
    total = simulation.settings.rounds

    def finished(line: RoundRecord) -> None:
        progress(line.round, total)

    run_ray(
        finished,
        client_app(),
        sites=len(plan.sites),
        plan=plan_file(simulation.folder).resolve(),
        threads=simulation.threads,
        gpu=simulation.device != "cpu",
    )


def client_app() -> ClientApp:
    """Return the hospitals' app, named as text because the server's code does not stand on the client's."""
    found = import_module("fedglioma_client.app").app
    if not isinstance(found, ClientApp):
        raise ConfigError("fedglioma_client.app:app is not a Flower ClientApp; reinstall fedglioma")
    return found


_ENGINES: dict[Engine, Callable[[Simulation, SimulationPlan, Progress], None]] = {
    Engine.INLINE: _run_inline,
    Engine.RAY: _run_ray,
}


def default_threads() -> int:
    """Return the processor cores that this process may use, at most what a site's settings allow."""
    return min(usable_cores(), MOST_PROCESSES)
