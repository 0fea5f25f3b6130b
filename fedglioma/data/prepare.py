"""Cases to arrays that a network can train on: read, lay over each other, find the brain, even out, keep.

Read, register to the sharpest modality, one grid, brain, one interpolation, bias field, z-score in the brain.
What comes of it does not depend on other cases or hospitals; the consortium's scale is laid over it
afterwards (``standardize.py``).

What was prepared before is found by content and only checked; the rest is shared among processes. A case
that cannot be prepared is excluded, whole, with the modality and the reason. Tumour masks follow the images
(``masks.py``); a case whose mask cannot be used is kept without it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedglioma.case import CHANNELS, Case, Finding, Frozen, Modality
from fedglioma.config.run import Preprocessing, RunConfig
from fedglioma.console import Progress, silent
from fedglioma.data.bias import correct_bias
from fedglioma.data.brain import bounding_box, find_brain
from fedglioma.data.cache import Cache, HalfArray, Moved, Placed, Record, Remark, Stored, content_key
from fedglioma.data.contents import Doubt, check_contents
from fedglioma.data.extractor import AUTO
from fedglioma.data.frame import box_about, cut_out, half_precision, stretched
from fedglioma.data.harmonize import covering_grid, reference_of, resample, same_grid
from fedglioma.data.masks import lay_masks
from fedglioma.data.normalize import brain_percentiles, zscore_in_brain, zscore_in_volume
from fedglioma.data.pool import map_cases
from fedglioma.data.prepared import PreparedCase, Presence
from fedglioma.data.quality import Region, Sampled, judge, measure
from fedglioma.data.register import Movement, register
from fedglioma.data.source import Source, voxel_digest
from fedglioma.data.volume import (
    FloatArray,
    Volume,
    VolumeError,
)
from fedglioma.errors import NoUsableCase
from fedglioma.scale import Landmarks

PIPELINE_VERSION: Final = 5
"""Raised whenever the same input would give other voxels or another record: it is part of every key."""

MIN_COVERAGE: Final = 0.9
WHOLE_HEAD_MM: Final = (240.0, 240.0, 155.0)

PRESETS: Final[dict[Preprocessing, dict[str, Any]]] = {
    "standard": {},
    "mdpnet": {"correct_bias": False, "whole_head": True},
    "sgpnet": {"correct_bias": False, "margin_mm": 0.0, "resized": 144},
    "fusion": {"reference": "t2"},
}
"""What the published systems do differently: MDPNet's, SGPNet's and the fusion model's own preprocessing.

A run may ask for another size than the 144 voxels of SGPNet's paper: its crop (``PrepareSettings.of``).
"""


class PrepareSettings(Frozen):
    """What decides how a prepared case looks, besides its files.

    ``reference`` is what the others are laid over, where it is there. ``whole_head`` keeps a box of
    ``WHOLE_HEAD_MM`` about the brain instead of the brain's own; ``resized`` is the edge in voxels that the
    brain's box is stretched to, 0 for none. ``zscore`` is of the brain or of the whole box.
    """

    spacing_mm: float = Field(default=1.0, ge=0.5, le=16)
    margin_mm: float = Field(default=4.0, ge=0, le=50)
    register_modalities: bool = True
    correct_bias: bool = True
    brain_extractor: str = AUTO
    reference: Literal["sharpest", "t2"] = "sharpest"
    whole_head: bool = False
    resized: int = Field(default=0, ge=0, le=512)
    zscore: Literal["brain", "volume"] = "brain"
    version: int = PIPELINE_VERSION

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is as it was before there was a choice: keys of prepared cases stay theirs."""
        table: dict[str, Any] = dump(self)
        return {name: value for name, value in table.items() if (name, value) != ("zscore", "brain")}

    @classmethod
    def of(cls, run: RunConfig, brain_extractor: str = AUTO) -> Self:
        """Return what a run's settings ask for; how brains are found is the site's.

        Where the brain is stretched to a cube, that is the run's crop, so that a crop is the whole brain.
        """
        preset = PRESETS[run.preprocessing]
        size = {"resized": run.crop, "zscore": run.zscore} if "resized" in preset else {}
        return cls(
            spacing_mm=run.spacing_mm,
            correct_bias=run.bias_correction,
            brain_extractor=brain_extractor,
        ).model_copy(update=preset | size)


@dataclass(frozen=True)
class Prepared:
    """What became of the cases, in their order; ``records`` stand beside ``cases``."""

    cases: tuple[PreparedCase, ...]
    exclusions: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    records: tuple[Record, ...] = ()


def prepare_cases(
    cases: Sequence[Case],
    settings: PrepareSettings,
    cache: Cache,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> Prepared:
    """Return the cases with their prepared arrays and masks, and why others were left out.

    A mask that cannot be used is a warning, and its case has none from then on. A case that shares a file's
    content, or all its voxels, with an earlier one is excluded: the same image under two ids would stand on
    both sides of a split.

    Raises
    ------
    NonePrepared
        Cases were given and none of them can be used.
    OSError
        The cache cannot be written; what was finished is kept.
    """
    cache.sweep()
    counter = _Counter(progress, len(cases))
    outcomes: list[Stored | VolumeError | None] = []
    tasks: list[_Task] = []
    # Reading and hashing let go of the interpreter, so threads are enough to look up what is there.
    with ThreadPoolExecutor(max(1, workers)) as threads:
        for task in _first_of_each_image(cases, threads.map(partial(_look_up, settings, cache), cases)):
            outcome = task.found if isinstance(task, _Task) else task
            outcomes.append(outcome)
            if outcome is not None:
                counter.one()
            elif isinstance(task, _Task):
                tasks.append(task)
    made = iter(map_cases(partial(_make, settings, cache), tasks, workers=workers, done=counter.one))
    settled = [next(made) if outcome is None else outcome for outcome in outcomes]
    prepared = _sorted_out(cases, settled)
    with_masks, unusable = lay_masks(prepared.cases, prepared.records, cache, workers=workers)
    return replace(prepared, cases=with_masks, warnings=(*prepared.warnings, *unusable))


@dataclass(frozen=True)
class _Task:
    """A case's files with their digests, its key, and the entry if the cache has it."""

    sources: Mapping[Modality, Source]
    inputs: Mapping[Modality, str]
    key: str
    found: Stored | None


class NonePrepared(NoUsableCase):
    """None of the cases can be prepared; ``exclusions`` says of each why."""

    def __init__(self, exclusions: Sequence[Finding]) -> None:
        first = exclusions[0]
        super().__init__(
            f"none of {len(exclusions)} cases can be prepared", f"the first, {first.patient}: {first.message}"
        )
        self.exclusions = tuple(exclusions)


class _Counter:
    """Counts finished cases for a progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.finished = progress, total, 0

    def one(self) -> None:
        self.finished += 1
        self.progress(self.finished, self.total)


def _look_up(settings: PrepareSettings, cache: Cache, case: Case) -> _Task | VolumeError:
    """Return what the cache holds for a case, or what is wrong with a file of it."""
    sources = {modality: Source.of(case, modality) for modality in case.present}
    inputs: dict[Modality, str] = {}
    for modality, source in sources.items():
        try:
            inputs[modality] = source.digest()
        except VolumeError as error:
            return _about(modality, source, error)
    if not inputs:
        return VolumeError("no_modality", "no modality; nothing to prepare")
    key = content_key(inputs, settings.model_dump(mode="json"))
    return _Task(sources, inputs, key, cache.get(key))


def _first_of_each_image(
    cases: Sequence[Case], looked: Iterable[_Task | VolumeError]
) -> Iterator[_Task | VolumeError]:
    """Yield each case's task, or an error in its place when an earlier case has one of its images."""
    owner: dict[str, str] = {}
    for case, task in zip(cases, looked, strict=True):
        if isinstance(task, VolumeError):
            yield task
            continue
        repeated = {m: owner[digest] for m, digest in task.inputs.items() if digest in owner}
        if repeated:
            modality, patient = next(iter(repeated.items()))
            yield _duplicate(f"{modality} ({task.sources[modality].name})", patient)
            continue
        owner |= dict.fromkeys(task.inputs.values(), case.patient)
        yield task


def _make(settings: PrepareSettings, cache: Cache, task: _Task) -> Stored | VolumeError:
    """Prepare one case and keep it; what is wrong with it comes back as a value."""
    try:
        volumes = {m: _read(m, task.sources[m], digest) for m, digest in task.inputs.items()}
        array, record = prepare_volumes(volumes, task.inputs, settings)
    except VolumeError as error:
        return error
    return cache.put(task.key, array, record)


def _read(modality: Modality, source: Source, digest: str) -> Volume:
    try:
        return source.read(digest)
    except VolumeError as error:
        raise _about(modality, source, error) from None


def prepare_volumes(
    volumes: Mapping[Modality, Volume], inputs: Mapping[Modality, str], settings: PrepareSettings
) -> tuple[HalfArray, Record]:
    """Return the network's array of one case, shape (4, D, H, W), and its record.

    Parameters
    ----------
    volumes : mapping of Modality to Volume
        In RAS order, at least one.
    inputs : mapping of Modality to str
        Digests of the files they came from; they go into the record.

    Raises
    ------
    VolumeError
        There is no brain, a modality has nothing to show in it, or its quality rules it out.
    """
    fixed = settings.reference == "t2" and Modality.T2 in volumes
    reference = Modality.T2 if fixed else reference_of(volumes)
    grids = {modality: Placed.of(volume) for modality, volume in volumes.items()}
    volumes, movements = _laid_over(reference, volumes) if settings.register_modalities else (volumes, {})
    grid = covering_grid(volumes[reference], settings.spacing_mm)
    brain = find_brain(volumes, grid, settings.brain_extractor)
    remarks = [Remark(code=code, message=message) for code, message in brain.doubts]
    box = bounding_box(brain.mask, settings.margin_mm, settings.spacing_mm)
    if settings.whole_head:
        box = box_about(box, WHOLE_HEAD_MM, settings.spacing_mm)
    target = grid.crop(box)
    inside = cut_out(brain.mask, box)
    image = np.zeros((len(CHANNELS), *target.shape), np.float16)  # (M, D, H, W)
    percentiles: dict[Modality, Landmarks] = {}
    corrected: dict[Modality, FloatArray] = {}
    samples: dict[Modality, Sampled] = {}
    region = Region.of(inside, target)
    for channel, modality in enumerate(CHANNELS):
        if modality not in volumes:
            continue
        values = resample(volumes[modality], target, smooth=True)
        raw, own = values.ravel()[region.sampled], None
        if modality in brain.own:
            stripped = resample(brain.own[modality], target)
            own = stripped.ravel()[region.sampled] >= 0.5
            values[stripped < 0.5] = np.nan
        try:
            scaled = zscore_in_brain(values, inside)
            if settings.correct_bias:
                values = correct_bias(values, inside, settings.spacing_mm)
                scaled = zscore_in_brain(values, inside)
            corrected[modality] = values
            percentiles[modality] = brain_percentiles(scaled)
        except VolumeError as error:
            raise VolumeError(error.code, f"{modality}: {error.reason}") from None
        samples[modality] = Sampled(raw, values.ravel()[region.sampled], scaled.ravel()[region.sampled], own)
        final = zscore_in_volume(values, inside) if settings.zscore == "volume" else scaled
        image[channel] = half_precision(final, inside & np.isfinite(values))
        seen = float(np.isfinite(values[inside]).mean())
        if seen < MIN_COVERAGE:
            message = f"{modality} shows {seen:.0%} of the brain; the rest is taken as average"
            remarks.append(Remark(code="coverage", message=message))
    remarks += _told(check_contents(corrected, inside, settings.spacing_mm))
    quality = measure(volumes, corrected, samples, reference, region)
    remarks += _told(judge(quality, whole_head=bool(brain.doubts)))
    affine = target.affine
    if settings.resized:
        of_volume = settings.zscore == "volume"
        image, affine = stretched(image, affine, settings.resized, of_volume=of_volume)
    record = Record(
        present=_presence(volumes),
        spacing_mm=settings.spacing_mm,
        affine=tuple(tuple(row) for row in affine.tolist()),
        box=box,
        inputs=dict(inputs),
        voxels={m: voxel_digest(volume) for m, volume in volumes.items()},
        settings=settings.model_dump(mode="json"),
        percentiles=percentiles,
        reference=reference,
        grids=grids,
        movements={m: Moved.of(movement) for m, movement in movements.items()},
        quality=quality,
        remarks=(
            *remarks,
            *_doubts_of_files(inputs, unmoved=not movements and not same_grid(volumes.values())),
        ),
    )
    return image, record


def _laid_over(
    reference: Modality, volumes: Mapping[Modality, Volume]
) -> tuple[dict[Modality, Volume], dict[Modality, Movement]]:
    """Return the volumes in the reference's space, and how those were moved that did not share its grid."""
    moved = dict(volumes)
    movements = {}
    for modality, volume in volumes.items():
        if modality == reference or same_grid((volumes[reference], volume)):
            continue
        try:
            movements[modality] = register(volumes[reference], volume)
        except VolumeError as error:
            raise VolumeError(error.code, f"{modality}, laid over {reference}: {error.reason}") from None
        moved[modality] = movements[modality].moved(volume)
    return moved, movements


def _presence(volumes: Mapping[Modality, Volume]) -> Presence:
    flair, t1ce, t1, t2 = (modality in volumes for modality in CHANNELS)
    return (flair, t1ce, t1, t2)


def _told(doubts: Sequence[Doubt]) -> list[Remark]:
    """Return doubts as remarks; raises ``VolumeError`` for the first that is certain."""
    for doubt in doubts:
        if doubt.certain:
            raise VolumeError(doubt.code, doubt.message)
    return [Remark(code=doubt.code, message=doubt.message) for doubt in doubts]


def _doubts_of_files(inputs: Mapping[Modality, str], *, unmoved: bool) -> list[Remark]:
    """Return what the files of one case say about each other."""
    remarks = []
    if unmoved:
        reason = (
            "the modalities lie on different grids; they were laid over each other by their headers alone"
        )
        remarks.append(Remark(code="not_registered", message=reason))
    if len(set(inputs.values())) < len(inputs):
        names = [m.value for m, digest in inputs.items() if list(inputs.values()).count(digest) > 1]
        reason = f"{' and '.join(names)} are byte for byte the same file; one of them is misnamed"
        remarks.append(Remark(code="same_file", message=reason))
    return remarks


def _sorted_out(cases: Sequence[Case], settled: Sequence[Stored | VolumeError]) -> Prepared:
    """Return each case as prepared or excluded; raises ``NonePrepared`` when none is left."""
    prepared: list[PreparedCase] = []
    records: list[Record] = []
    exclusions: list[Finding] = []
    warnings: list[Finding] = []
    owner: dict[str, str] = {}
    for case, outcome in zip(cases, settled, strict=True):
        if isinstance(outcome, Stored) and outcome.digest in owner:
            outcome = _duplicate("every voxel", owner[outcome.digest])
        if isinstance(outcome, VolumeError):
            exclusions.append(_finding(case, outcome.code, outcome.reason))
            continue
        owner[outcome.digest] = case.patient
        warnings += [_finding(case, remark.code, remark.message) for remark in outcome.record.remarks]
        prepared.append(outcome.as_case(case))
        records.append(outcome.record)
    if cases and not prepared:
        raise NonePrepared(exclusions)
    return Prepared(tuple(prepared), tuple(exclusions), tuple(warnings), tuple(records))


def _about(modality: Modality, source: Source, error: VolumeError) -> VolumeError:
    return VolumeError(error.code, f"{modality} ({source.name}): {error.reason}")


def _duplicate(what: str, patient: str) -> VolumeError:
    reason = f"{what} is the same as of patient {patient}; one image, one patient: only the first counts"
    return VolumeError("duplicate_image", reason)


def _finding(case: Case, code: str, message: str) -> Finding:
    return Finding(patient=case.patient, site=case.site, code=code, message=message, stage="prepare")
