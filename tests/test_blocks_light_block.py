"""The meta block, its operators, and the receptive range against what autograd sees."""

import pytest
import torch
import torch.nn.functional as F
from helpers import shake_norms
from mmengine.registry import DefaultScope
from torch import nn

from mmext.blocks import (
    LIGHT_BLOCKS,
    MetaBasicBlock,
    MetaLightBlock,
    RefCO,
    receptive_range,
    with_num_channels,
)
from mmext.convs import RefConv2d, RepSO2d
from mmext.registry import MODELS, require


def grouped_pair(channels, hidden, groups, shuffle=True):
    """Two linear factors without norm or activation."""
    common = dict(groups=groups, shuffle=shuffle, check_full_range=False, norm_cfg=None, act_cfg=None)
    return nn.Sequential(RefCO(channels, hidden, factor=0, **common), RefCO(hidden, channels, factor=1, **common))


def measured_range(pair, channels):
    """The number of inputs with a non-zero gradient, per output channel."""
    x = torch.zeros(1, channels, 1, 1, dtype=torch.float64, requires_grad=True)
    y = pair.double()(x).flatten()
    return [int((torch.autograd.grad(out, x, retain_graph=True)[0] != 0).sum()) for out in y]


CASES = [
    (channels, int(channels * expansion), groups)
    for channels in (8, 16, 24)
    for expansion in (0.5, 1, 2, 3, 4)
    for groups in ((1, 1), (1, 4), (2, 2), (2, 8), (3, 2), (4, 2), (4, 4), (8, 2), (8, 4), (8, 8))
    if all(n % g == 0 for n in (channels, int(channels * expansion)) for g in groups)
]


@pytest.mark.parametrize(('channels', 'hidden', 'groups'), CASES)
def test_receptive_range_is_what_autograd_sees(channels, hidden, groups):
    measured = measured_range(grouped_pair(channels, hidden, groups), channels)
    assert set(measured) == {receptive_range(channels, hidden, groups)}
    assert (measured[0] == channels) == (groups[0] * groups[1] <= hidden)
    unshuffled = measured_range(grouped_pair(channels, hidden, groups, shuffle=False), channels)
    assert min(unshuffled) == receptive_range(channels, hidden, groups, shuffle=False)


def test_the_cases_cover_both_sides_of_the_law():
    full = {g1 * g2 <= hidden for _, hidden, (g1, g2) in CASES}
    assert full == {True, False}
    assert len(CASES) > 50


def test_without_the_shuffle_the_range_collapses():
    assert receptive_range(16, 64, (4, 4), shuffle=False) == 4
    assert receptive_range(16, 64, (8, 8), shuffle=False) == 2
    assert receptive_range(16, 64, (4, 4)) == 16


def test_grouped_factors_equal_masked_dense_ones():
    channels, hidden, groups = 8, 16, (4, 2)
    pair = grouped_pair(channels, hidden, groups)
    dense = []
    for factor, g in zip(pair, groups, strict=True):
        nn.init.normal_(factor.pointwise.conv.bias)
        blocks = factor.pointwise.conv.weight.flatten(1).chunk(g)
        dense.append(torch.block_diag(*blocks))
    permutation = torch.arange(hidden).view(groups[0], -1).T.flatten()
    x = torch.randn(2, channels, 5, 4)
    y = torch.einsum('oi,nihw->nohw', dense[0], x) + pair[0].pointwise.conv.bias.view(-1, 1, 1)
    y = torch.einsum('oi,nihw->nohw', dense[1], y[:, permutation]) + pair[1].pointwise.conv.bias.view(-1, 1, 1)
    torch.testing.assert_close(pair(x), y, atol=1e-6, rtol=1e-5)


def test_one_group_is_the_dense_pair():
    refco = MetaLightBlock(8, spatial=dict(type='Conv2d'), channel=dict(type='mmext.RefCO', groups=1)).eval()
    dense = MetaLightBlock(8, spatial=dict(type='Conv2d'), channel=dict(type='Conv2d')).eval()
    dense.load_state_dict({k.replace('pointwise.', ''): v for k, v in refco.state_dict().items()})
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(refco(x), dense(x))


def test_parameters_of_the_factors():
    block = MetaLightBlock(64, spatial=None, channel=dict(type='mmext.RefCO', groups=(16, 16)))
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
    assert weights == 64 * 256 * 2 / 16
    assert weights / (2 * 64 * 256) == pytest.approx(0.0625)


def test_block_is_the_sequence_that_it_says():
    block = MetaLightBlock(8, expansion=2, spatial=dict(type='Conv2d'), channel=dict(type='Conv2d')).eval()
    shake_norms(block)
    x = torch.randn(2, 8, 6, 6)
    co1, so, co2 = block.operators
    y = F.relu(co1.bn(F.conv2d(x, co1.conv.weight)))
    y = F.relu(so.bn(F.conv2d(y, so.conv.weight, padding=1, groups=16)))
    torch.testing.assert_close(block(x), x + co2.bn(F.conv2d(y, co2.conv.weight)))


@pytest.mark.parametrize('name', ['falconnet', *LIGHT_BLOCKS])
def test_every_block_keeps_its_shape_and_trains(name):
    block = MODELS.build({**LIGHT_BLOCKS.get(name, dict(type='mmext.MetaLightBlock')), 'channels': 32})
    x = torch.randn(4, 32, 7, 6, requires_grad=True)
    before = x.detach().clone()
    y = block(x)
    assert y.shape == x.shape
    assert torch.equal(x, before), 'an activation worked in place on the input'
    y.square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert x.grad.any()


def layout(block):
    """Kernel size, channels, groups, norm and activation of every convolution of the block, in order."""
    return [
        (m.conv.kernel_size[0], m.in_channels, m.out_channels, m.groups, m.with_norm, m.with_activation)
        for m in block.modules()
        if hasattr(m, 'conv') and hasattr(m, 'with_norm')
    ]


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('mobilenet_v2', [(1, 32, 192, 1, 1, 1), (3, 192, 192, 192, 1, 1), (1, 192, 32, 1, 1, 0)]),
        ('convnext', [(7, 32, 32, 32, 1, 0), (1, 32, 128, 1, 0, 1), (1, 128, 32, 1, 0, 0)]),
        ('fasternet', [(3, 8, 8, 1, 0, 0), (1, 32, 64, 1, 1, 1), (1, 64, 32, 1, 0, 0)]),
        ('shufflenet', [(1, 32, 8, 4, 1, 1), (3, 8, 8, 8, 1, 0), (1, 8, 32, 4, 1, 0)]),
        ('ghostnet', [(1, 32, 48, 1, 1, 1), (3, 48, 48, 48, 1, 1), (1, 96, 16, 1, 1, 0), (3, 16, 16, 16, 1, 0)]),
        (
            'mobilenext',
            [(3, 32, 32, 32, 1, 1), (1, 32, 8, 1, 1, 0), (1, 8, 32, 1, 1, 1), (3, 32, 32, 32, 1, 0)],
        ),
    ],
)
def test_the_blocks_of_other_networks(name, expected):
    assert layout(MODELS.build({**LIGHT_BLOCKS[name], 'channels': 32})) == expected


def test_every_layout_is_pinned():
    assert set(LIGHT_BLOCKS) == {'mobilenet_v2', 'convnext', 'fasternet', 'shufflenet', 'ghostnet', 'mobilenext'}


def test_block_with_a_dead_branch_is_the_identity():
    block = MetaLightBlock(16)
    nn.init.zeros_(block.operators.co2.pointwise.bn.weight)
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(block(x), x)


class PlainMean(nn.Module):
    """A whole operator of somebody else's: told by ``act_cfg`` in its signature."""

    def __init__(self, in_channels, out_channels, norm_cfg, act_cfg, flavour=0):
        super().__init__()
        self.out_channels, self.told = out_channels, (in_channels, norm_cfg, act_cfg, flavour)

    def forward(self, x):
        return x.mean(1, keepdim=True).expand(-1, self.out_channels, -1, -1)


def test_any_operator_of_the_registry_fits():
    block = MetaBasicBlock(
        8,
        so1=dict(type='mmext.RepSO2d', kernel_size=5),
        co1=dict(type=PlainMean, flavour=3),
        so2=dict(type='mmext.RefConv2d', kernel_size=(3, 5), dilation=2),
        co2=dict(type='Conv2d', groups=2),
        so3=dict(type='mmext.PartialSO', ratio=2),
    )
    assert block(torch.randn(2, 8, 9, 8)).shape == (2, 8, 9, 8)
    assert isinstance(block.operators.so1.conv, RepSO2d)
    assert not block.operators.so1.with_norm, 'RepSO2d normalizes itself'
    assert block.operators.so2.conv.padding == (2, 4)
    assert block.operators.co1.told == (8, dict(type='BN'), dict(type='ReLU'), 3)


@pytest.mark.parametrize('scope', ['mmext', 'mmdet'])
def test_a_block_builds_under_any_default_scope(scope):
    DefaultScope.get_instance('test', scope_name=scope)
    block = MODELS.build(dict(type='mmext.MetaLightBlock', channels=16, act_cfg=dict(type='mmext.LENI')))
    assert block(torch.randn(1, 16, 4, 4)).shape == (1, 16, 4, 4)


def test_conv_cfg_replaces_plain_spatial_convolutions_only():
    kwargs = dict(conv_cfg=dict(type='mmext.RefConv2d'), channel=dict(type='Conv2d'))
    refocused = MetaLightBlock(8, spatial=dict(type='Conv2d', kernel_size=5), **kwargs)
    kinds = [type(m.conv) for m in refocused.operators]
    assert kinds == [nn.Conv2d, RefConv2d, nn.Conv2d]
    assert refocused.operators.so2.conv.kernel_size == (5, 5)
    assert type(MetaLightBlock(8, **kwargs).operators.so2.conv) is RepSO2d


def test_an_activation_is_told_its_channels():
    assert with_num_channels(dict(type='mmext.LENI', kernel_size=5), 7) == dict(
        type='mmext.LENI', kernel_size=5, num_channels=7
    )
    assert with_num_channels(dict(type='ReLU'), 7) == dict(type='ReLU')
    assert with_num_channels(None, 7) is None
    block = MetaLightBlock(8, spatial=dict(type='Conv2d'), act_cfg=dict(type='mmext.LENI'), out_act=True)
    widths = [m.num_channels for m in block.modules() if type(m).__name__ == 'LENI']
    assert widths == [32, 32, 8]


def test_checkpointing_computes_the_same():
    torch.manual_seed(1)
    plain = MetaLightBlock(16)
    cheap = MetaLightBlock(16, with_cp=True)
    cheap.load_state_dict(plain.state_dict())
    grads, calls = [], []
    for block in (plain, cheap):
        block.operators.co1.register_forward_hook(lambda module, *_: calls.append(module))
        x = torch.linspace(-1, 1, 16 * 36).view(1, 16, 6, 6).requires_grad_()
        block(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in block.parameters())])
    torch.testing.assert_close(*grads)
    assert [calls.count(b.operators.co1) for b in (plain, cheap)] == [1, 2], 'the backward pass has to recompute'


def test_drop_path_drops_whole_samples():
    block = MetaLightBlock(16, drop_path_rate=0.5)
    x = torch.randn(64, 16, 3, 3)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 10 < untouched.sum() < 54
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: MetaLightBlock(8, channel=dict(type='mmext.RefCO', groups=8)), r'8 channels.*G1 \* G2 <= hidden'),
        (lambda: MetaLightBlock(16, channel=dict(type='mmext.RefCO', shuffle=False)), '4 of 16 channels.*shuffle=True'),
        (lambda: RefCO(8, 32, groups=(3, 4)), 'groups that divide channels and hidden'),
        (lambda: RefCO(8, 32, factor=2), 'factor=1.*got factor=2'),
        (lambda: receptive_range(8, 32, (4, 3)), 'groups that divide'),
        (lambda: MetaBasicBlock(10, expansion=0.25), 'whole number of hidden channels'),
        (lambda: MetaBasicBlock(8, co2=None), 'both channel operators'),
        (lambda: MetaBasicBlock(10, so1=dict(type='mmext.PartialSO')), 'multiple of ratio'),
        (lambda: MetaBasicBlock(8, co1=dict(type='mmext.GhostCO', ratio=5)), 'ratio of at least 2 that divides'),
        (lambda: MetaBasicBlock(8, co1=dict(type='mmext.GhostCO', ratio=1)), 'ratio of at least 2'),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_operator_names_its_neighbors():
    with pytest.raises(KeyError, match=r'mmext\.RepSO2d'):
        MetaLightBlock(8, spatial=dict(type='mmext.RepS02d'))
    with pytest.raises(KeyError):
        require(dict(type='NoSuchLayer'))
