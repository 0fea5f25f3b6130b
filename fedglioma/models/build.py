"""Networks by name, built from their switches."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError
from torch import nn

from fedglioma.case import Gene, Modality
from fedglioma.errors import ConfigError
from fedglioma.models.baselines import CLASSIFIERS, SEGMENTERS, BaselineConfig, build_baseline, coarsest
from fedglioma.models.mdpnet import MDPNet, MDPNetConfig
from fedglioma.models.sgpnet import SGPNet, SGPNetConfig


@dataclass(frozen=True)
class Switches:
    """What decides how a network is built; each network looks at those that concern it.

    ``preset`` is ``recommended`` or ``reference`` (batch normalisation, and close to MDPNet's published
    code). ``width`` scales every layer. ``pos_grid`` has the positions per axis of MDPNet's transformer, one
    eighth of the crop; the same at every site, whatever it crops. ``path2``, ``attention`` and ``guide`` are
    MDPNet's ablations (tables 4 to 6), ``targets`` SGPNet's (table 2). ``norm``, ``guide_mode`` and
    ``head_act`` stand above the preset, which decides where they are ``auto``.
    """

    preset: str = "recommended"
    width: int = 16
    pos_grid: tuple[int, int, int] = (16, 16, 16)
    path2: tuple[Modality, ...] = (Modality.T2, Modality.FLAIR)
    attention: str = "vit+rda"
    guide: tuple[Gene, ...] = (Gene.IDH, Gene.ATRX)
    targets: str = "both"
    norm: str = "auto"
    guide_mode: str = "auto"
    guide_detach: bool = False
    head_act: str = "auto"
    head_1x1: str = "shortcut"


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


def least_batch(name: str, switches: Switches, crop: int) -> int:
    """Return how many cases a training batch of cubic crops must have.

    2 where the coarsest batch normalisation would see a single value per channel of one case, else 1.
    """
    size = (crop,) * 3
    if name in (*CLASSIFIERS, *SEGMENTERS):
        single = _baseline_config(name, switches).norm == "batch" and coarsest(name, size) == 1
    elif name == "mdpnet":
        config = _mdpnet_config(switches)
        single = config.norm == "batch" and config.coarsest(size) == 1
    else:
        single = False
    return 2 if single else 1


def _mdpnet_config(switches: Switches) -> MDPNetConfig:
    preset = MDPNetConfig.preset(switches.preset, switches.width, switches.pos_grid)
    chosen = {
        "path2": switches.path2,
        "attention": switches.attention,
        "guide": switches.guide,
        "guide_detach": switches.guide_detach,
    }
    above = {"norm": switches.norm, "guide_mode": switches.guide_mode, "head_act": switches.head_act}
    chosen |= {name: value for name, value in above.items() if value != "auto"}
    return MDPNetConfig.model_validate(preset.model_dump() | chosen)


def _mdpnet(_name: str, switches: Switches) -> nn.Module:
    return MDPNet(_mdpnet_config(switches))


def _sgpnet(_name: str, switches: Switches) -> nn.Module:
    chosen = {"width": switches.width, "targets": switches.targets, "head_1x1": switches.head_1x1}
    return SGPNet(SGPNetConfig.model_validate(chosen))


def _baseline_config(name: str, switches: Switches) -> BaselineConfig:
    by_preset = "batch" if switches.preset == "reference" else "group"
    norm = by_preset if switches.norm == "auto" else switches.norm
    return BaselineConfig.model_validate({"name": name, "width": switches.width, "norm": norm})


def _baseline(name: str, switches: Switches) -> nn.Module:
    return build_baseline(_baseline_config(name, switches))


_BUILDERS: dict[str, Callable[[str, Switches], nn.Module]] = {
    "mdpnet": _mdpnet,
    "sgpnet": _sgpnet,
    **dict.fromkeys((*CLASSIFIERS, *SEGMENTERS), _baseline),
}
