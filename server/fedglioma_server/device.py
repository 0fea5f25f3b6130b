"""The device that was asked for, looked at before anything is done on it."""

import warnings

import torch

from fedglioma.errors import ConfigError


def usable_device(name: str, place: str = "--device") -> torch.device:
    """Return the device of a name; ``place`` is what an error names.

    Raises
    ------
    ConfigError
        The name is not ``cpu``, ``cuda`` or ``cuda:N``, or there is no such GPU for this PyTorch.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{place} {name}: choose cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    with warnings.catch_warnings():  # what PyTorch warns of, a missing driver, is said below
        warnings.simplefilter("ignore")
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        raise ConfigError(f"{place} {name}: PyTorch finds {found or 'no'} GPU here; choose cpu")
    return device
