"""A vision transformer over the voxels of a feature map: MDPNet's deep part of the first path."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedglioma.models.blocks import Norm, make_norm


class PositionGrid(nn.Module):
    """Adds a learned vector to each voxel's; the grid is resized when the map has another size.

    Its shape is part of what sites agree on: it is the same whatever crop a site trains on.
    """

    def __init__(self, channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, channels, *grid))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its positions added, (B, C, D, H, W)."""
        weight: Tensor = self.weight
        if x.shape[2:] != weight.shape[2:]:
            weight = F.interpolate(weight, size=x.shape[2:], mode="trilinear", align_corners=False)
        return x + weight


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani 2017; MDPNet, equations 1 and 2).

    ``dropout`` acts on the attention weights and on the projected output. On the weights it forces
    the kernel that keeps every (N, N) map: 8 GB instead of 1.6 GB at a crop of 128 voxels.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        # Only holds the rate and the mode, so that dropout can be switched on by itself at inference.
        self.weight_drop = nn.Dropout(dropout)
        self.project = nn.Linear(dim, dim)
        self.project_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens, (B, N, C)."""
        batch, tokens, dim = x.shape
        qkv: Tensor = self.qkv(x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, C / heads)
        dropout = self.weight_drop.p if self.weight_drop.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        y = y.transpose(1, 2).reshape(batch, tokens, dim)
        out: Tensor = self.project_drop(self.project(y))
        return out


class TransformerLayer(nn.Module):
    """Attention and a two-layer perceptron, each on normalised tokens and added to them."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, attention_dropout)
        self.drop1 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.drop2 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop3 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's tokens, (B, N, C)."""
        x = x + self.drop1(self.attention(self.norm1(x)))
        y = self.drop2(F.gelu(self.fc1(self.norm2(x))))
        out: Tensor = x + self.drop3(self.fc2(y))
        return out


class VisionTransformer(nn.Module):
    """Turns each voxel of a feature map into a token and lets the tokens attend to each other."""

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        grid: Sequence[int],
        layers: int,
        heads: int,
        hidden: int,
        norm: Norm,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)
        self.embed = nn.Conv3d(channels, dim, 3, padding=1)
        self.positions = PositionGrid(dim, grid)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(TransformerLayer(dim, heads, hidden, dropout, attention_dropout) for _ in range(layers))
        )
        self.out_norm = nn.LayerNorm(dim)
        self.features = 2 * dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean and the maximum over the tokens of each case, (B, 2 dim)."""
        grid: Tensor = self.positions(self.embed(F.leaky_relu(self.norm(x))))  # (B, dim, D, H, W)
        tokens = self.drop(grid.flatten(2).transpose(1, 2))  # (B, N, dim)
        tokens = self.out_norm(self.layers(tokens))
        return torch.cat((tokens.mean(1), tokens.amax(1)), dim=1)
