"""How a case is read by a trained network: in one piece or by windows, once or mirrored as well."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn

from fedglioma.case import GENES, Task
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError

OVERLAP = 0.5
AXES = (2, 3, 4)

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Reader:
    """How images are given to a network, and how what it says of the pieces becomes one answer.

    ``window`` is the edge in voxels of the windows that slide over an image, overlapping by half; None reads
    the image in one piece. A marker's probability is the mean over the windows that hold any of the brain,
    a voxel's that over the windows that see it, those in whose middle it lies counting more (Gaussian).
    ``flips`` averages over the eight mirror images too. Averages are of probabilities.
    """

    window: int | None = None
    flips: bool = False

    @classmethod
    def of(cls, settings: RunConfig) -> "Reader":
        """Return how a run's settings ask for images to be read."""
        return cls(settings.crop if settings.sliding else None, settings.average_flips)

    def read(self, model: nn.Module, image: Tensor, present: Tensor) -> Outputs:
        """Return the logits of each task: (B, 2) of a marker, (B, 2, D, H, W) of the tumour.

        Parameters
        ----------
        image : Tensor, shape (B, 4, D, H, W)
        present : Tensor, shape (B, 4)
        """
        if not self.flips:
            return self._once(model, image, present)
        mirrored = []
        for axes in [tuple(a for a, on in zip(AXES, chosen, strict=True) if on) for chosen in _EIGHT]:
            outputs = self._once(model, image.flip(axes), present)
            if Task.SEGMENTATION in outputs:
                outputs[Task.SEGMENTATION] = outputs[Task.SEGMENTATION].flip(axes)
            mirrored.append(outputs)
        return _mean(mirrored)

    def _once(self, model: nn.Module, image: Tensor, present: Tensor) -> Outputs:
        if self.window is None:
            return cast(Outputs, model(image, present))
        cases = [
            _by_windows(model, image[i : i + 1], present[i : i + 1], self.window) for i in range(len(image))
        ]
        return {name: torch.cat([case[name] for case in cases]) for name in cases[0]} if cases else {}


_EIGHT = tuple(product((False, True), repeat=3))


def _by_windows(model: nn.Module, image: Tensor, present: Tensor, edge: int) -> Outputs:
    infer = _sliding_window()
    told: list[Outputs] = []
    told_of_air: list[Outputs] = []

    def of_window(window: Tensor) -> Tensor:
        outputs = cast(Outputs, model(window, present.expand(len(window), -1)))
        answers: Outputs = {gene.value: outputs[gene.value] for gene in GENES if gene.value in outputs}
        (told if bool((window != 0).any()) else told_of_air).append(answers)
        found = outputs.get(Task.SEGMENTATION)
        # Every window must give a map; one of zeros where the network draws none.
        return window.new_zeros((len(window), 2, *window.shape[2:])) if found is None else found.softmax(1)

    maps = infer(image, (edge,) * 3, 1, of_window, overlap=OVERLAP, mode="gaussian")
    outputs = _mean(told or told_of_air)  # air says nothing of a genotype
    if bool(maps.any()):
        outputs[Task.SEGMENTATION] = _logits(maps)
    return outputs


def _mean(parts: list[Outputs]) -> Outputs:
    """Return the logits whose probabilities are the mean of the parts' probabilities."""
    return {
        name: _logits(torch.stack([part[name].softmax(1) for part in parts]).mean(0)) for name in parts[0]
    }


def _logits(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def _sliding_window() -> Callable[..., Tensor]:
    try:
        from monai.inferers.utils import sliding_window_inference
    except ImportError:
        raise ConfigError(
            "inference: sliding windows need MONAI: pip install 'fedglioma[baselines]'"
        ) from None
    return cast("Callable[..., Tensor]", sliding_window_inference)
