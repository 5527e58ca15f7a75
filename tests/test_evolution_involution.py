"""Involution: sizes, counts and what it refuses."""

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch.utils.flop_counter import FlopCounterMode

from mmext.evolution import Involution2d


@pytest.mark.parametrize(('channels', 'kernel'), [(64, 7), (256, 7), (32, 3)])
def test_number_of_parameters(channels, kernel):
    layer = Involution2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    taps = kernel**2 * channels // 16
    expected = channels**2 // 4 + 2 * channels // 4 + channels // 4 * taps + taps
    assert sum(p.numel() for p in layer.parameters()) == expected


def test_multiply_adds_are_counted():
    layer, x = Involution2d(32, 32, 7, stride=2, padding=3).eval(), torch.randn(1, 32, 20, 24)
    pixels, taps = 10 * 12, 49
    convolutions = pixels * (32 * 8 + 8 * 2 * taps)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert counter.get_total_flops() == 2 * (convolutions + pixels * 32 * taps)
    counted = get_model_complexity_info(layer, inputs=(x,), show_table=False, show_arch=False)['flops']
    assert counted >= convolutions + pixels * 32 * taps


@pytest.mark.parametrize('size', [7, 8, 9, 25])
def test_a_stride_rounds_up(size):
    layer = Involution2d(16, 16, 7, stride=2, padding=3)
    assert layer(torch.randn(2, 16, size, size + 1)).shape[2:] == (-(-size // 2), -(-(size + 1) // 2))


def test_channels_of_a_group_may_change_places():
    layer, x = Involution2d(32, 32, 3, padding=1, bias=False).eval(), torch.randn(2, 32, 7, 9)
    kernel, order = layer.evolution_kernel(x), torch.cat([torch.randperm(16), torch.arange(16, 32)])
    torch.testing.assert_close(kernel.aggregate(x[:, order]), kernel.aggregate(x)[:, order])


def test_channels_that_are_no_groups_are_refused():
    with pytest.raises(ValueError, match='group_channels=16 and in_channels=24'):
        Involution2d(24, 24, 3)
