"""What is stated of a model's privacy, and whether what its run did bears that out."""

import json
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any, Final

from fedglioma.attack.bounds import Bound
from fedglioma.attack.inversion import Noise
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.privacy.accounting import Spent, epsilon_of
from fedglioma.privacy.tradeoff import largest_auc, largest_tpr
from fedglioma.training.released import model_spent
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.spending import spent_of

PRIVACY: Final = "privacy.json"
SAME: Final = 1.001
"""Another version of an accountant's library may differ by so much in an epsilon that is stated truly."""


@dataclass(frozen=True)
class StatedPrivacy:
    """What is said of a model's privacy: in words, as a bound if it is private per patient, and its noise.

    ``private`` is whether an epsilon is stated, of a patient or of a hospital as a whole; ``doubts`` are why
    the statement does not hold, in words.
    """

    words: str
    bound: Bound | None = None
    noise: Noise | None = None
    private: bool = False
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Counted:
    """What training spent by the record of what was done, and by which settings that is counted."""

    settings: RunConfig
    spent: Spent | None
    source: str


@dataclass(frozen=True)
class _Said:
    """An epsilon that is stated, for whom, and the noise that is said to be behind it."""

    unit: str
    epsilon: float
    delta: float
    noise: Noise | None


def stated_privacy(model: Path, settings: RunConfig, run: Path | None) -> StatedPrivacy:
    """Return what is stated of a released model, compared with what its training spent.

    A run folder's ``privacy.json`` states it, and its settings and rounds are what was spent. Without such a
    file, or without a run folder, the record of what was spent is the statement: that of the run, or the one
    in the model's own description. The bound is the smaller of both.

    Parameters
    ----------
    settings : RunConfig
        Those that the model's description has.

    Raises
    ------
    ConfigError
        A file cannot be read, or says private without a usable epsilon and delta.
    ProtocolError
        The model is not one of fedglioma.
    """
    counted, said = _counted(model, settings, run), None if run is None else _said(run)
    if said is not None:
        doubts = () if counted is None else _doubts(said, counted)
        return _stated(said, counted, f"{said.delta:g}", doubts)
    if counted is None or counted.spent is None:
        return StatedPrivacy(_nothing(run))
    delta, noise = (
        counted.settings.delta,
        Noise(counted.settings.clip_norm, counted.settings.noise_multiplier),
    )
    epsilon = epsilon_of(counted.spent.mechanisms, delta, counted.settings.accountant)
    if isinf(epsilon):
        words = f"no bound: by {counted.source} training spent more than can be worked out"
        return StatedPrivacy(words, private=True)
    own = _Said(counted.spent.unit, epsilon, delta, noise)
    return _stated(own, counted, f"{delta:g} by {counted.source}", ())


def _stated(said: _Said, counted: _Counted | None, delta: str, doubts: tuple[str, ...]) -> StatedPrivacy:
    if said.unit == "site":
        words = (
            f"no bound for a patient: epsilon {said.epsilon:g} at delta {delta} is for a hospital as a whole"
        )
        return StatedPrivacy(words, private=True, doubts=doubts)
    words = f"differentially private per patient, epsilon {said.epsilon:g} at delta {delta}"
    return StatedPrivacy(words, _bound(said, counted), said.noise, private=True, doubts=doubts)


def _nothing(run: Path | None) -> str:
    if run is None:
        return "no bound: no run folder was named, and the model's own description states no privacy"
    if (run / PRIVACY).exists():
        return "no bound: not differentially private"
    return f"no bound: the run has no {PRIVACY}, so nothing is stated of its privacy"


def _counted(model: Path, settings: RunConfig, run: Path | None) -> _Counted | None:
    """Return what was spent by the run's record, or without a run by the model's own description.

    None where a folder is named that holds no run: nothing is known of what was done.
    """
    if run is None:
        return _Counted(settings, model_spent(model), "the model's own description")
    folder = RunFolder(run)
    if not folder.exists():
        return None
    record = folder.read()
    return _Counted(record.settings, spent_of(record, folder.rounds()), "the run's own record")


def _said(run: Path) -> _Said | None:
    """Return what a run's ``privacy.json`` states; None where it states nothing, or there is none."""
    file = run / PRIVACY
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__})") from None
    if not isinstance(table, dict) or not table.get("differentially_private"):
        return None
    epsilon, delta = _number(table, "epsilon"), _number(table, "delta")
    if epsilon is None or delta is None:
        raise ConfigError(f"{file}: says differentially private, but no epsilon and delta; it was changed")
    clip, multiplier = _number(table, "clip_norm"), _number(table, "noise_multiplier")
    noise = None if clip is None or multiplier is None else Noise(clip, multiplier)
    Bound.of(epsilon, delta)  # refuses what is no privacy
    return _Said("site" if table.get("unit") == "site" else "patient", epsilon, delta, noise)


def _doubts(said: _Said, counted: _Counted) -> tuple[str, ...]:
    """Return why a statement does not hold by what was done; nothing where it does."""
    states = f"{PRIVACY} states epsilon {said.epsilon:g} at delta {said.delta:g}"
    if counted.spent is None:
        return (f"{states}, and by {counted.source} nothing can be promised of its weights",)
    if counted.spent.unit != said.unit:
        who = {"patient": "a patient", "site": "a hospital as a whole"}
        return (f"{states} for {who[said.unit]}; {counted.source} is of {who[counted.spent.unit]}",)
    spent = epsilon_of(counted.spent.mechanisms, said.delta, counted.settings.accountant)
    if spent > said.epsilon * SAME:
        more = "more than can be worked out" if isinf(spent) else f"{spent:.4g}"
        return (f"{states}, and by {counted.source} training spent {more}",)
    return ()


def _bound(said: _Said, counted: _Counted | None) -> Bound:
    """Return the smaller of what the stated epsilon allows and what the noise itself does."""
    stated = Bound.of(said.epsilon, said.delta)
    if counted is None or counted.spent is None or counted.spent.unit != "patient":
        return stated
    done, accountant = counted.spent.mechanisms, counted.settings.accountant

    def both(fpr: float) -> float:
        return min(stated.largest_tpr(fpr), largest_tpr(done, fpr, accountant))

    return Bound(said.epsilon, said.delta, both, min(stated.largest_auc, largest_auc(done, accountant)))


def _number(table: dict[str, Any], name: str) -> float | None:
    value = table.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
