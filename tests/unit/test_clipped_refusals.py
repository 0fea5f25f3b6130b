"""Networks and losses of which no patient's gradient can be told apart are refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from fedglioma.errors import PrivacyError
from fedglioma.models.build import Switches, build_model
from fedglioma.privacy.clipped import ClippedGradients
from fedglioma.privacy.network import require_private
from tests.clipped_fixture import small


class Around(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) @ self.fc.weight
        return out


class Mixing(nn.Module):
    """A layer in which patients see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.weight


class Folding(nn.Module):
    """Counts tokens in the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.reshape(-1, 3)).view_as(x)
        return out


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Around(), "otherwise than by its own layer"),
        (nn.Sequential(Mixing()), "depends on the others"),
        (Folding(), "saw 8 rows for 2 patients"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_leaves_no_gradient(model: nn.Module, words: str) -> None:
    with ClippedGradients(model, clip_norm=1.0) as clipped:
        losses = model(torch.randn(2, 4, 3)).flatten(1).sum(1)
        with pytest.raises(PrivacyError, match=words):
            clipped.backward(losses)
    assert all(p.grad is None for p in model.parameters())


def test_loss_that_is_one_number_for_all_is_refused() -> None:
    model = small()
    with (
        ClippedGradients(model, clip_norm=1.0) as clipped,
        pytest.raises(PrivacyError, match="one number per patient"),
    ):
        clipped.backward(model(torch.randn(2, 2, 3, 3, 3)).sum())


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_clip_norm_must_be_a_length(clip: float) -> None:
    with pytest.raises(PrivacyError, match="clip_norm"):
        ClippedGradients(small(), clip_norm=clip)


class Owner(nn.Module):
    """Owns a parameter beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(2, 2)


class Buffered(nn.Module):
    """Has a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))


def tied() -> nn.Module:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    return nn.Sequential(one, other)


def frozen(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), module.requires_grad_(False))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1)),
            r"1 \(BatchNorm3d\) normalises over the batch",
        ),
        (frozen(nn.BatchNorm3d(1)), "normalises over the batch"),
        (frozen(nn.BatchNorm1d(2, affine=False)), "normalises over the batch"),
        (nn.Sequential(nn.InstanceNorm3d(1, affine=True, track_running_stats=True)), "running statistics"),
        (Owner(), r"the network \(Owner\) owns parameters beside"),
        (nn.Sequential(Buffered()), "both parameters and buffers"),
        (tied(), r"1.weight is the same parameter as 0.weight"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.Sequential(nn.LSTM(2, 2)), "LSTM"),
        (nn.Linear(2, 2).eval(), "evaluation mode"),
    ],
)
def test_network_that_cannot_be_private_is_refused_by_name(module: nn.Module, words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        require_private(module)


def test_published_batch_norm_is_refused_with_the_remedy() -> None:
    model = build_model("mdpnet", Switches(preset="reference", width=1, pos_grid=(2, 2, 2)))
    with pytest.raises(PrivacyError, match="more; choose preset recommended"):
        require_private(model)


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet", "resnet50", "unet"])
def test_recommended_networks_can_be_private(model: str) -> None:
    require_private(build_model(model, Switches(width=8, pos_grid=(2, 2, 2))))


def test_buffer_that_the_images_change_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.fc = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x.detach().mean())
            out: Tensor = self.fc(x)
            return out

    model = Counting()
    with ClippedGradients(model, clip_norm=1.0) as clipped, pytest.raises(PrivacyError, match="seen changed"):
        clipped.backward(model(torch.randn(2, 2))[:, 0])
