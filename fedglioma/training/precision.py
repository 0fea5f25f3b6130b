"""In which numbers a network is trained and run on a device."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fedglioma.config.run import PrecisionName
from fedglioma.errors import ConfigError

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The type of numbers inside the network; weights, losses and sums stay float32 whatever it is."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, name: PrecisionName, device: torch.device) -> "Precision":
        """Return what a name means on a device.

        ``auto`` is bfloat16 on a GPU that computes in it, float16 on an older GPU, float32 on a processor.

        Raises
        ------
        ConfigError
            The device cannot compute in them, or not rightly.
        """
        if name != "auto":
            if device.type == "cpu" and name != "float32":
                # oneDNN 3.12 gives the weights of convolutions over a few voxels gradients from memory that
                # it never wrote, and writes outside its own; without it they take longer than in float32.
                raise ConfigError(
                    f"precision: {name}: a processor's short numbers give wrong gradients; choose auto or "
                    "float32, or train on a GPU"
                )
            if device.type == "cuda" and name == "bfloat16" and not _has_bfloat16(device):
                owner = torch.cuda.get_device_name(device)
                raise ConfigError(f"precision: bfloat16: {owner} has none; choose auto or float16")
            return cls(device, _TYPES[name])
        if device.type != "cuda":
            return cls(device)
        return cls(device, torch.bfloat16 if _has_bfloat16(device) else torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the network's forward pass runs."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients from vanishing in float16; it does nothing with other types."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def _has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
