"""LSConv: which channels share a kernel, and what it adds."""

import pytest
import torch
from torch import nn

from mmext.evolution import LSConv2d

pytestmark = pytest.mark.usefixtures('double_precision')


def test_groups_interleave():
    """Every group gets a kernel that picks one neighbor, told by the bias of its norm."""
    layer = LSConv2d(8, 8, 3, padding=1, group_channels=4, residual=False, norm_cfg=None, bias=False).eval()
    taps = torch.zeros(2, 9)
    taps[0, 4], taps[1, 5] = 1, 1  # the center, and the pixel to the right
    with torch.no_grad():
        layer.span_norm.weight.zero_()
        layer.span_norm.bias.copy_(taps.flatten())
    x = torch.randn(2, 8, 5, 7)
    right = nn.functional.pad(x, (0, 1))[..., 1:]
    y = layer(x)
    assert torch.equal(y[:, ::2], x[:, ::2])
    assert torch.equal(y[:, 1::2], right[:, 1::2])


@pytest.mark.parametrize('stride', [1, 2])
def test_kernels_of_zeros_leave_the_norm_of_nothing_and_the_input(stride):
    layer = LSConv2d(8, 8, 3, stride=stride, padding=1, group_channels=4, bias=False).eval()
    with torch.no_grad():
        layer.span_norm.weight.zero_()
        layer.norm.running_mean.normal_()
        layer.norm.bias.normal_()
    x = torch.randn(2, 8, 7, 9)
    expected = layer.norm(torch.zeros(1, 8, 1, 1)) + x[:, :, ::stride, ::stride]
    torch.testing.assert_close(layer(x), expected)


def test_every_group_is_normalized_over_its_taps_and_all_pixels():
    layer = LSConv2d(8, 8, 3, padding=1, group_channels=4).eval()
    weight = layer.evolution_kernel(torch.randn(3, 8, 12, 12)).weight
    assert weight.shape == (3, 2, 9, 12, 12)
    torch.testing.assert_close(weight.mean((2, 3, 4)), torch.zeros(3, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(weight.var((2, 3, 4), correction=0), torch.ones(3, 2), rtol=0, atol=1e-2)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match='group_channels=3 and in_channels=8'):
        LSConv2d(8, 8, 3, group_channels=3)
