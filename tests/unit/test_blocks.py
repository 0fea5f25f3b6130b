import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import DataError
from fedglioma.models.blocks import PreActBlock, group_count, make_norm, mask_absent


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (4, 1), (8, 2), (16, 4), (32, 8), (64, 8), (512, 8)]
)
def test_group_count_is_eighth_or_fours(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


@given(st.integers(1, 600))
def test_group_count_divides_and_leaves_four_channels_or_the_whole_layer(channels: int) -> None:
    groups = group_count(channels)
    assert channels % groups == 0
    assert groups == 1 or channels // groups >= 4


def test_group_norm_of_one_voxel_still_has_a_gradient() -> None:
    x = torch.randn(1, 16, 1, 1, 1, requires_grad=True)
    (make_norm("group", 16)(x) * torch.randn(1, 16, 1, 1, 1)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 1e-3


def test_preact_block_with_zero_convolutions_is_the_identity() -> None:
    block = PreActBlock(4, "group")
    for parameter in block.conv2.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 5, 6, 7)
    assert torch.equal(block(x), x)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.sampled_from([1e30, float("nan"), float("inf")]))
def test_mask_absent_keeps_the_present_and_forgets_the_rest(present: list[bool], junk: float) -> None:
    image = torch.randn(1, 4, 2, 2, 2)
    spoiled = image.clone()
    spoiled[:, [not there for there in present]] = junk
    masked = mask_absent(spoiled, torch.tensor([present], dtype=torch.float32))
    for channel, there in enumerate(present):
        expected = image[:, channel] if there else torch.zeros(1, 2, 2, 2)
        assert torch.equal(masked[:, channel], expected)


def test_mask_absent_refuses_the_presence_of_another_batch() -> None:
    with pytest.raises(DataError, match="one row per case"):
        mask_absent(torch.zeros(2, 4, 2, 2, 2), torch.ones(1, 4))
