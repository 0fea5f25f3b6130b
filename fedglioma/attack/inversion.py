"""Can a patient's image be drawn from one update? Gradient inversion, as a curious server would try it.

An image is changed until its gradient points where the observed one does (Geiping, Bauermeister, Dröge and
Moeller, "Inverting gradients: how easy is it to break privacy in federated learning?", NeurIPS 2020). The
worst case is assumed: an update of one step on one case, dropout off, the labels and the present modalities
known, and a set of images among which the patient's is looked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedglioma.data.dataset import Sample
from fedglioma.errors import DataError
from fedglioma.losses.tasks import Targets
from fedglioma.training.learner import Learner

Gradient = tuple[Tensor, ...]

SMOOTH: Final = 1e-4
"""Weight of the total variation; Geiping et al. use 1e-6 to 1e-1."""
RATE: Final = 0.1
START: Final = 0.1
"""Standard deviation of the noise that a reconstruction starts from; images have one of 1 in the brain."""
SLOWER_AT: Final = (3 / 8, 5 / 8, 7 / 8)
TINY: Final = 1e-12


@dataclass(frozen=True)
class Noise:
    """What private training does to a case's gradient: clip it to a length, add noise to every number."""

    clip_norm: float
    noise_multiplier: float


@dataclass(frozen=True)
class Reconstruction:
    """An image that was drawn from a gradient, (B, 4, D, H, W); ``distance`` is 1 - cosine of the two."""

    image: Tensor
    distance: float


def gradient_of(
    learner: Learner, batch: Sample, image: Tensor | None = None, *, follow: bool = False
) -> Gradient:
    """Return the gradient of a batch's mean loss with respect to the network's trainable weights.

    Parameters
    ----------
    batch : Sample
        Cases stacked along a first axis.
    image : Tensor, optional
        Taken instead of the batch's, (B, 4, D, H, W).
    follow : bool
        Whether the gradient can itself be differentiated with respect to the image.
    """
    learner.model.eval()
    weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
    given = batch.image if image is None else image
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        outputs = learner.model(given, batch.present)
        loss = learner.loss.per_sample(outputs, Targets(batch.genotype, batch.mask)).mean()
        found = torch.autograd.grad(
            loss, weights, create_graph=follow, allow_unused=True, materialize_grads=True
        )
    return tuple(found if follow else (part.detach() for part in found))


def privatised(gradient: Gradient, noise: Noise, generator: torch.Generator) -> Gradient:
    """Return a gradient clipped as one vector, with Gaussian noise (Abadi et al. 2016, algorithm 1)."""
    factor = min(1.0, noise.clip_norm / max(float(_length(gradient)), TINY))
    deviation = noise.clip_norm * noise.noise_multiplier
    return tuple(
        part * factor
        + deviation * torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part.device)
        for part in gradient
    )


def cosine(first: Gradient, second: Gradient) -> Tensor:
    """Return the cosine of the angle between two gradients, each taken as one vector; 0 where one is 0."""
    product = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    return product / (_length(first) * _length(second) + TINY)


def recognise(
    learner: Learner, batch: Sample, observed: Gradient, candidates: Sequence[Tensor]
) -> list[float]:
    """Return how well each candidate image, with the known labels, explains an observed gradient.

    The cosine of the candidate's own gradient to the observed one, from -1 to 1. It needs no reconstruction:
    whoever holds the images learns which of them was trained on.

    Parameters
    ----------
    batch : Sample
        The one case that was trained on, of which labels and present modalities are used.
    candidates : sequence of Tensor, each of shape (4, D, H, W)
    """
    return [float(cosine(gradient_of(learner, batch, image[None]), observed)) for image in candidates]


def reconstruct(
    learner: Learner,
    batch: Sample,
    observed: Gradient,
    *,
    iterations: int,
    generator: torch.Generator,
) -> Reconstruction:
    """Return the image whose gradient is most like an observed one.

    Adam on the image, whose rate falls to a tenth three times; the loss is one minus the cosine plus the
    total variation. Modalities that a case lacks stay 0.

    Parameters
    ----------
    batch : Sample
        What is known of the cases that were trained on: everything but their images, of which only the
        shape is used.
    observed : tuple of Tensor
        As ``gradient_of`` gives it, or with noise.
    iterations : int
        Fixed, so that every probe works equally hard.

    Raises
    ------
    DataError
        The gradient is of another network.
    """
    if [part.shape for part in observed] != [w.shape for w in learner.model.parameters() if w.requires_grad]:
        raise DataError("gradient inversion: the gradient is not one of this network's weights")
    there = batch.present[:, :, None, None, None]
    start = START * torch.randn(batch.image.shape, generator=generator)
    image = (start.to(batch.image.device) * there).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=RATE)
    steps = [max(1, round(share * iterations)) for share in SLOWER_AT]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.1)
    best, least = image.detach().clone(), float("inf")
    for _ in range(iterations):
        distance = 1 - cosine(gradient_of(learner, batch, image, follow=True), observed)
        if float(distance.detach()) < least:
            best, least = image.detach().clone(), float(distance.detach())
        (slope,) = torch.autograd.grad(distance + SMOOTH * _variation(image), image)
        image.grad = slope * there
        optimizer.step()
        schedule.step()
    return Reconstruction(best, least)


def _length(gradient: Gradient) -> Tensor:
    return torch.stack([(part * part).sum() for part in gradient]).sum().sqrt()


def _variation(image: Tensor) -> Tensor:
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()
