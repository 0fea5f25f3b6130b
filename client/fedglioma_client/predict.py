"""The ``predict`` command: a released model on single patients of the hospital, here and nowhere else.

Every patient gets a folder of their own. What is done already is kept, so that a stopped run goes on; a
patient who cannot be read is named with the reason, and the others go on.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from fedglioma.case import Case, Finding
from fedglioma.config.run import Inference
from fedglioma.config.site import SiteConfig
from fedglioma.console import Progress, silent
from fedglioma.data.cache import Cache, Record, content_key
from fedglioma.data.extractor import AUTO, check_command
from fedglioma.data.prepare import NonePrepared, Prepared, PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.source import Source
from fedglioma.data.standardize import on_scale
from fedglioma.data.volume import VolumeError, content_digest
from fedglioma.errors import ConfigError, DataError, FedGliomaError
from fedglioma_client.predict_case import read_case
from fedglioma_client.predict_folder import (
    check_out,
    earlier_result,
    result_folder,
)
from fedglioma_client.predict_model import Predictor, load_predictor
from fedglioma_client.predict_patients import choose
from fedglioma_client.predict_result import (
    STATEMENT,
    SYNTHETIC,
    Prediction,
    Question,
    describe,
)
from fedglioma_client.predict_table import table_of
from fedglioma_client.predict_write import write_pages, write_tumour
from fedglioma_client.remedies import Listed
from fedglioma_client.verdict import several

CODE = "prediction"


@dataclass(frozen=True)
class Asked:
    """What the command line says; None leaves a choice to the model or the hospital's settings."""

    patients: tuple[str, ...]
    everybody: bool
    model: Path
    out: Path
    device: str | None = None
    flips: bool | None = None
    window: Inference | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Work:
    """Patients made ready: their images prepared and on the model's scale, ``records`` beside ``cases``."""

    predictor: Predictor
    asked: Asked
    cases: tuple[PreparedCase, ...]
    records: tuple[Record, ...]
    questions: dict[str, Question]
    order: tuple[str, ...]
    kept: tuple[Prediction, ...]
    left_out: tuple[Finding, ...]
    warnings: dict[str, tuple[Listed, ...]]
    synthetic: bool


@dataclass(frozen=True)
class Outcome:
    """What became of the patients who were asked for, in ``order``; ``kept`` had their result already."""

    asked: Asked
    predictor: Predictor
    order: tuple[str, ...]
    made: tuple[Prediction, ...]
    kept: tuple[Prediction, ...]
    left_out: tuple[Listed, ...]

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """Everybody's."""
        return tuple(sorted((*self.made, *self.kept), key=lambda one: self.order.index(one.patient)))

    def error(self) -> FedGliomaError | None:
        """Return that somebody who was named, or everybody of the cohort, could not be read."""
        read = len(self.made) + len(self.kept)
        missed = len({one.patient for one in self.left_out})
        if not missed or (self.asked.everybody and read):
            return None
        return DataError(f"{several(missed, 'patient')} of {read + missed} left out; reasons are in the list")

    def data(self) -> dict[str, Any]:
        """Return the result for machines; it names patients."""
        return {
            "out": str(self.asked.out),
            "statement": STATEMENT,
            "model": self.predictor.identity.model_dump(mode="json"),
            "doubts": list(self.predictor.doubts),
            "made": [one.patient for one in self.made],
            "kept": [one.patient for one in self.kept],
            "predictions": [one.model_dump(mode="json") for one in self.predictions],
            "left_out": [one.model_dump(mode="json") for one in self.left_out],
        }

    def text(self) -> str:
        """Return the result for reading: a line for each patient, and who was left out and why."""
        shown = self.predictions
        lines = ["SYNTHETIC DATA: " + SYNTHETIC] * self.predictor.identity.synthetic
        lines += [f"warning: {doubt}" for doubt in self.predictor.doubts]
        lines += table_of(shown)
        lines += [
            f"warning: {one.patient}: {doubt}"
            for one in shown
            for doubt in one.doubts
            if doubt not in self.predictor.doubts
        ]
        if self.kept:
            lines.append(f"{several(len(self.kept), 'patient')} of them had this result already")
        if self.left_out:
            lines.append(f"left out: {len({one.patient for one in self.left_out})}")
            lines += [f"  {one.patient}: {one.message} -> {one.remedy}" for one in self.left_out]
        if shown:
            lines.append(f"one folder per patient, with report.html: {self.asked.out}")
        lines.append(STATEMENT)
        return "\n".join(lines)


def make_ready(config: SiteConfig, asked: Asked, progress: Progress = silent) -> Work:
    """Return the patients who are asked for, prepared as the model wants them.

    Raises
    ------
    ConfigError
        Nobody is asked for, or somebody whom the cohort does not have; the device or the output folder
        cannot be used; a patient has another result already.
    DataError
        The cohort cannot be read.
    ProtocolError
        The model cannot be used.
    OSError
        The cache cannot be written.
    """
    if bool(asked.patients) == asked.everybody:
        raise ConfigError("name the patients, or give --all for everybody in the cohort; one of the two")
    check_out(asked.out)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    if config.brain_extractor != AUTO:
        check_command(config.brain_extractor)
    predictor = load_predictor(
        asked.model, device=asked.device or config.device, flips=asked.flips, window=asked.window
    )
    chosen = choose(config, asked.patients, everybody=asked.everybody, purpose=predictor.settings.purpose)
    settings = PrepareSettings.of(predictor.settings, config.brain_extractor)
    questions: dict[str, Question] = {}
    kept: list[Prediction] = []
    new: list[Case] = []
    for case in chosen.cases:
        question = _question(case, settings, predictor)
        found = None
        if question is not None:
            questions[case.patient] = question
            found = earlier_result(asked.out / case.patient, question, overwrite=asked.overwrite)
        if found is None:
            new.append(case)
        else:
            kept.append(found)
    prepared, excluded = _prepared(new, settings, Cache(config.cache), config.workers, progress)
    cases = on_scale(prepared.cases, predictor.scale, workers=config.workers)
    return Work(
        predictor,
        asked,
        cases,
        prepared.records,
        questions,
        tuple(case.patient for case in chosen.cases),
        tuple(kept),
        (*chosen.left_out, *excluded),
        _by_patient((*chosen.remarks, *prepared.warnings)),
        chosen.synthetic,
    )


def predict_all(work: Work, progress: Progress = silent) -> Outcome:
    """Return what the model says of every patient, written to a folder each.

    Raises
    ------
    FedGliomaError
        The device's memory is too small.
    OSError
        A result cannot be written; those before are kept.
    """
    made: list[Prediction] = []
    failed: list[Finding] = []
    for number, (case, record) in enumerate(zip(work.cases, work.records, strict=True)):
        try:
            made.append(_predicted(work, case, record))
        except DataError as error:
            failed.append(_finding(case.case, str(error)))
        progress(number + 1, len(work.cases))
    left_out = tuple(map(Listed.of, (*work.left_out, *failed)))
    return Outcome(work.asked, work.predictor, work.order, tuple(made), work.kept, left_out)


def _question(case: Case, settings: PrepareSettings, predictor: Predictor) -> Question | None:
    """Return what is asked of a patient, or None where a file cannot be read: preparation says why."""
    try:
        inputs = {modality: Source.of(case, modality).digest() for modality in case.present}
        mask = None if case.mask is None else content_digest(case.mask)
    except VolumeError:
        return None
    treated: dict[str, JsonValue] = {
        **settings.model_dump(mode="json"),
        "scale": predictor.identity.scale_id,
        "mask": mask,
    }
    return Question(
        model=predictor.identity.digest,
        reading=predictor.reading,
        images=content_key(inputs, treated),
        fedglioma=version("fedglioma"),
    )


def _prepared(
    cases: list[Case], settings: PrepareSettings, cache: Cache, workers: int, progress: Progress
) -> tuple[Prepared, tuple[Finding, ...]]:
    if not cases:
        return Prepared((), (), ()), ()
    try:
        prepared = prepare_cases(cases, settings, cache, workers=workers, progress=progress)
    except NonePrepared as error:
        return Prepared((), (), ()), error.exclusions
    return prepared, prepared.exclusions


def _predicted(work: Work, prepared: PreparedCase, record: Record) -> Prediction:
    """Return a patient's result after writing it; raises ``DataError``."""
    patient = prepared.case.patient
    question = work.questions.get(patient)
    if question is None:  # its files could not be read a moment ago
        raise DataError("its files changed while they were read; run again")
    answer = read_case(work.predictor, prepared)
    with result_folder(work.asked.out / patient) as folder:
        tumour = write_tumour(folder, prepared, record, answer)
        result = describe(
            prepared.case,
            work.predictor,
            question,
            answer.markers,
            tumour=tumour,
            brain_ml=None if record.quality is None else record.quality.brain_ml,
            brain_read=round(answer.brain_read, 4),
            warnings=work.warnings.get(patient, ()),
            synthetic=work.synthetic,
        )
        write_pages(folder, result, prepared, record, answer)
    return result


def _by_patient(findings: Iterable[Finding]) -> dict[str, tuple[Listed, ...]]:
    found: dict[str, list[Listed]] = defaultdict(list)
    for finding in findings:
        found[finding.patient].append(Listed.of(finding))
    return {patient: tuple(listed) for patient, listed in found.items()}


def _finding(case: Case, message: str) -> Finding:
    return Finding(patient=case.patient, site=case.site, code=CODE, message=message, stage="predict")
