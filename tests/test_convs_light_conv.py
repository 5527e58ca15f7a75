import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext.blocks.spatial_ops import LightConvSO
from mmext.convs.light_conv import LightConv2d


def build(**kwargs):
    return LightConv2d(8, 8, **{**dict(kernel_size=3, padding=1, groups=8, heads=4, bias=False), **kwargs})


def test_taps_are_a_mean_and_few():
    layer = build(kernel_size=5, padding=2)
    kernel = layer.fold().weight
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(8))
    assert (kernel > 0).all()
    assert sum(p.numel() for p in layer.parameters()) == 4 * 25


@pytest.mark.parametrize(('head_map', 'heads'), [('block', [0, 0, 1, 1, 2, 2, 3, 3]), ('interleave', [0, 1, 2, 3] * 2)])
def test_which_channels_share_a_kernel(head_map, heads):
    layer = build(head_map=head_map)
    expected = layer.head_weight.flatten(1).softmax(1)[heads].view(8, 1, 3, 3)
    assert torch.equal(layer.fold().weight, expected)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_constant_image_stays_constant_where_the_padding_is_left_out(stride):
    layer = build(renorm_padding=True, stride=stride, bias=True)
    nn.init.constant_(layer.bias, 2.0)
    x = torch.full((1, 8, 7, 9), 3.0)
    torch.testing.assert_close(layer(x), torch.full_like(layer(x), 5.0))
    dark = build(stride=stride)
    assert dark(x)[0, 0, 0, 0] < 2.9


def test_what_leaves_the_padding_out_has_no_plain_form_unless_there_is_none():
    layer = build(renorm_padding=True)
    assert not layer.fold_in_deploy
    with pytest.raises(ValueError, match='LightConv2d with renorm_padding=True divides by what lies inside'):
        layer.fold()
    without = build(renorm_padding=True, padding=0)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(without.fold()(x), without(x))


def test_a_plain_kernel_is_its_mean_over_a_head_without_the_softmax_alone():
    kernel = torch.randn(8, 1, 3, 3)
    for head_map, shape, dim in (('block', (4, 2), 1), ('interleave', (2, 4), 0)):
        layer = build(softmax=False, head_map=head_map)
        nn.Sequential(layer).load_state_dict({'0.weight': kernel})
        torch.testing.assert_close(layer.head_weight, kernel.unflatten(0, shape).mean(dim))
    with pytest.raises(RuntimeError, match='Unexpected key'):
        build().load_state_dict({'weight': kernel, 'head_weight': torch.zeros(4, 1, 3, 3)})
    assert not build().loads_kernel


def test_taps_are_dropped_by_head_in_training_and_never_when_folded():
    layer = build(drop=0.6).train()
    kernel = layer.kernel_and_bias()[0]
    assert (kernel == 0).any()
    assert torch.equal(kernel[0::2], kernel[1::2])
    assert (layer.fold().weight > 0).all()
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(layer.eval()(x), layer.fold()(x))


def test_a_single_axis_is_the_layer_of_sequences():
    layer = build(kernel_size=(1, 5), padding=(0, 2))
    x = torch.randn(2, 8, 1, 11)
    weight = layer.head_weight.squeeze(2).softmax(-1).repeat_interleave(2, 0)
    torch.testing.assert_close(layer(x)[:, :, 0], F.conv1d(x[:, :, 0], weight, padding=2, groups=8))


def test_what_is_not_depthwise_stays_plain():
    for groups in (1, 4):
        layer = build(groups=groups)
        assert layer.plain
        assert set(layer.state_dict()) == {'weight'}
        x = torch.randn(2, 8, 6, 6)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1, groups=groups))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='LightConv2d needs heads that divide the channels, got heads=3'):
        build(heads=3)


@pytest.mark.parametrize(
    'kind', [dict(type='mmext.LightConv2d', heads=4), dict(type='mmext.DynamicConv2d', heads=2), None]
)
def test_the_gated_operator(kind):
    operator = LightConvSO(8, 8, 5, conv_cfg=kind)
    x = torch.randn(2, 8, 6, 7)
    value, gate = operator.gated(x).chunk(2, 1)
    torch.testing.assert_close(operator(x), operator.mix(operator.conv(value * gate.sigmoid())))
    operator(x).square().sum().backward()
    assert all(p.grad is not None for p in operator.parameters())
    with pytest.raises(ValueError, match='LightConvSO keeps its channels'):
        LightConvSO(8, 16)
