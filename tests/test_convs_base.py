"""No layer computes with a weight that a host has scaled for another kernel; its own weight may come and go."""

import copy

import pytest
import torch
from conv_layers import LAYERS, image, make, own_arguments, shake, shaken
from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn
from torch.nn.utils import parametrize, prune

from mmext.convs.base import ForeignWeightError
from mmext.convs.partial_conv import PartialConv2d
from mmext.convs.refconv import RefConv2d

SCALES = [n for n in LAYERS if not make(n).refuses_weight]
REFUSES = [n for n in LAYERS if make(n).refuses_weight]
KEEPS = [n for n in LAYERS if 'weight' in dict(make(n).named_parameters())]


def with_norm(layer):
    return shake(nn.Sequential(layer, nn.BatchNorm2d(8))).eval()


def test_both_kinds_of_layers_are_there():
    assert {'DepthwiseConv2d', 'PartialConv2d'} <= set(SCALES)
    assert {'DEConv2d', 'ConditionedConv2d', 'DCLSConv2d', 'RefConv2d', 'XNORConv2d'} <= set(REFUSES)
    assert {'DEConv2d', 'BinaryWeightConv2d', 'GaussianConv2d'} <= set(KEEPS)


@pytest.mark.parametrize('name', REFUSES)
def test_the_hosts_fusion_is_refused_before_it_changes_anything(name):
    net, x = with_norm(make(name)), image()
    with torch.no_grad():
        before = net(x)
        state = copy.deepcopy(net.state_dict())
        with pytest.raises(ForeignWeightError, match=rf'^{name} .*fuse_conv_bn'):
            fuse_conv_bn(net)
        assert torch.equal(net(x), before)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(ForeignWeightError, match=rf'^{name} .*fuse_conv_bn'):
        torch.nn.utils.fusion.fuse_conv_bn_eval(*net)


@pytest.mark.parametrize('name', SCALES)
def test_the_hosts_fusion_is_right_where_the_output_scales_with_the_weight(name):
    net, x = with_norm(make(name)), image()
    with torch.no_grad():
        before = net(x)
        torch.testing.assert_close(fuse_conv_bn(net)(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_a_norm_on_the_fly_is_refused_or_right(name):
    like = make(name)
    module = ConvModule(
        8,
        8,
        like.kernel_size,
        stride=like.stride,
        padding=like.padding,
        groups=like.groups,
        conv_cfg=dict(type=f'mmext.{name}', **own_arguments(name)),
        norm_cfg=dict(type='BN'),
        efficient_conv_bn_eval=True,
    )
    x = image(batch=2)
    with torch.no_grad():
        module.train()(x)
    shake(module)
    module.eval()
    if like.refuses_weight:
        with pytest.raises(ForeignWeightError, match=rf'^{name} .*efficient_conv_bn_eval'):
            module(x)
    else:
        expected = module.activate(module.bn(module.conv(x)))
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_scaled_weights_are_known_in_every_type(dtype):
    layer = make('DEConv2d').to(dtype)
    scale = torch.rand(8, 1, 1, 1, dtype=dtype) + 0.5
    with pytest.raises(ForeignWeightError, match='DEConv2d generates its kernel'):
        layer.weight = nn.Parameter(layer.weight * scale)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def test_masks_refuse_and_padding_takes():
    for mode in ('mask', 'padding'):
        layer = PartialConv2d(4, 4, 3, padding=1, mode=mode)
        scaled = nn.Parameter(layer.weight * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1))
        if mode == 'mask':
            with pytest.raises(ForeignWeightError, match="PartialConv2d in mode='mask' zeroes the holes"):
                layer.weight = scaled
        else:
            layer.weight = scaled


def test_a_layer_without_a_weight_says_why_where_it_is_computed_with():
    layer = make('DCLSConv2d')
    with pytest.raises(ForeignWeightError, match='DCLSConv2d has no weight: it generates its kernel'):
        _ = layer.weight * 2
    with pytest.raises(AttributeError, match='no_such'):
        _ = layer.no_such
    with pytest.raises(ForeignWeightError, match='DCLSConv2d generates its kernel'):
        layer.weight = nn.Parameter(torch.randn(8, 8, 3, 3))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize('name', KEEPS)
def test_its_own_weight_comes_back_after_a_parametrization(name):
    layer, x = shaken(name).eval(), image()
    own = layer.weight
    with torch.no_grad():
        before = layer(x)
        parametrize.register_parametrization(layer, 'weight', Doubled())
        doubled = layer(x)
        assert not torch.allclose(doubled, before)
        parametrize.remove_parametrizations(layer, 'weight', leave_parametrized=False)
        assert layer.weight is own
        assert torch.equal(layer(x), before)
        parametrize.register_parametrization(layer, 'weight', Doubled())
        parametrize.remove_parametrizations(layer, 'weight', leave_parametrized=True)
        assert torch.equal(layer(x), doubled)


@pytest.mark.parametrize('name', KEEPS)
def test_its_own_weight_comes_back_after_pruning(name):
    layer, x = shaken(name).eval(), image()
    with torch.no_grad():
        before = layer(x)
        prune.l1_unstructured(layer, 'weight', amount=0.5)
        pruned = layer(x)
        prune.remove(layer, 'weight')
        assert torch.equal(layer(x), pruned)
        assert not torch.allclose(pruned, before)
    assert (layer.weight == 0).float().mean() >= 0.5


@pytest.mark.parametrize('name', LAYERS)
def test_weights_may_be_shared_and_assigned_by_a_checkpoint(name):
    layer, other, x = shaken(name).eval(), shaken(name).eval(), image()
    for key, parameter in other.named_parameters():
        parent, _, own = key.rpartition('.')
        setattr(layer.get_submodule(parent), own, parameter)
    layer.load_state_dict(other.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(layer(x), other(x))


def test_a_basis_in_a_buffer_survives_the_refusal():
    layer = RefConv2d(4, 4, 3)
    basis = layer.weight
    with pytest.raises(ForeignWeightError):
        layer.weight = nn.Parameter(basis * 2)
    assert layer.weight is basis
