import pytest
import torch
from torch import nn

from fedglioma.models.vit import PositionGrid, SelfAttention, TransformerLayer, VisionTransformer


def copy_attention(source: SelfAttention, target: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        target.in_proj_weight.copy_(source.qkv.weight)
        target.in_proj_bias.zero_()
        target.out_proj.weight.copy_(source.project.weight)
        target.out_proj.bias.copy_(source.project.bias)


def test_attention_equals_the_attention_of_torch() -> None:
    ours = SelfAttention(32, 8, dropout=0.0)
    theirs = nn.MultiheadAttention(32, 8, batch_first=True)
    copy_attention(ours, theirs)
    x = torch.randn(2, 10, 32)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_transformer_layer_equals_the_layer_of_torch() -> None:
    ours = TransformerLayer(32, 8, 64, dropout=0.1, attention_dropout=0.1).eval()
    theirs = nn.TransformerEncoderLayer(
        32, 8, 64, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    copy_attention(ours.attention, theirs.self_attn)
    pairs = ((ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2))
    for mine, other in (*pairs, (ours.fc1, theirs.linear1), (ours.fc2, theirs.linear2)):
        other.load_state_dict(mine.state_dict())
    x = torch.randn(2, 10, 32)
    torch.testing.assert_close(ours(x), theirs(x))


def test_attention_weights_are_dropped_in_training_only() -> None:
    attention = SelfAttention(16, 8, dropout=0.5)
    attention.project_drop.p = 0.0
    x = torch.randn(1, 20, 16)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_positions_start_at_zero_and_are_added_as_they_are_on_their_own_grid() -> None:
    positions = PositionGrid(3, (4, 4, 4))
    x = torch.randn(2, 3, 4, 4, 4)
    assert torch.equal(positions(x), x)
    nn.init.normal_(positions.weight)
    assert torch.equal(positions(x), x + positions.weight)


@pytest.mark.parametrize("size", [(2, 2, 2), (5, 4, 3), (8, 8, 8)])
def test_positions_are_interpolated_on_another_grid(size: tuple[int, int, int]) -> None:
    positions = PositionGrid(1, (4, 4, 4))
    ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 4)
    with torch.no_grad():
        positions.weight[0, 0] = ramp
    added = positions(torch.zeros(1, 1, *size))[0, 0]
    # Centres of the new cells, in units of the old ones; constant beyond the outermost centres.
    centres = ((torch.arange(size[0]) + 0.5) * 4 / size[0] - 0.5).clamp(0, 3)
    torch.testing.assert_close(added, centres[:, None, None].expand(size))


def test_transformer_pools_mean_and_maximum_over_all_tokens() -> None:
    vit = VisionTransformer(
        8, 16, grid=(2, 2, 2), layers=2, heads=4, hidden=32, norm="group", dropout=0.1, attention_dropout=0.1
    ).eval()
    assert vit.features == 32
    out = vit(torch.randn(2, 8, 3, 4, 5))
    assert out.shape == (2, 32)
    assert (out[:, 16:] >= out[:, :16]).all()
