"""Gradient inversion over several patients: how much of an image one update gives away, with intervals.

Brains resemble each other, so that a picture of any brain correlates with every patient's. What tells a
leak is whether the update points to its own patient among others: the share of patients for whom it does,
beside the share that guessing would reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from fedglioma.attack.inversion import Noise, gradient_of, privatised, recognise, reconstruct
from fedglioma.attack.result import share
from fedglioma.case import Frozen
from fedglioma.console import Progress, silent
from fedglioma.data.dataset import CaseDataset, Sample
from fedglioma.data.loader import stack
from fedglioma.errors import DataError
from fedglioma.metrics.bootstrap import CONFIDENCE, Measure
from fedglioma.seeds import derive_seed
from fedglioma.training.learner import Learner

ITERATIONS: Final = 100
LEAST_CANDIDATES: Final = 2


class ProbeResult(Frozen):
    """What one update gave away, over several patients.

    ``noise`` says whether the gradients were clipped and noised as in private training. ``recognised`` is
    the share of the patients whose update points to their own image among ``candidates``, by the cosine of
    the images' gradients. ``drawn_right`` is the same of the ``drawn`` patients whose image was
    reconstructed, by correlation, what all candidates share taken away. ``chance`` is what guessing reaches.
    ``correlation`` and ``psnr_db`` are of the reconstruction with the true image, ``correlation_others``
    with the other patients' images.
    """

    noise: bool
    cases: int
    drawn: int
    candidates: int
    iterations: int
    chance: float
    recognised: Measure
    drawn_right: Measure
    correlation: Measure
    correlation_others: Measure
    psnr_db: Measure

    @property
    def leaks(self) -> bool:
        """Whether updates point to their patients more often than guessing would, beyond the intervals."""
        return any(
            found.low is not None and found.low > self.chance for found in (self.recognised, self.drawn_right)
        )


@dataclass(frozen=True)
class _Drawing:
    right: bool
    correlation: float
    others: float
    psnr_db: float


def probe(
    learner: Learner,
    dataset: CaseDataset,
    device: torch.device,
    *,
    drawn: int = 3,
    noise: Noise | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> ProbeResult:
    """Return what updates of single cases give away.

    Parameters
    ----------
    learner : Learner
        The network that the server sent out.
    dataset : CaseDataset
        Cases of different patients: each one's update is looked at, all are candidates.
    drawn : int
        Of how many an image is reconstructed; 0 for recognition alone.
    noise : Noise, optional
        Clips and noises each case's gradient first, as private training does with a batch of this one case.
    progress : callable
        Told of cases that are done.

    Raises
    ------
    DataError
        There are fewer than two cases, or a prepared volume is gone or damaged.
    """
    if len(dataset) < LEAST_CANDIDATES:
        raise DataError(f"gradient inversion: {len(dataset)} case; two or more are needed to tell them apart")
    learner.to(device)
    samples = [dataset[number] for number in range(len(dataset))]
    images = [sample.image.to(device) for sample in samples]
    recognised, drawings = 0, []
    progress(0, len(samples))
    for number, sample in enumerate(samples):
        generator = torch.Generator().manual_seed(derive_seed(seed, "probe", number))
        batch = _on(stack([sample]), device)
        observed = gradient_of(learner, batch)
        if noise is not None:
            observed = privatised(observed, noise, generator)
        recognised += _first(recognise(learner, batch, observed, images), number)
        if number < drawn:
            found = reconstruct(learner, batch, observed, iterations=ITERATIONS, generator=generator)
            drawings.append(_compared(found.image[0], images, number))
        progress(number + 1, len(samples))
    return ProbeResult(
        noise=noise is not None,
        cases=len(samples),
        drawn=len(drawings),
        candidates=len(samples),
        iterations=ITERATIONS,
        chance=1 / len(samples),
        recognised=share(recognised, len(samples)),
        drawn_right=share(sum(drawing.right for drawing in drawings), len(drawings)),
        correlation=_mean([drawing.correlation for drawing in drawings]),
        correlation_others=_mean([drawing.others for drawing in drawings]),
        psnr_db=_mean([drawing.psnr_db for drawing in drawings]),
    )


def correlation(first: Tensor, second: Tensor) -> float:
    """Return Pearson's correlation of two images over all voxels, 0 where one is constant."""
    a, b = first - first.mean(), second - second.mean()
    length = float(a.norm() * b.norm())
    return float((a * b).sum()) / length if length else 0.0


def psnr_db(image: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels, the peak being the range of the true image."""
    error = float(((image - truth) ** 2).mean())
    peak = float(truth.max() - truth.min())
    return 10 * math.log10(max(peak, 1e-6) ** 2 / max(error, 1e-12))


def _compared(found: Tensor, images: Sequence[Tensor], own: int) -> _Drawing:
    alike = [correlation(found, image) for image in images]
    typical = torch.stack(list(images)).mean(0)
    apart = [correlation(found, image - typical) for image in images]
    others = [value for number, value in enumerate(alike) if number != own]
    return _Drawing(
        right=_first(apart, own),
        correlation=alike[own],
        others=float(np.mean(others)),
        psnr_db=psnr_db(found, images[own]),
    )


def _first(values: Sequence[float], own: int) -> bool:
    """Whether the own value is above all others; a tie is no recognition."""
    return all(value < values[own] for number, value in enumerate(values) if number != own)


def _mean(values: Sequence[float]) -> Measure:
    """Return the mean with Student's interval."""
    if not values:
        return Measure(value=None, reason="no image was reconstructed")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Measure(value=mean, reason="one patient only: no interval")
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * float(np.std(values, ddof=1))
    half /= math.sqrt(len(values))
    return Measure(value=mean, low=mean - half, high=mean + half)


def _on(batch: Sample, device: torch.device) -> Sample:
    mask = None if batch.mask is None else batch.mask.to(device)
    return Sample(batch.image.to(device), batch.present.to(device), batch.genotype.to(device), mask)
