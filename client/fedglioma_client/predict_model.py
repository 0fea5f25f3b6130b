"""A released model, looked at and made ready to read single patients on this computer."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from fedglioma.case import Frozen, Task
from fedglioma.config.run import Inference, RunConfig
from fedglioma.data.prepare import PIPELINE_VERSION
from fedglioma.errors import ConfigError, ProtocolError
from fedglioma.scale import Scale
from fedglioma.training.inference import Reader
from fedglioma.training.learner import Learner
from fedglioma.training.released import load_model, read_config
from fedglioma_client.machine import check_device
from fedglioma_client.verdict import Status

WITHOUT_MONAI: Final = ("mdpnet", "sgpnet")


class ModelIdentity(Frozen):
    """Which model it was; ``digest`` is that of its weights."""

    digest: str
    run_id: str
    round: int
    synthetic: bool
    network: str
    tasks: tuple[Task, ...]
    preprocessing: str
    scale_id: str | None
    fedglioma: str


class Reading(Frozen):
    """How a patient's images are given to the network: ``Reader``, and the centre crop without windows."""

    crop: int
    window: int | None
    flips: bool


@dataclass(frozen=True)
class Predictor:
    """A network with its weights on its device.

    ``settings`` are those of its training but for how images are read. ``doubts`` say in words what may be
    different from its training.
    """

    learner: Learner
    settings: RunConfig
    scale: Scale | None
    identity: ModelIdentity
    device: torch.device
    doubts: tuple[str, ...] = ()

    @property
    def reader(self) -> Reader:
        """How images are read."""
        return Reader.of(self.settings)

    @property
    def reading(self) -> Reading:
        """How images are read, as a result holds it."""
        reader = self.reader
        return Reading(crop=self.settings.crop, window=reader.window, flips=reader.flips)


class _Described(BaseModel):
    """What of a model's ``config.json`` is told beside its predictions."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    round: int
    synthetic: bool
    digest: str
    versions: dict[str, str] = {}
    pipeline: int | None = None


def load_predictor(
    folder: Path, *, device: str, flips: bool | None = None, window: Inference | None = None
) -> Predictor:
    """Return a released model, ready on a device.

    Parameters
    ----------
    flips, window : optional
        Otherwise than the model's own settings.

    Raises
    ------
    ConfigError
        The device cannot be used, the model cannot be read so, or MONAI is needed and not installed.
    ProtocolError
        The folder holds no model of fedglioma, a damaged one, or one of another version.
    """
    table = read_config(folder)
    _demand_monai(_network(table), window)
    learner, trained, scale = load_model(folder)
    described = _described(table, folder)
    settings = _asked(trained, flips, window)
    if settings.sliding:
        _demand_monai(settings.model, "sliding")
    place = usable_device(device)
    identity = ModelIdentity(
        digest=described.digest,
        run_id=described.run_id,
        round=described.round,
        synthetic=described.synthetic,
        network=settings.model,
        tasks=settings.tasks,
        preprocessing=settings.preprocessing,
        scale_id=None if scale is None else scale.id,
        fedglioma=described.versions.get("fedglioma", "unknown"),
    )
    return Predictor(learner.to(place), settings, scale, identity, place, _doubts(identity))


def usable_device(name: str) -> torch.device:
    """Return the device of a name; raises ``ConfigError`` where PyTorch cannot compute on it."""
    verdict = check_device(name)
    if verdict.status is Status.FAILED:
        raise ConfigError(f"device: {verdict.detail}; {verdict.remedy}")
    return torch.device(name)


def _network(table: Mapping[str, Any]) -> str | None:
    settings = table.get("settings")
    name = settings.get("model") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else None


def _demand_monai(network: str | None, window: Inference | None) -> None:
    """Say that MONAI is missing before anything else takes its absence for a broken model."""
    needed = window == "sliding" or (network is not None and network not in WITHOUT_MONAI)
    if needed and find_spec("monai") is None:
        what = "sliding windows need" if network in (None, *WITHOUT_MONAI) else f"the network {network} needs"
        raise ConfigError(f"{what} MONAI: pip install 'fedglioma[baselines]'")


def _described(table: Mapping[str, Any], folder: Path) -> _Described:
    """Return what a loaded model says of itself; raises ``ProtocolError``."""
    try:
        described = _Described.model_validate(table)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ProtocolError(f"{folder}: config.json: {place}: missing or not as it is written") from None
    if described.pipeline not in (None, PIPELINE_VERSION):
        raise ProtocolError(
            f"{folder}: made for images prepared by version {described.pipeline} of the preparation, this "
            f"fedglioma has version {PIPELINE_VERSION}: install fedglioma "
            f"{described.versions.get('fedglioma', 'of that time')}, or ask for a newer model"
        )
    return described


def _asked(trained: RunConfig, flips: bool | None, window: Inference | None) -> RunConfig:
    """Return the model's settings with how images are to be read; raises ``ConfigError``."""
    changed = trained.model_dump(mode="json")
    changed |= {} if flips is None else {"average_flips": flips}
    changed |= {} if window is None else {"inference": window}
    return RunConfig.recorded(changed, "--window")


def _doubts(identity: ModelIdentity) -> tuple[str, ...]:
    here = version("fedglioma")
    if identity.fedglioma == here:
        return ()
    return (
        f"the model was released with fedglioma {identity.fedglioma}, this is {here}: images may be prepared "
        "otherwise than in its training",
    )
