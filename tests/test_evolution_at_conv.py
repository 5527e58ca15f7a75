"""ATConv: the inhibition, the strips, and the kernel of an image."""

import pytest
import torch

from mmext.evolution import ATConv2d
from mmext.evolution.kernels import TapKernel

pytestmark = pytest.mark.usefixtures('double_precision')


def test_full_inhibition_takes_the_mean_off():
    layer = ATConv2d(8, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.inhibition.fill_(1e9)
    weight = layer.evolution_kernel(torch.randn(2, 8, 7, 9)).weight
    torch.testing.assert_close(weight.sum((-1, -2)), torch.zeros(2, 8, 1))


def test_half_of_the_mean_is_off_at_the_start():
    layer = ATConv2d(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 7, 9)
    half = layer.evolution_kernel(x).weight
    with torch.no_grad():
        layer.inhibition.fill_(-1e9)
    none = layer.evolution_kernel(x).weight
    torch.testing.assert_close(half, none - none.mean((-1, -2), keepdim=True) / 2)


def test_the_kernel_is_made_of_strips_of_the_image():
    layer = ATConv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        layer.generate.weight.copy_(torch.eye(9)[:, :, None, None])
        layer.generate.bias.zero_()
        layer.inhibition.fill_(-1e9)
    x = torch.randn(2, 8, 9, 4)
    strips = layer.act(layer.kernel_values(x).mean(3))
    torch.testing.assert_close(layer.evolution_kernel(x).weight.flatten(2), strips)


def test_it_is_an_aggregation_with_the_same_weights_everywhere():
    layer, x = ATConv2d(8, 8, 3, padding=1), torch.randn(2, 8, 7, 9)
    kernel = layer.evolution_kernel(x)
    everywhere = kernel.weight.flatten(2).flatten(1, 2)[..., None, None].expand(-1, -1, 7, 9)
    taps = TapKernel(weight=everywhere, positions=layer.positions)
    torch.testing.assert_close(kernel.aggregate(x), taps.aggregate(x), rtol=1e-10, atol=1e-10)


def test_the_inhibition_does_not_decay():
    assert ATConv2d(8, 8, 3).optim_options() == dict(inhibition=dict(decay_mult=0.0))
