"""A released model read from its folder: checked against its own description before it is used.

The folder may be anybody's. Nothing in it is code: ``config.json`` is read within bounds, its settings are
checked as a run's are, and the weights are safetensors. What the file of weights holds is compared with the
network that the settings describe before either takes memory.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import torch

from fedglioma.case import CHANNELS, GENES, Gene
from fedglioma.config.resolved import resolved
from fedglioma.config.run import RunConfig
from fedglioma.data.prepare import PIPELINE_VERSION
from fedglioma.data.smallfile import read_small
from fedglioma.errors import ConfigError, ProtocolError
from fedglioma.privacy.accounting import Spent
from fedglioma.scale import Scale
from fedglioma.tensorfile import TYPES, read_safetensors, safetensors_shapes
from fedglioma.training.learner import EQUAL_COUNTS, Learner, build_learner
from fedglioma.weights import Layout, digest_of, pack, unpack
from fedglioma.words import one_line

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
FORMAT: Final = "fedglioma-model"
SCHEMA_VERSION: Final = 1

_ENTRIES: Final = frozenset(
    {
        *(
            "schema_version",
            "format",
            "run_id",
            "round",
            "synthetic",
            "settings",
            "channels",
            "genes",
            "scale",
        ),
        *("scale_id", "class_counts", "layout", "digest", "pipeline", "versions", "config_digest", "spent"),
    }
)
_MOST_CONFIG_BYTES: Final = 1 << 20
_INNER_FOLDERS: Final = ("model", "models")
"""Where the model lies in a run's folder, and in a MONAI bundle."""


class Released(NamedTuple):
    """A released network with its weights, what it was trained with, and the scale that its images are on."""

    learner: Learner
    settings: RunConfig
    scale: Scale | None


_DECIDES_WEIGHTS = (
    *("model", "preset", "norm", "width", "crop", "path2", "attention", "guide", "head_1x1", "targets"),
    "strategy",
    "task_weighting",
)
"""Settings that decide which weights there are."""
_DECIDES_USE = ("norm", "path2", "attention", "guide", "guide_mode", "head_act", "head_1x1")
"""Settings that decide what a network does with its weights, of which there may be the same."""


def load_model(folder: Path) -> Released:
    """Return a released model.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma, or its weights are damaged or of another network. The
        message is one line and says what to do.
    """
    config = read_config(folder)
    settings, counts, scale = _described(config, folder)
    layout = _layout_of(settings)
    if layout.digest != config["layout"]:
        raise ProtocolError(f"{folder}: the weights are of another network than {CONFIG} describes")
    file = _inside(folder, WEIGHTS)
    _demand_tensors(file, layout)
    try:
        learner = build_learner(settings, counts)
    except ConfigError as error:
        raise _no_model(folder, error) from None
    if config.get("config_digest") != config_digest(config):
        raise ProtocolError(f"{folder}: {CONFIG} was changed after it was written; copy the folder again")
    tensors, _ = read_safetensors(file)
    arrays = layout.flat(tensors, str(file))
    if digest_of(arrays) != config["digest"]:
        raise ProtocolError(
            f"{folder}: {WEIGHTS} is damaged, its content does not match {CONFIG}; copy the folder again"
        )
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise ProtocolError(f"{file}: {bad[0]} holds numbers that are not finite; release another round")
    unpack(arrays, learner.model, learner.loss, whole=True)
    learner.model.eval()
    return Released(learner, settings, scale)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a released model's description, of which only format and version were looked at.

    Raises
    ------
    ProtocolError
        There is no such file, it is not JSON of a bearable size, or it describes something else.
    """
    if not folder.is_dir():
        raise ProtocolError(f"{folder}: not a released model, there is no such folder")
    inner = next((folder / name for name in _INNER_FOLDERS if (folder / name / CONFIG).is_file()), None)
    if inner is not None and not (folder / CONFIG).exists():
        raise ProtocolError(f"{folder}: not a released model, it has no {CONFIG}; did you mean {inner}?")
    try:
        config = json.loads(
            read_small(_inside(folder, CONFIG), _MOST_CONFIG_BYTES), parse_constant=_no_number
        )
    except (OSError, ValueError, RecursionError) as error:
        raise _no_model(folder, error) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ProtocolError(f"{folder}: not a released model, {CONFIG} is not one of fedglioma")
    version = config.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ProtocolError(
            f"{folder}: {CONFIG} has version {one_line(str(version))[:40]}, this fedglioma reads "
            f"{SCHEMA_VERSION}; install the fedglioma that wrote it, or a newer one"
        )
    return config


def config_digest(config: Mapping[str, Any]) -> str:
    """Return sha256 over a description without this digest itself, however its JSON is laid out."""
    rest = {key: value for key, value in config.items() if key != "config_digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def model_digest(folder: Path) -> str:
    """Return the digest of a released model's weights, as its description has it.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma.
    """
    digest = read_config(folder).get("digest")
    if not isinstance(digest, str):
        raise ProtocolError(f"{folder}: not a released model, {CONFIG} names no digest")
    return digest


def model_spent(folder: Path) -> Spent | None:
    """Return what a released model says of the privacy that training it spent; None where that was open.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma.
    """
    spent = read_config(folder).get("spent")
    try:
        return None if spent is None else Spent.model_validate(spent)
    except ValueError as error:
        raise _no_model(folder, error) from None


def require_same_network(folder: Path, settings: RunConfig) -> None:
    """Check that a run can start from a released model, without reading its weights.

    Raises
    ------
    ConfigError
        Its weights are of another network than the run trains; the message says in what.
    ProtocolError
        The folder does not hold a model of fedglioma.
    """
    there, _, _ = _described(read_config(folder), folder)
    apart = networks_apart(there, settings)
    if apart is not None:
        raise ConfigError(f"--init {folder}: holds another network than the run trains: {apart}")


def networks_apart(there: RunConfig, here: RunConfig) -> str | None:
    """Return in what the networks of two runs differ, in words; None where one can start from the other."""
    if _layout_of(there).digest == _layout_of(here).digest:
        use, own = resolved(there), resolved(here)
        apart = [
            f"{name} {use.get(name)} there, {own.get(name)} here"
            for name in _DECIDES_USE
            if use.get(name) != own.get(name)
        ]
        return ", ".join(apart) or None
    apart = [
        f"{name} {getattr(there, name)} there, {getattr(here, name)} here"
        for name in _DECIDES_WEIGHTS
        if getattr(there, name) != getattr(here, name)
    ]
    return ", ".join(apart) or "other layers"


def taken_scale(folder: Path, settings: RunConfig) -> Scale | None:
    """Return the intensity scale on which a run goes on that starts from a released model.

    It is the model's own: its weights know images on that scale, and the sites are asked nothing for another.
    None where the sites agree on one of their own: the model knows none, or images were prepared otherwise.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma.
    """
    config = read_config(folder)
    there, _, scale = _described(config, folder)
    fits = same_intensities(there, settings) and config.get("pipeline") in (None, PIPELINE_VERSION)
    return scale if fits else None


def same_intensities(there: RunConfig, here: RunConfig) -> bool:
    """Whether images of two runs can lie on one common scale: prepared alike up to it."""
    alike = (there.preprocessing, there.bias_correction) == (here.preprocessing, here.bias_correction)
    return alike and there.common_scale and here.common_scale


def take_over(folder: Path, learner: Learner) -> None:
    """Copy a released model's weights into an untrained network of the same kind.

    Raises
    ------
    ProtocolError
        The folder does not hold a model of fedglioma, or its weights are of another network.
    """
    released = load_model(folder)
    there = Layout.of(released.learner.model, released.learner.loss, whole=True)
    # Whole: with FedBN the norms do not travel, and are released.
    if there.digest != Layout.of(learner.model, learner.loss, whole=True).digest:
        raise ProtocolError(
            f"{folder}: holds another network than the run trains; start from one of the same model, width, "
            "crop and switches"
        )
    arrays = pack(released.learner.model, released.learner.loss, whole=True)
    unpack(arrays, learner.model, learner.loss, whole=True)


def _described(
    config: Mapping[str, Any], folder: Path
) -> tuple[RunConfig, dict[Gene, tuple[float, float]], Scale | None]:
    """Return what a description says of settings, class counts and scale, checked."""
    try:
        settings = RunConfig.recorded(config["settings"], str(folder / CONFIG))
        counts = {Gene(name): (_count(a), _count(b)) for name, (a, b) in config["class_counts"].items()}
        scale = None if config["scale"] is None else Scale.model_validate(config["scale"])
        scale_id = config["scale_id"]
        channels, genes = config["channels"], config["genes"]
        _ = config["layout"], config["digest"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise _no_model(folder, error) from None
    unknown = sorted(set(config) - _ENTRIES)
    if unknown:
        raise ProtocolError(
            f"{folder}: not a released model, {CONFIG} has an unknown entry {_shown(unknown[0])}; install "
            "the fedglioma that wrote it"
        )
    if channels != [m.value for m in CHANNELS] or genes != [g.value for g in GENES]:
        raise ProtocolError(
            f"{folder}: made for channels {_shown(channels)} and genes {_shown(genes)}, which this version "
            "does not use; install the fedglioma that wrote it"
        )
    if (None if scale is None else scale.id) != scale_id:
        raise ProtocolError(
            f"{folder}: the intensity scale in {CONFIG} is not the one of its scale_id; copy the folder again"
        )
    return settings, counts, scale


@lru_cache(maxsize=8)
def _layout_of(settings: RunConfig) -> Layout:
    """Return the layout of a whole network, local layers too, without allocating it."""
    with torch.device("meta"):
        learner = build_learner(settings, EQUAL_COUNTS)
    return Layout.of(learner.model, learner.loss, whole=True)


def _demand_tensors(file: Path, layout: Layout) -> None:
    """Raise ``ProtocolError`` unless a file holds exactly these tensors."""
    expected = {name: (TYPES["float32"], shape) for name, shape in layout.shapes}
    found = safetensors_shapes(file)
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            there, wanted = _form(found.get(name)), _form(expected.get(name))
            raise ProtocolError(
                f"{file}: holds the weights of another network: {one_line(name)[:120]} should be {wanted}, "
                f"found {there}; take both files from one released model"
            )


def _form(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {tensor[1]}"


def _inside(folder: Path, name: str) -> Path:
    """Return a file's path; raises ``ProtocolError`` where it is a link out of the folder."""
    path = folder / name
    try:
        out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a circle of links; opening it says so
        return path
    if out:
        raise ProtocolError(f"{path}: is a link that leads out of the folder; put the file itself there")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ProtocolError(f"{path}: a folder, a pipe or a device; put the file there")
    return path


def _count(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"class_counts: {number:g} is no count")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _shown(value: object) -> str:
    return one_line(str(value))[:120]


def _no_model(folder: Path, error: Exception) -> ProtocolError:
    if isinstance(error, FileNotFoundError):
        return ProtocolError(f"{folder}: not a released model, it has no {CONFIG}")
    return ProtocolError(
        f"{folder}: not a released model ({CONFIG}: {type(error).__name__}: {one_line(str(error))[:500]})"
    )
