"""Networks by name: the only list of model names."""

from pydantic import ValidationError
from torch import nn

from fedglioma.errors import ConfigError
from fedglioma.models.mdpnet import MDPNet, MDPNetConfig

MODEL_NAMES: tuple[str, ...] = ("mdpnet",)


def build_model(
    name: str,
    *,
    preset: str = "recommended",
    width: int = 16,
    pos_grid: tuple[int, int, int] = (16, 16, 16),
) -> nn.Module:
    """Return an untrained network, drawn from torch's global generator.

    Under ``torch.device("meta")`` nothing is drawn or allocated: enough to count parameters, or to
    take over a checkpoint by ``load_state_dict(state, assign=True)``.

    Parameters
    ----------
    name : str
        One of ``MODEL_NAMES``.
    preset : str
        ``recommended`` or ``reference``.
    width : int
        Scales every layer; 16 is the paper's size of MDPNet, 2 is enough for tests.
    pos_grid : tuple of int
        Positions per axis, one eighth of the crop; the same at every site, whatever it crops.

    Raises
    ------
    ConfigError
        A name is unknown or a number out of range.
    """
    if name not in MODEL_NAMES:
        raise ConfigError(f"model {name!r} is unknown: choose {' or '.join(MODEL_NAMES)}")
    try:
        return MDPNet(MDPNetConfig.preset(preset, width, pos_grid))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name}: {place}: {first['input']!r}: {first['msg']}") from error
