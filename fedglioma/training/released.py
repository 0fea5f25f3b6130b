"""A released model read from its folder: checked against its own description before it is used."""

import json
from pathlib import Path
from typing import NamedTuple

from fedglioma.case import CHANNELS, GENES, Gene
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError, ProtocolError
from fedglioma.scale import Scale
from fedglioma.tensorfile import read_safetensors
from fedglioma.training.learner import Learner, build_learner
from fedglioma.weights import Layout, digest_of, pack, unpack


class Released(NamedTuple):
    """A released network with its weights, what it was trained with, and the scale that its images are on."""

    learner: Learner
    settings: RunConfig
    scale: Scale | None


def load_model(folder: Path) -> Released:
    """Return a released model.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma, or its weights are damaged or of another network.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings = RunConfig.from_mapping(config["settings"], str(folder / "config.json"))
        counts = {Gene(name): (float(a), float(b)) for name, (a, b) in config["class_counts"].items()}
        scale = None if config["scale"] is None else Scale.model_validate(config["scale"])
        scale_id = config["scale_id"]
        channels, genes = config["channels"], config["genes"]
        recorded = config["layout"], config["digest"]
        learner = build_learner(settings, counts)
    except FileNotFoundError:
        inside = folder / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ProtocolError(f"{folder}: not a released model, it has no config.json{hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ProtocolError(f"{folder}: not a released model ({type(error).__name__}: {error})") from None
    if channels != [m.value for m in CHANNELS] or genes != [g.value for g in GENES]:
        raise ProtocolError(
            f"{folder}: made for channels {channels} and genes {genes}, which this version does not use"
        )
    if (None if scale is None else scale.id) != scale_id:
        raise ProtocolError(f"{folder}: the intensity scale in config.json is not the one of its scale_id")
    layout = Layout.of(learner.model, learner.loss, whole=True)
    if layout.digest != recorded[0]:
        raise ProtocolError(f"{folder}: the weights are of another network than config.json describes")
    file = folder / "model.safetensors"
    tensors, _ = read_safetensors(file)
    arrays = layout.flat(tensors, str(file))
    if digest_of(arrays) != recorded[1]:
        raise ProtocolError(f"{folder}: model.safetensors is damaged, its content does not match config.json")
    unpack(arrays, learner.model, learner.loss, whole=True)
    learner.model.eval()
    return Released(learner, settings, scale)


def model_digest(folder: Path) -> str:
    """Return the digest of a released model's weights, as its description has it.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma.
    """
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"{folder}: not a released model ({type(error).__name__})") from None


def take_over(folder: Path, learner: Learner, layout: Layout) -> None:
    """Copy a released model's weights into an untrained network of the same kind.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma, or its weights are of another network.
    """
    released = load_model(folder)
    if Layout.of(released.learner.model, released.learner.loss).digest != layout.digest:
        raise ProtocolError(
            f"{folder}: holds another network than the run trains; start from one of the same model, width, "
            "crop and switches"
        )
    unpack(pack(released.learner.model, released.learner.loss), learner.model, learner.loss)
