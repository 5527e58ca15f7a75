"""DepthwiseConv2d is nn.Conv2d in everything but the route."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from torch import nn

from mmext.convs.depthwise import DepthwiseConv2d


@pytest.mark.parametrize('padding_mode', ['zeros', 'reflect', 'circular'])
def test_equals_and_exchanges_states_with_the_plain_layer(padding_mode):
    kwargs = dict(kernel_size=7, padding=3, groups=4, padding_mode=padding_mode)
    layer, plain = DepthwiseConv2d(4, 4, **kwargs), nn.Conv2d(4, 4, **kwargs)
    layer.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(2, 4, 12, 13)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.fold()(x), plain(x))
    assert type(layer.fold()) is nn.Conv2d


def test_by_config():
    layer = build_conv_layer(dict(type='mmext.DepthwiseConv2d'), 6, 6, 5, padding=2, groups=6)
    assert isinstance(layer, DepthwiseConv2d)
    module = ConvModule(
        6, 6, 5, padding=2, groups=6, conv_cfg=dict(type='mmext.DepthwiseConv2d'), norm_cfg=dict(type='BN')
    )
    module(torch.randn(2, 6, 8, 8)).sum().backward()
    assert module.conv.weight.grad is not None


def test_every_parameter_learns_as_in_the_plain_layer():
    torch.manual_seed(1)
    layer, plain = DepthwiseConv2d(3, 3, 9, 1, 4, groups=3), nn.Conv2d(3, 3, 9, 1, 4, groups=3)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 15, 16)
    layer(x).square().sum().backward()
    plain(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(('channels', 'groups'), [((4, 4), 2), ((4, 8), 4), ((4, 4), 1)])
def test_refuses_what_is_not_depthwise(channels, groups):
    with pytest.raises(ValueError, match='groups = in_channels = out_channels'):
        DepthwiseConv2d(*channels, 3, groups=groups)
