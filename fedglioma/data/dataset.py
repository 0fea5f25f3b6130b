"""Prepared cases as samples: a crop of the image, which modalities are there, genotype, tumour mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fedglioma.case import CHANNELS, UNKNOWN
from fedglioma.data.augment import Augmentation, Draw, apply, apply_to_mask, draw
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.window import centre_starts, window
from fedglioma.errors import ConfigError, DataError

CROP_STREAM = 1
"""Keeps the random numbers of crops apart from those of the loader's order, for the same seed."""

Masks = Literal["none", "whole", "random"]
"""What stands for the tumour in training: nothing, the expert's whole tumour, or noise as a control."""

HalfVolume = NDArray[np.float16]
BoolArray = NDArray[np.bool_]
Label = NDArray[np.int8]


class Sample(NamedTuple):
    """What a network trains on: one case, or a batch of cases stacked along a first axis.

    ``image`` (4, D, H, W) float32, ``present`` (4,) float32 of 0 and 1, ``genotype`` (3,) int64 in
    task order, ``UNKNOWN`` where not measured. ``mask`` (D, H, W) int8 is the whole tumour: 1 in it, 0
    elsewhere, ``UNKNOWN`` in every voxel of a case that nobody outlined; None where masks were not asked
    for. Nothing in it names the patient.
    """

    image: Tensor
    present: Tensor
    genotype: Tensor
    mask: Tensor | None = None


class CaseDataset(Dataset[Sample]):
    """The cases of one site or split, cropped to cubes.

    Indexing gives the centre of the brain box, always the same. ``training_sample`` gives a random
    crop, augmented. Either is padded with zeros, evenly, where the brain box is smaller.

    Parameters
    ----------
    cases : sequence of PreparedCase
    crop : int
        Voxels per axis.
    augment : Augmentation, optional
        What happens to training samples besides the crop.
    seed : int
        With the epoch and the index it decides every random number of a training sample.
    whole : bool
        Indexing gives the whole volume instead of its centre; volumes then differ in size.
    masks : {"none", "whole", "random"}
        Whether samples have the tumour's mask. ``random`` gives every training sample a new one, each voxel
        tumour or not as a coin falls, known for every case; indexing then gives the real ones.
    """

    def __init__(
        self,
        cases: Sequence["PreparedCase"],
        crop: int,
        augment: Augmentation | None = None,
        seed: int = 0,
        *,
        masks: Masks = "none",
        whole: bool = False,
    ) -> None:
        if crop < 1:
            raise ConfigError(f"crop: {crop}: at least 1 voxel is needed")
        if seed < 0:
            raise ConfigError(f"seed: {seed}: a number of at least 0 is needed")
        self.cases = tuple(cases)
        self.crop = crop
        self.augment = augment
        self.seed = seed
        self.masks = masks
        self.whole = whole

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        """Return a case as it is evaluated: the centre crop, nothing random.

        Raises
        ------
        DataError
            The prepared volume or its mask is gone or damaged.
        """
        volume = self._open(index)
        box = tuple(volume.shape[1:]) if self.whole else (self.crop,) * 3
        starts = centre_starts(volume.shape[1:], box)
        mask = None if self.masks == "none" else self._mask(index, volume, starts, box)
        return self._sample(index, crop_at(volume, starts, box), mask)

    def training_sample(self, index: int, epoch: int) -> Sample:
        """Return a case as it is trained on in one epoch; the same arguments give the same sample.

        Raises
        ------
        DataError
            The prepared volume or its mask is gone or damaged.
        """
        generator = np.random.default_rng([CROP_STREAM, self.seed, epoch, index])
        volume = self._open(index)
        starts = tuple(_random_start(size, self.crop, generator) for size in volume.shape[1:])
        box = (self.crop,) * 3
        image = crop_at(volume, starts, box)
        outcome = Draw() if self.augment is None else draw(self.augment, generator)
        image = apply(outcome, image)
        if self.masks == "none":
            return self._sample(index, image)
        if self.masks == "random":
            # Drawn last, so that crops and flips are those of the real masks.
            return self._sample(index, image, generator.integers(0, 2, box, dtype=np.int8))
        return self._sample(index, image, apply_to_mask(outcome, self._mask(index, volume, starts, box)))

    def shape(self, index: int) -> tuple[int, ...]:
        """Return how many voxels the prepared volume has along each axis, whatever the crop.

        Raises
        ------
        DataError
            The prepared volume is gone or damaged.
        """
        return self._open(index).shape[1:]

    def outline(self, index: int) -> BoolArray | None:
        """Return the whole tumour on all voxels of the prepared volume, (D, H, W); None if not outlined.

        Raises
        ------
        DataError
            The prepared volume or its mask is gone or damaged.
        """
        labels = self._labels(index, self._open(index))
        return None if labels is None else labels > 0

    def _open(self, index: int) -> HalfVolume:
        """Return the volume on disk, (4, D, H, W), of which only what is cropped will be read."""
        path = self.cases[index].array
        volume: HalfVolume = _mapped(path, "volume")
        if volume.ndim != 4 or len(volume) != len(CHANNELS):
            raise DataError(
                f"{path.name}: not a prepared volume of {len(CHANNELS)} channels: prepare it again"
            )
        return volume

    def _mask(self, index: int, volume: HalfVolume, starts: Sequence[int], box: Sequence[int]) -> Label:
        """Return the whole tumour in a box, 0 outside the volume; ``UNKNOWN`` if not outlined."""
        labels = self._labels(index, volume)
        if labels is None:
            return np.full(box, UNKNOWN, np.int8)
        source, target = window(labels.shape, starts, box)
        cube = np.zeros(box, np.int8)
        cube[target] = labels[source] > 0
        return cube

    def _labels(self, index: int, volume: HalfVolume) -> NDArray[np.uint8] | None:
        path = self.cases[index].mask
        if path is None:
            return None
        labels: NDArray[np.uint8] = _mapped(path, "mask")
        if labels.shape != volume.shape[1:]:
            raise DataError(f"{path.name}: not a prepared mask of this case's volume: prepare it again")
        return labels

    def _sample(self, index: int, image: NDArray[np.float32], mask: Label | None = None) -> Sample:
        case = self.cases[index]
        return Sample(
            torch.from_numpy(image),
            torch.tensor(case.present, dtype=torch.float32),
            torch.tensor(case.case.genotype.labels(), dtype=torch.int64),
            None if mask is None else torch.from_numpy(mask),
        )


def crop_at(volume: HalfVolume, starts: Sequence[int], box: Sequence[int]) -> NDArray[np.float32]:
    """Return the box of voxels that begins at ``starts``, (M, *box), zero outside the volume.

    A start is a voxel of the volume, (M, D, H, W); it is negative where the box begins before it.
    """
    source, target = window(volume.shape[1:], starts, box)
    # Contiguous before the cast: reading in order and converting at once is the fastest of five ways.
    part = np.ascontiguousarray(volume[:, *source]).astype(np.float32)
    if part.shape[1:] == tuple(box):
        return part
    cube = np.zeros((len(volume), *box), np.float32)
    cube[:, *target] = part
    return cube


def _mapped(path: Path, what: str) -> NDArray[Any]:
    """Return an array on disk; opened anew for each sample: an open map would cost a file handle per case."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name}: the prepared {what} cannot be read ({type(error).__name__}): prepare it again"
        ) from error


def _random_start(size: int, crop: int, generator: np.random.Generator) -> int:
    return int(generator.integers(size - crop + 1)) if size > crop else (size - crop) // 2
