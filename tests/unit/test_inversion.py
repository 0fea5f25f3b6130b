"""Gradient inversion: closed forms, a real leak of a small network, and none under noise."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedglioma.attack.inversion import (
    Noise,
    cosine,
    gradient_of,
    privatised,
    recognise,
    reconstruct,
)
from fedglioma.attack.probe import ProbeResult, correlation, probe, psnr_db
from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import Sample
from fedglioma.data.loader import stack
from fedglioma.errors import DataError
from fedglioma.losses.segmentation import SGPLoss
from fedglioma.training.learner import Learner, initial_learner

EDGE = 6
CPU = torch.device("cpu")
COUNTS = dict.fromkeys(GENES, (5.0, 5.0))


class Sigmoids(nn.Module):
    """A convolution and a linear map with a smooth activation, as in the first papers on inversion."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 12, 3, stride=2, padding=1)
        self.last = nn.Linear(12 * (EDGE // 2) ** 3, 2)
        with torch.no_grad():
            for weight in self.parameters():
                weight.uniform_(-0.5, 0.5)

    def forward(self, image: Tensor, present: Tensor) -> dict[str, Tensor]:
        seen = torch.sigmoid(self.conv(image * present[:, :, None, None, None]))
        return {"idh": self.last(seen.flatten(1))}


class Linear(nn.Module):
    """One linear layer: its gradient holds the image as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4 * EDGE**3, 2)

    def forward(self, image: Tensor, present: Tensor) -> dict[str, Tensor]:
        return {"idh": self.last((image * present[:, :, None, None, None]).flatten(1))}


class Samples:
    """A data set of smooth random images, one a patient."""

    def __init__(self, count: int, edge: int = EDGE) -> None:
        generator = torch.Generator().manual_seed(1)
        coarse = torch.randn((count, 4, 3, 3, 3), generator=generator)
        self.images = nn.functional.interpolate(coarse, size=(edge,) * 3, mode="trilinear")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        genotype = torch.tensor([index % 2, -1, -1])
        return Sample(self.images[index], torch.ones(4), genotype)


def learner_of(kind: type[nn.Module]) -> Learner:
    torch.manual_seed(0)
    return Learner(kind(), SGPLoss("idh"))


def probed(kind: type[nn.Module], noise: Noise | None = None, **options: int) -> ProbeResult:
    return probe(learner_of(kind), Samples(10), CPU, noise=noise, **options)  # type: ignore[arg-type]


def test_gradient_of_a_linear_layer_holds_the_image_itself() -> None:
    batch = stack([Samples(1)[0]])
    weight, bias = gradient_of(learner_of(Linear), batch)
    assert torch.allclose(weight[0] / bias[0], batch.image.flatten(), atol=1e-5)


def test_gradient_is_that_of_the_loss_and_leaves_the_network_alone() -> None:
    learner, batch = learner_of(Sigmoids), stack([Samples(2)[0], Samples(2)[1]])
    found = gradient_of(learner, batch)
    assert all(weight.grad is None for weight in learner.model.parameters())
    logits = learner.model(batch.image, batch.present)["idh"]
    nn.functional.cross_entropy(logits, batch.genotype[:, 0]).backward()
    for mine, weight in zip(found, learner.model.parameters(), strict=True):
        assert torch.allclose(mine, weight.grad, atol=1e-6)


def test_reconstruction_draws_the_image_of_a_plain_gradient() -> None:
    learner, batch = learner_of(Sigmoids), stack([Samples(1)[0]])
    generator = torch.Generator().manual_seed(0)
    found = reconstruct(learner, batch, gradient_of(learner, batch), iterations=150, generator=generator)
    assert correlation(found.image[0], batch.image[0]) > 0.8
    assert found.distance < 0.02


def test_modality_that_a_case_lacks_stays_empty() -> None:
    learner, sample = learner_of(Sigmoids), Samples(1)[0]
    batch = stack([sample._replace(present=torch.tensor([1.0, 0.0, 1.0, 1.0]))])
    found = reconstruct(
        learner, batch, gradient_of(learner, batch), iterations=5, generator=torch.Generator().manual_seed(0)
    )
    assert float(found.image[0, 1].abs().max()) == 0
    assert float(found.image[0, 0].abs().max()) > 0


def test_plain_gradients_point_to_their_patients_and_draw_them() -> None:
    found = probed(Sigmoids, drawn=3)
    assert found.recognised.value == 1.0
    assert found.drawn_right.value == 1.0
    assert found.leaks
    assert found.correlation.low is not None
    assert found.correlation_others.high is not None
    assert found.correlation.low > 0.5 > found.correlation_others.high


def test_private_gradients_point_to_nobody() -> None:
    found = probed(Sigmoids, Noise(clip_norm=1.0, noise_multiplier=4.0), drawn=2)
    assert found.noise
    assert not found.leaks
    assert found.recognised.value is not None
    assert found.recognised.value <= 0.4
    assert found.correlation.value is not None
    assert found.correlation.value < 0.3


@pytest.mark.parametrize(("model", "crop"), [("mdpnet", 16), ("sgpnet", 32)])
def test_both_networks_give_an_updates_patient_away_and_can_be_followed(model: str, crop: int) -> None:
    settings = RunConfig(model=model, width=1, crop=crop)
    learner = initial_learner(settings, COUNTS)
    images = Samples(3, crop).images
    mask = torch.zeros((1, crop, crop, crop), dtype=torch.int8)
    mask[:, 4:9, 4:9, 4:9] = 1
    batch = Sample(images[:1], torch.ones(1, 4), torch.tensor([[1, 0, 1]]), mask)
    observed = gradient_of(learner, batch)
    alike = recognise(learner, batch, observed, list(images))
    assert alike[0] == pytest.approx(1.0, abs=1e-4)
    assert max(alike[1:]) < 0.999
    found = reconstruct(learner, batch, observed, iterations=2, generator=torch.Generator().manual_seed(0))
    assert 0 <= found.distance <= 2


def test_clipping_shortens_and_noise_has_its_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = (torch.full((40_000,), 0.02), torch.zeros(3, 2))  # of length 4
    clipped = privatised(gradient, Noise(0.5, 0.0), generator)
    assert float(torch.cat([part.flatten() for part in clipped]).norm()) == pytest.approx(0.5, rel=1e-4)
    noised = privatised(gradient, Noise(0.5, 3.0), generator)[0] - clipped[0]
    assert float(noised.std()) == pytest.approx(1.5, rel=0.03)
    short = (torch.tensor([0.1]),)
    assert privatised(short, Noise(1.0, 0.0), generator)[0] == pytest.approx(0.1)


def test_cosine_takes_all_layers_as_one_vector() -> None:
    first = (torch.tensor([3.0]), torch.tensor([[4.0]]))
    second = (torch.tensor([4.0]), torch.tensor([[3.0]]))
    assert float(cosine(first, second)) == pytest.approx(24 / 25)
    assert float(cosine(first, (torch.zeros(1), torch.zeros(1, 1)))) == 0


def test_correlation_and_peak_ratio_are_those_of_numpy() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.flatten(), b.flatten())[0, 1], abs=1e-5)
    assert correlation(a, torch.ones(3, 4)) == 0
    truth = torch.tensor([0.0, 2.0])
    assert psnr_db(truth + 0.2, truth) == pytest.approx(20 * math.log10(2 / 0.2), rel=1e-4)


def test_gradient_of_another_network_and_a_single_patient_are_refused() -> None:
    learner, batch = learner_of(Sigmoids), stack([Samples(1)[0]])
    with pytest.raises(DataError, match="not one of this network"):
        reconstruct(learner, batch, (torch.zeros(2),), iterations=1, generator=torch.Generator())
    with pytest.raises(DataError, match="two or more"):
        probe(learner, Samples(1), CPU)  # type: ignore[arg-type]
