"""The ``simulate`` command: from what was typed to a finished run, in words and as data."""

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedglioma.config.run import RunConfig
from fedglioma.console import human, progress
from fedglioma.data.foldfile import read_division
from fedglioma.data.folds import Division, check_division
from fedglioma.data.manifest import patient_key
from fedglioma.data.synthetic_cohort import synthesize
from fedglioma.errors import ConfigError
from fedglioma.training.released import require_same_network, taken_scale
from fedglioma_server import simulate
from fedglioma_server.device import usable_device
from fedglioma_server.gather import Gathering, SiteDefaults, gather, settings_files
from fedglioma_server.options import resolve_settings
from fedglioma_server.ray_engine import require_ray
from fedglioma_server.run_result import run_result
from fedglioma_server.run_synthesis import names_of
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.samerun import command_line, require_same_settings
from fedglioma_server.spending import with_noise
from fedglioma_server.trainable import require_trainable

RUNS = Path("runs")
FIELD_OF_VIEW_MM = 176.0
COARSEST_MM = 8.0
SYNTHETIC_DEFAULTS: dict[str, Any] = {
    "width": 4,
    "rounds": 10,
    "local_epochs": 3,
    "batch_size": 8,
    "lr": 3e-3,
}
"""At test size the paper's width would be slow, and its learning rate slow to learn (docs/learning.md)."""
LONGEST_NAME = 100

Result = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Request:
    """What was typed."""

    given: Mapping[str, Any]
    config: Path | None
    cohorts: tuple[Path, ...]
    synthetic: int | None
    synthetic_size: int
    synthetic_overlap: float
    sites: str | None
    engine: str
    out: Path | None
    cache: Path | None
    workers: int
    threads: int
    device: str
    small_cell_limit: int
    splits: Path | None = None
    fold: str | None = None
    initial: Path | None = None

    def settings(self) -> RunConfig:
        """Return the run's settings; a synthetic cohort brings defaults of its own size."""
        defaults = {} if self.synthetic is None else synthetic_settings(self.synthetic_size)
        settings = resolve_settings(self.given, self.config, defaults)
        private = settings.privacy == "site"
        goes_on = private and self.initial is not None and taken_scale(self.initial, settings) is not None
        return with_noise(settings, landmarks=not goes_on)

    def engine_name(self) -> simulate.Engine:
        """Return the engine.

        Raises
        ------
        ConfigError
            There is no such engine.
        """
        try:
            return simulate.Engine(self.engine)
        except ValueError:
            known = " or ".join(simulate.Engine)
            raise ConfigError(f"--engine {self.engine}: choose {known}") from None

    def check(self, folder: RunFolder) -> None:
        """Raise ``ConfigError`` for what can be found wrong before anything is read or made."""
        settings = self.settings()
        if self.engine_name() is simulate.Engine.RAY:
            require_ray()
        usable_device(self.device)
        if self.initial is not None:
            require_same_network(self.initial, settings)
        if self.synthetic is not None:
            _require_enough(settings, len(names_of(self.sites)))
        self.division()
        folder.require_new_or_ours()
        require_same_settings(folder, settings)

    def division(self) -> Division | None:
        """Return the division that ``--splits`` and ``--fold`` name, None where patients are drawn.

        Raises
        ------
        ConfigError
            The file cannot be read or has no such fold, or shares were given beside it.
        """
        if self.splits is None:
            if self.fold is not None:
                raise ConfigError("--fold: names a fold of --splits FILE; give both")
            return None
        if typed := sorted({"selection", "report"} & self.given.keys()):
            raise ConfigError(f"--{typed[0]}: the shares stand in --splits {self.splits.name}; leave one out")
        divisions = {division.name: division for division in read_division(self.splits)}
        if self.fold is None and len(divisions) > 1:
            raise ConfigError(f"--splits {self.splits}: has {len(divisions)} folds; choose one by --fold")
        name = self.fold or next(iter(divisions))
        if name not in divisions and f"fold-{name}" in divisions:
            name = f"fold-{name}"
        if name not in divisions:
            raise ConfigError(f"--fold {name}: {self.splits.name} has {', '.join(divisions)}")
        return divisions[name]


def synthetic_settings(size: int) -> dict[str, Any]:
    """Return the defaults of a run on made-up volumes of an edge in voxels."""
    spacing = min(FIELD_OF_VIEW_MM / size, COARSEST_MM)
    return {**SYNTHETIC_DEFAULTS, "crop": round(FIELD_OF_VIEW_MM / spacing), "spacing_mm": spacing}


def run(request: Request) -> Result:
    """Run, or continue, the simulation and return its result."""
    folder = RunFolder(request.out or RUNS / run_name())
    request.check(folder)
    simulation = _simulation(request, folder, gather_for(request, folder, request.settings()))
    _announce(simulation.gathering, private=simulation.settings.privacy == "site")
    with progress("prepare", unit="cases") as shown:
        prepared = simulate.prepare(simulation, shown)
    if prepared.exclusions:
        left_out = f"{len(prepared.exclusions)} more left out while preparing"
        if simulation.settings.privacy != "site":
            left_out += f", {len(prepared.cases)} take part"
        human().print(f"{left_out}; reasons in the report, patients in work/findings.csv", markup=False)
    with progress("train", unit="replies") as shown:
        record = simulate.run(simulation, prepared, shown)
    return run_result(record, folder)


def dry(request: Request) -> Result:
    """Return what a run would be, and leave nothing behind."""
    with scratch() as made_in:
        folder = RunFolder(request.out or made_in / "run")
        request.check(folder)
        gathering = gather_for(request, RunFolder(made_in), request.settings())
        data = simulate.outline(_simulation(request, folder, gathering))
    return data, outline_text(data)


def run_name() -> str:
    """Return a new run id: the time it began, and four characters."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="fedglioma-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def gather_for(request: Request, folder: RunFolder, settings: RunConfig) -> Gathering:
    """Return the hospitals that were asked for; made-up patients come to lie in the folder."""
    cache = request.cache or folder.path.parent / "cache"
    defaults = SiteDefaults(
        cache=cache.resolve(),
        workers=request.workers or simulate.default_threads(),
        threads=request.threads or simulate.default_threads(),
        device=request.device,
        small_cell_limit=request.small_cell_limit,
    )
    if request.synthetic is None:
        return gather(request.cohorts, request.sites, defaults, purpose=settings.purpose)
    if request.cohorts or settings_files(request.sites):
        raise ConfigError("--synthetic makes its own cohort; leave --cohort and settings files out")
    names = names_of(request.sites)
    seed = settings.seed
    sites = "-".join(names)
    if len(sites) > LONGEST_NAME:
        sites = hashlib.sha256(sites.encode()).hexdigest()[:16]
    recipe = f"{request.synthetic}-{request.synthetic_size}-{request.synthetic_overlap:g}-{seed}"
    cohort = folder.path / "cohort" / f"{recipe}-{sites}"
    if not cohort.exists():
        with progress("synthesize", unit="patients") as shown:
            synthesize(
                cohort,
                patients=request.synthetic,
                sites=names,
                size=request.synthetic_size,
                overlap=request.synthetic_overlap,
                seed=seed,
                progress=shown,
            )
    made_up = gather([cohort], None, defaults, purpose=settings.purpose)
    return replace(made_up, cohorts=(f"{request.synthetic} made-up patients",))


def _simulation(request: Request, folder: RunFolder, gathering: Gathering) -> simulate.Simulation:
    settings = request.settings()
    _require_enough(settings, len(gathering.hospitals))
    cache = request.cache or folder.path.parent / "cache"
    simulation = simulate.Simulation(
        settings=settings,
        gathering=gathering,
        folder=folder,
        cache=cache.resolve(),
        engine=request.engine_name(),
        workers=request.workers or simulate.default_threads(),
        threads=request.threads or simulate.default_threads(),
        device=request.device,
        command=command_line(),
        division=_division(request, gathering),
        initial=request.initial,
    )
    require_trainable(simulation)
    return simulation


def _require_enough(settings: RunConfig, sites: int) -> None:
    hides = "secure_aggregation" if settings.secure_aggregation else "privacy central"
    hiding = settings.secure_aggregation or settings.privacy == "central"
    if hiding and sites < settings.quorum:
        raise ConfigError(
            f"quorum: {settings.quorum} sites are needed to hide among each other, and there are {sites}; "
            f"add hospitals, or leave {hides} out"
        )


def _division(request: Request, gathering: Gathering) -> Division | None:
    """Return the division that was asked for; patients without a split take no part."""
    division = request.division()
    if division is None or request.splits is None:
        return None
    without = check_division(division, (case.patient for case in gathering.cases), partial=True)
    cohort = {patient_key(case.patient) for case in gathering.cases}
    unknown = sum(patient_key(patient) not in cohort for patient in division.split)
    if unknown:
        human().print(f"{unknown} rows of {request.splits.name} name nobody of the cohort; check their ids")
    if without:
        human().print(f"{len(without)} patients have no split in {request.splits.name} and take no part")
    return division


def _announce(gathering: Gathering, *, private: bool) -> None:
    """Say who takes part; in a private run without exact numbers, which would stand beside the noised."""
    console = human()
    if gathering.synthetic:
        console.print("[bold yellow]SYNTHETIC DATA: made-up patients, nothing here is clinical evidence[/]")
    numbers = "" if private else f"{len(gathering.cases)} "
    hospitals = ", ".join(
        h.config.site if private else f"{h.config.site} {len(h.cases)}" for h in gathering.hospitals
    )
    console.print(f"{numbers}usable cases: {hospitals}", markup=False, soft_wrap=True)
    for what, findings in (("left out", gathering.exclusions), ("warned about", gathering.warnings)):
        if findings:
            console.print(
                f"{len(findings)} {what}; reasons in the report, patients in work/findings.csv", markup=False
            )


def outline_text(data: Mapping[str, Any]) -> str:
    """Return the outline of a dry run for reading."""
    lines = ["dry run: nothing is trained", "settings"]
    lines += [f"  {name}: {value}" for name, value in data["settings"].items()]
    lines.append("sites (train / selection / report)")
    lines += [
        f"  {name}: {c['train']} / {c['selection']} / {c['report']}" for name, c in data["sites"].items()
    ]
    lines += [
        f"cases: {data['cases']} usable, {data['excluded']} left out, {data['warnings']} warnings",
        f"parameters: {data['parameters']:,}",
        f"payload: {data['payload_bytes_down'] / 1e6:.1f} MB to a site, "
        f"{data['payload_bytes'] / 1e6:.1f} MB back, "
        f"{data['payload_bytes_per_round'] / 1e6:.1f} MB a round",
    ]
    return "\n".join(lines)
