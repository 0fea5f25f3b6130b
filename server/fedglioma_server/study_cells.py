"""A study expanded into cells: one run each, of an arm, a protocol, a fold, a seed and, alone, a hospital."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedglioma.case import Case, Gene, Task
from fedglioma.config.effect import idle_settings, require_effect
from fedglioma.config.run import RunConfig
from fedglioma.data.foldfile import read_division
from fedglioma.data.folds import (
    Division,
    check_division,
    leave_one_site_out,
    stratified_folds,
    stratum_of,
)
from fedglioma.data.prepare import PrepareSettings
from fedglioma.data.split import assign_split
from fedglioma.errors import ConfigError
from fedglioma.training.released import networks_apart, same_intensities
from fedglioma_server.spending import with_noise
from fedglioma_server.study_alone import OWN_MODELS, seen_alone
from fedglioma_server.study_file import MOST_CELLS, Arm, Protocol, Study, answers
from fedglioma_server.study_same import require_apart

POOLED = "pooled"
"""The one site of a centralised run: all hospitals' training patients in one place."""
FINETUNE_SHARE = 10
"""A hospital that goes on alone trains a tenth of the federation's rounds, unless the study says so."""
ALONE: dict[str, Any] = {"strategy": "fedavg", "quorum": 1}
DICE = "segmentation.dice"
_DECIDES_NOISE = ("privacy", "target_epsilon", "noise_multiplier")
_DECIDES_IMAGES = ("preprocessing", "spacing_mm", "bias_correction", "zscore", "crop")
"""Settings that decide how images are prepared; the crop where the brain is stretched to it."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    ``fold`` is the division's place among the study's. ``site`` is the hospital that trains alone, empty
    where all do.
    """

    arm: Arm
    protocol: Protocol
    seed: int
    fold: int
    division: Division
    settings: RunConfig
    site: str = ""

    def folder(self, out: Path) -> Path:
        """Return the cell's run folder."""
        place = out / "runs" / self.arm.slug / self.protocol / f"seed-{self.seed}" / f"fold-{self.fold + 1}"
        return place / self.site if self.site else place

    def starts_from(self, out: Path) -> Path | None:
        """Return the released model that the run goes on from; None where it starts untrained."""
        if self.protocol != "finetuned":
            return None
        shared = Cell(self.arm, "federated", self.seed, self.fold, self.division, self.settings)
        return shared.folder(out) / "model"

    @property
    def words(self) -> str:
        """The cell for a log."""
        alone = f", {self.site} alone" if self.site else ""
        return f"{self.arm.name}, {self.protocol}{alone}, seed {self.seed}, fold {self.fold + 1}"


def expand(study: Study, cases: Sequence[Case], given: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return the study's cells in the order in which they are to run.

    Parameters
    ----------
    cases : sequence of Case
        All usable cases under their sites' names.
    given : mapping
        Run settings that stand above the study's own.

    Raises
    ------
    ConfigError
        A setting is not allowed, the patients cannot be divided as asked, or there would be too many cells.
    """
    if "seed" in given:
        raise ConfigError(f"{study.file}: seeds stand in the study; leave --seed out")
    for arm in study.arms:
        for name in arm.settings:
            if name.replace("-", "_") in given:
                raise ConfigError(
                    f"{study.file}: the arms differ in {name}; typed or set for all of them, it would make "
                    "them one: leave it out"
                )
    settings = {
        (arm.name, seed): _by_protocol(study, arm, study.settings(arm, seed, given))
        for arm in study.arms
        for seed in study.seeds
    }
    require_apart(study, {arm.name: settings[arm.name, study.seeds[0]] for arm in study.arms})
    divisions = divide(study, cases, study.settings(study.arms[0], study.seeds[0], given))
    cells = [
        cell
        for seed in study.seeds
        for fold, division in enumerate(divisions)
        for arm in study.arms
        for protocol in sorted(study.protocols, key=lambda name: name == "finetuned")
        for cell in _cells(arm, protocol, seed, fold, division, settings[arm.name, seed][protocol], cases)
    ]
    if len(cells) > MOST_CELLS:
        raise ConfigError(f"{study.title}: {len(cells)} runs; at most {MOST_CELLS}")
    _require_runs(study, cells)
    _require_tasks(study, cells)
    _require_one_preparation(study, cells)
    return tuple(cells)


def _require_runs(study: Study, cells: Sequence[Cell]) -> None:
    there = {cell.protocol for cell in cells}
    for protocol in study.protocols:
        if protocol not in there:
            raise ConfigError(
                f"{study.file}: protocols: {protocol}: in no division has a hospital patients both to train "
                "on and to be reported, with what the arms are asked; leave it out, or divide otherwise"
            )


def _require_tasks(study: Study, cells: Sequence[Cell]) -> None:
    tasks = {task for cell in cells for task in cell.settings.tasks}
    for name in study.measures:
        if Task(name.partition(".")[0]) not in tasks:
            raise ConfigError(f"{study.file}: measures: {name}: no arm is asked that")
    if "baselines" not in study.model_fields_set:
        return
    measured = {Task(name.partition(".")[0]) for name in study.measures} or tasks
    for baseline in study.baselines:
        if measured.isdisjoint(answers(baseline)):
            what = "Dice" if baseline == "threshold" else "a marker"
            raise ConfigError(
                f"{study.file}: baselines: {baseline}: it is a row of {what}, and the study measures none; "
                "leave it out"
            )


def _require_one_preparation(study: Study, cells: Sequence[Cell]) -> None:
    """Refuse to compare Dice between images that were prepared differently: the outlines differ, too."""
    if study.measures and DICE not in study.measures:
        return
    ways: dict[PrepareSettings, Cell] = {}
    for cell in cells:
        if Task.SEGMENTATION in cell.settings.tasks:
            ways.setdefault(PrepareSettings.of(cell.settings), cell)
    if len(ways) < 2:
        return
    one, other, *_ = ways.values()
    apart = ", ".join(
        f"{name} {getattr(one.settings, name)} and {getattr(other.settings, name)}"
        for name in _DECIDES_IMAGES
        if getattr(one.settings, name) != getattr(other.settings, name)
    )
    raise ConfigError(
        f"{study.file}: measures: {DICE}: {one.arm.name} ({one.protocol}) and {other.arm.name} "
        f"({other.protocol}) outline images that are prepared differently: {apart}; give all of them the "
        f"same, or name measures without {DICE}"
    )


def _by_protocol(study: Study, arm: Arm, written: RunConfig) -> dict[Protocol, RunConfig]:
    """Return an arm's settings under each of the study's protocols, with the noise that they need."""
    place = f"{study.file}: arm {arm.name}"
    shared = _noised(written, place)
    found: dict[Protocol, RunConfig] = {}
    for protocol in study.protocols:
        if protocol == "federated":
            found[protocol] = shared
        elif protocol == "finetuned":
            found[protocol] = _finetuned(study, written, shared, f"{study.file}: finetune: arm {arm.name}")
        else:
            found[protocol] = _changed(shared, _alone_settings(shared), f"{place}: protocol {protocol}")
    return found


def _finetuned(study: Study, written: RunConfig, shared: RunConfig, place: str) -> RunConfig:
    """Return the settings of the rounds that a hospital adds alone to the run of settings ``shared``.

    Its noise keeps its own target, and is no less than the federation's unless ``finetune`` changes what
    the noise is to keep. ``written`` is ``shared`` before any noise was derived.
    """
    rounds = max(1, written.rounds // FINETUNE_SHARE)
    changes = {name.replace("-", "_"): value for name, value in study.finetune.items()}
    if changes.get("privacy", written.privacy) != written.privacy:
        # What the arm's own kind of privacy needed is not asked for under another.
        written = written.model_copy(update={"privacy": changes["privacy"]})
        fields = RunConfig.model_fields
        written = written.model_copy(update={n: fields[n].default for n in idle_settings(written)})
    asked = _changed(written, {**_alone_settings(written), "rounds": rounds, **changes}, place, changes)
    own = _noised(asked, place, landmarks=not same_intensities(shared, asked))
    if all(getattr(asked, name) == getattr(written, name) for name in _DECIDES_NOISE):
        noise = max(own.noise_multiplier, shared.noise_multiplier)
        own = own.model_copy(update={"noise_multiplier": noise})
    apart = networks_apart(shared, own)
    if apart is not None:
        raise ConfigError(
            f"{place}: trains another network than the federation that it goes on from: {apart}; leave it "
            "out, or set it for the whole arm"
        )
    return own


def _cells(
    arm: Arm,
    protocol: Protocol,
    seed: int,
    fold: int,
    division: Division,
    settings: RunConfig,
    cases: Sequence[Case],
) -> list[Cell]:
    if protocol not in OWN_MODELS:
        return [Cell(arm, protocol, seed, fold, division, settings)]
    return [
        Cell(arm, protocol, seed, fold, alone, settings, site)
        for site in sorted({case.site for case in cases})
        if (alone := seen_alone(division, site, cases, settings.tasks)) is not None
    ]


def _alone_settings(settings: RunConfig) -> dict[str, Any]:
    """Return what changes for one hospital: it has nobody to hide among, so that nothing is masked."""
    changes = ALONE | {"secure_aggregation": False, "secure_statistics": False}
    if settings.secure_aggregation:
        changes["payload"] = "int8"
    if settings.strategy == "fedprox":
        # Without FedProx ``auto`` would mean other loss weights, and so another network.
        changes["weighting"] = settings.task_weighting
    return changes


def _changed(
    settings: RunConfig, changes: Mapping[str, Any], place: str, written: Iterable[str] = ()
) -> RunConfig:
    """Return an arm's settings with changes.

    What only the arm's own way of training uses may idle here; of ``written``, which somebody wrote for this
    training, nothing may.
    """
    changed = RunConfig.recorded(settings.model_dump() | dict(changes), place)
    try:
        require_effect(changed, written)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    return changed


def _noised(settings: RunConfig, place: str, *, landmarks: bool = True) -> RunConfig:
    try:
        # All seeds have the same noise, and it takes seconds to find.
        same = settings.model_copy(update={"seed": 0})
        noise = with_noise(same, landmarks=landmarks).noise_multiplier
        return settings.model_copy(update={"noise_multiplier": noise})
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def divide(study: Study, cases: Sequence[Case], settings: RunConfig) -> tuple[Division, ...]:
    """Return the study's divisions; the patients' places follow from the first seed and hold for all seeds.

    Folds of a study in which hospitals train alone spread each hospital's patients, too.

    Raises
    ------
    ConfigError
        The file cannot be read, or the patients cannot be divided as asked.
    """
    divisions = study.divisions
    strata = {case.patient: _stratum(case, divisions.stratify) for case in cases}
    if divisions.kind == "kfold":
        alone = not set(OWN_MODELS).isdisjoint(study.protocols)
        return stratified_folds(
            strata,
            divisions.folds,
            seed=settings.seed,
            selection=settings.selection,
            sites={case.patient: case.site for case in cases} if alone else None,
        )
    if divisions.kind == "sites":
        sites = {case.patient: (case.site, strata[case.patient]) for case in cases}
        return leave_one_site_out(sites, seed=settings.seed, selection=settings.selection)
    if divisions.kind == "file" and divisions.file is not None:
        read = read_division(divisions.file)
        for division in read:
            check_division(division, strata, partial=True)
        return read
    split = {
        patient: assign_split(
            patient, seed=settings.seed, selection=settings.selection, report=settings.report
        )
        for patient in strata
    }
    return (Division(name="split", split=split),)


def _stratum(case: Case, genes: Sequence[Gene]) -> str:
    return stratum_of(case.genotype, genes, has_mask=case.mask is not None)
