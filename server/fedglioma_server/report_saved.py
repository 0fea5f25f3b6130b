"""What a run folder holds for its report: records checked on reading, None for what is not there yet."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from fedglioma.errors import ConfigError, DataError, FedGliomaError
from fedglioma.metrics.predictions import Predictions, read_csv
from fedglioma.metrics.tables import Evaluation
from fedglioma.survival.analysis import SurvivalResults
from fedglioma_server.attack_report import AttackReport, attack_file
from fedglioma_server.records import PrivacyRecord, Record, RoundRecord, RunRecord, read_json, read_rounds
from fedglioma_server.report_survival import Analyses

T = TypeVar("T", bound=BaseModel)


class NoSurvival(Record):
    """survival/none.json: why a run has no survival analysis."""

    reason: str


class ReleasedModel(BaseModel):
    """What the report tells of model/config.json."""

    digest: str


@dataclass(frozen=True)
class Saved:
    """Everything that a run folder holds and a report reads; None for what is not there (yet)."""

    run: RunRecord
    rounds: list[RoundRecord]
    privacy: PrivacyRecord | None
    evaluation: Evaluation | None
    predictions: Predictions | None
    survival: Analyses
    model: ReleasedModel | None = None
    attack: AttackReport | None = None

    @property
    def done(self) -> int:
        """Rounds that were completed."""
        return max((record.round for record in self.rounds), default=0)

    @property
    def chosen(self) -> int | None:
        """The round whose model was kept: lowest held-out loss, the last one where no loss is defined."""
        best = [record.round for record in self.rounds if record.selected]
        return best[-1] if best else self.done or None

    @property
    def synthetic(self) -> bool:
        """Whether any part of it says that the patients are made up."""
        marked = (self.run, self.evaluation, *(results for _, results in self.survival.found))
        return any(part is not None and part.synthetic for part in marked)


def read_saved(run_folder: Path) -> Saved:
    """Return what a run folder holds.

    Raises
    ------
    ConfigError
        The folder holds no run, or one of its files is damaged.
    """
    return Saved(
        run=read_json(run_folder / "run.json", RunRecord, "run's record"),
        rounds=_rounds(run_folder / "rounds.jsonl"),
        privacy=_optional(run_folder / "privacy.json", PrivacyRecord),
        evaluation=_optional(run_folder / "evaluation" / "metrics.json", Evaluation),
        predictions=_predictions(run_folder / "evaluation" / "predictions.csv"),
        survival=_survival(run_folder / "survival"),
        model=_optional(run_folder / "model" / "config.json", ReleasedModel),
        attack=_optional(attack_file(run_folder), AttackReport),
    )


def _optional(path: Path, kind: type[T]) -> T | None:
    return read_json(path, kind) if path.exists() else None


def _survival(folder: Path) -> Analyses:
    none = _optional(folder / "none.json", NoSurvival)
    return Analyses(
        measured=_optional(folder / "results.json", SurvivalResults),
        predicted=_optional(folder / "predicted.json", SurvivalResults),
        reason=none.reason if none is not None else None,
    )


def _rounds(path: Path) -> list[RoundRecord]:
    try:
        return read_rounds(path)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: damaged, it is not text; restore it or remove it") from None


def _predictions(path: Path) -> Predictions | None:
    if not path.exists():
        return None
    try:
        return read_csv(path)
    except DataError as error:
        raise ConfigError(f"{path.parent}: {error}") from None
    except FedGliomaError as error:
        raise ConfigError(f"{path}: {error}") from None
