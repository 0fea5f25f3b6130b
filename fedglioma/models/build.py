"""Networks by name, built from their switches."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError
from torch import nn

from fedglioma.case import Gene, Modality
from fedglioma.errors import ConfigError
from fedglioma.models.baselines import CLASSIFIERS, SEGMENTERS, BaselineConfig, build_baseline
from fedglioma.models.mdpnet import MDPNet, MDPNetConfig
from fedglioma.models.sgpnet import SGPNet, SGPNetConfig


@dataclass(frozen=True)
class Switches:
    """What decides how a network is built; each network looks at those that concern it.

    ``preset`` is ``recommended`` or ``reference`` (batch normalisation, and close to MDPNet's published
    code). ``width`` scales every layer. ``pos_grid`` has the positions per axis of MDPNet's transformer, one
    eighth of the crop; the same at every site, whatever it crops. ``path2``, ``attention`` and ``guide`` are
    MDPNet's ablations (tables 4 to 6), ``targets`` SGPNet's (table 2).
    """

    preset: str = "recommended"
    width: int = 16
    pos_grid: tuple[int, int, int] = (16, 16, 16)
    path2: tuple[Modality, ...] = (Modality.T2, Modality.FLAIR)
    attention: str = "vit+rda"
    guide: tuple[Gene, ...] = (Gene.IDH, Gene.ATRX)
    targets: str = "both"


def build_model(name: str, switches: Switches) -> nn.Module:
    """Return an untrained network, drawn from torch's global generator.

    It takes ``image`` (B, 4, D, H, W) and ``present`` (B, 4) and returns what it was asked by task: logits
    (B, 2) of a marker, (B, 2, D, H, W) of background and tumour. Under ``torch.device("meta")`` nothing is
    drawn or allocated: enough to count parameters, or to take over a checkpoint by
    ``load_state_dict(state, assign=True)``.

    Raises
    ------
    ConfigError
        A name is unknown, a switch out of range, or a package that the network needs is not installed.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"model {name!r} is unknown: choose {', '.join(_BUILDERS)}")
    try:
        return _BUILDERS[name](name, switches)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise ConfigError(f"{name}: {message}") from error
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name}: {place}: {first['input']!r}: {message}") from error


def _mdpnet(_name: str, switches: Switches) -> nn.Module:
    preset = MDPNetConfig.preset(switches.preset, switches.width, switches.pos_grid)
    ablation = {"path2": switches.path2, "attention": switches.attention, "guide": switches.guide}
    return MDPNet(MDPNetConfig.model_validate(preset.model_dump() | ablation))


def _sgpnet(_name: str, switches: Switches) -> nn.Module:
    return SGPNet(SGPNetConfig.model_validate({"width": switches.width, "targets": switches.targets}))


def _baseline(name: str, switches: Switches) -> nn.Module:
    norm = "batch" if switches.preset == "reference" else "group"
    return build_baseline(
        BaselineConfig.model_validate({"name": name, "width": switches.width, "norm": norm})
    )


_BUILDERS: dict[str, Callable[[str, Switches], nn.Module]] = {
    "mdpnet": _mdpnet,
    "sgpnet": _sgpnet,
    **dict.fromkeys((*CLASSIFIERS, *SEGMENTERS), _baseline),
}
