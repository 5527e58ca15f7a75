import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution.dynamic_conv import DynamicConv2d


@pytest.mark.parametrize('stride', [1, 2])
def test_a_zero_generator_is_average_pooling(stride):
    layer = DynamicConv2d(8, 8, 3, stride=stride, padding=1, heads=2, bias=False).double()
    nn.init.zeros_(layer.generator.weight)
    x = torch.randn(2, 8, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.avg_pool2d(x, 3, stride, 1, count_include_pad=True))
    inside = DynamicConv2d(8, 8, 3, stride=stride, padding=1, heads=2, bias=False, renorm_padding=True).double()
    nn.init.zeros_(inside.generator.weight)
    torch.testing.assert_close(inside(x), F.avg_pool2d(x, 3, stride, 1, count_include_pad=False))


@pytest.mark.parametrize('renorm', [True, False])
def test_a_constant_image_stays_constant_where_the_padding_is_left_out(renorm):
    layer = DynamicConv2d(8, 8, 5, padding=2, heads=2, bias=False, renorm_padding=renorm)
    x = torch.full((1, 8, 7, 9), 3.0)
    assert torch.allclose(layer(x), x) == renorm
    torch.testing.assert_close(layer(x)[..., 2:-2, 2:-2], x[..., 2:-2, 2:-2])


@pytest.mark.parametrize(('head_map', 'alike'), [('block', (0, 1)), ('interleave', (0, 4))])
def test_which_channels_share_a_kernel(head_map, alike):
    layer = DynamicConv2d(8, 8, 3, padding=1, heads=4, head_map=head_map)
    taps = layer.dense_kernel(torch.randn(1, 8, 5, 5)).kernel.diagonal(dim1=-2, dim2=-1)[0, 0].T
    same = [c for c in range(8) if torch.equal(taps[c], taps[0])]
    assert same == list(alike)


def test_taps_are_dropped_in_training_alone():
    layer = DynamicConv2d(8, 8, 3, padding=1, heads=4, drop=0.5)
    x = torch.randn(1, 8, 5, 5)
    assert (layer.evolution_kernel(x).weight == 0).float().mean() > 0.3
    assert (layer.eval().evolution_kernel(x).weight > 0).all()


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='DynamicConv2d needs heads that divide in_channels, got heads=16'):
        DynamicConv2d(24, 24, 3, heads=16)
    assert DynamicConv2d(24, 24, 3).heads == 8
