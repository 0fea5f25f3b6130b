"""Prepared cases as samples: a crop of the image, which modalities are there, the genotype."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fedglioma.case import CHANNELS
from fedglioma.data.augment import Augmentation, apply, draw
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError

CROP_STREAM = 1
"""Keeps the random numbers of crops apart from those of the loader's order, for the same seed."""


class Sample(NamedTuple):
    """What a network trains on: one case, or a batch of cases stacked along a first axis.

    ``image`` (4, D, H, W) float32, ``present`` (4,) float32 of 0 and 1, ``genotype`` (3,) int64 in
    task order, ``UNKNOWN`` where not measured. Nothing in it names the patient.
    """

    image: Tensor
    present: Tensor
    genotype: Tensor


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
    """

    def __init__(
        self, cases: Sequence["PreparedCase"], crop: int, augment: Augmentation | None = None, seed: int = 0
    ) -> None:
        if crop < 1:
            raise ConfigError(f"crop: {crop}: at least 1 voxel is needed")
        if seed < 0:
            raise ConfigError(f"seed: {seed}: a number of at least 0 is needed")
        self.cases = tuple(cases)
        self.crop = crop
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        """Return a case as it is evaluated: the centre crop, nothing random.

        Raises
        ------
        DataError
            The prepared volume is gone or damaged.
        """
        volume = self._open(index)
        starts = tuple((size - self.crop) // 2 for size in volume.shape[1:])
        return self._sample(index, crop_at(volume, starts, self.crop))

    def training_sample(self, index: int, epoch: int) -> Sample:
        """Return a case as it is trained on in one epoch; the same arguments give the same sample.

        Raises
        ------
        DataError
            The prepared volume is gone or damaged.
        """
        generator = np.random.default_rng([CROP_STREAM, self.seed, epoch, index])
        volume = self._open(index)
        starts = tuple(_random_start(size, self.crop, generator) for size in volume.shape[1:])
        image = crop_at(volume, starts, self.crop)
        if self.augment is not None:
            image = apply(draw(self.augment, generator), image)
        return self._sample(index, image)

    def _open(self, index: int) -> NDArray[np.float16]:
        """Return the volume on disk, (4, D, H, W), of which only what is cropped will be read.

        Opened anew for each sample: an open map would cost a file handle per case.
        """
        path = self.cases[index].array
        try:
            volume = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path.name}: the prepared volume cannot be read ({type(error).__name__}): prepare it again"
            ) from error
        if volume.ndim != 4 or len(volume) != len(CHANNELS):
            raise DataError(
                f"{path.name}: not a prepared volume of {len(CHANNELS)} channels: prepare it again"
            )
        return volume

    def _sample(self, index: int, image: NDArray[np.float32]) -> Sample:
        case = self.cases[index]
        return Sample(
            torch.from_numpy(image),
            torch.tensor(case.present, dtype=torch.float32),
            torch.tensor(case.case.genotype.labels(), dtype=torch.int64),
        )


def crop_at(volume: NDArray[np.float16], starts: Sequence[int], crop: int) -> NDArray[np.float32]:
    """Return the cube that begins at ``starts``, (M, crop, crop, crop), zero outside the volume.

    A start is a voxel of the volume, (M, D, H, W); it is negative where the cube begins before it.
    """
    source, target = [slice(None)], [slice(None)]
    for size, start in zip(volume.shape[1:], starts, strict=True):
        low, high = max(start, 0), min(start + crop, size)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    # Contiguous before the cast: reading in order and converting at once is the fastest of five ways.
    part = np.ascontiguousarray(volume[tuple(source)]).astype(np.float32)
    if part.shape[1:] == (crop, crop, crop):
        return part
    cube = np.zeros((len(volume), crop, crop, crop), np.float32)
    cube[tuple(target)] = part
    return cube


def _random_start(size: int, crop: int, generator: np.random.Generator) -> int:
    return int(generator.integers(size - crop + 1)) if size > crop else (size - crop) // 2
