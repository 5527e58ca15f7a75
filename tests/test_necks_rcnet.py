import sys

import mmcv.ops
import pytest
import torch
from helpers import shake
from torch import nn

from mmext.necks.rcnet import RCFPN, SHIFTS, CrossScaleShift, FusionNode, RevFP

SIZES = ((26, 34), (13, 17), (7, 9))
WIDTHS = (8, 12, 16)


def count(module):
    return sum(p.numel() for p in module.parameters())


def maps(sizes=SIZES, widths=WIDTHS, batch=2):
    return [torch.randn(batch, width, *size) for width, size in zip(widths, sizes, strict=True)]


def test_parameters_are_those_of_the_official_neck():
    with torch.device('meta'):
        neck = RCFPN([256, 512, 1024, 2048], 256, 5, start_level=1, norm_cfg=dict(type='BN'))
    parts = (neck.nodes, neck.shift, neck.lateral_convs, neck.extra_convs)
    assert [count(part) for part in parts] == [5_740_992, 873_218, 919_040, 132_096]
    assert count(neck) == 7_665_346


@pytest.mark.parametrize('num_outs', [3, 5, 6])
@pytest.mark.parametrize('cfg', [None, dict(type='DCNv2', deform_groups=2)])
def test_levels_and_odd_sizes(num_outs, cfg):
    outs = RCFPN(WIDTHS, 16, num_outs, out_conv_cfg=cfg)(maps())
    assert [tuple(y.shape[2:]) for y in outs] == [*SIZES, (4, 5), (2, 3), (1, 2)][:num_outs]


@pytest.mark.parametrize('sizes', [((12, 12), (12, 12), (4, 4)), ((25, 9), (12, 4), (6, 2)), ((3, 1), (2, 1), (1, 1))])
def test_levels_need_not_halve(sizes):
    outs = RCFPN(WIDTHS, 16, 4, out_conv_cfg=None)(maps(sizes))
    assert [tuple(y.shape[2:]) for y in outs[:3]] == list(sizes)


def test_two_maps_that_are_used():
    neck = RevFP(WIDTHS, 8, 3, start_level=0, end_level=1, out_conv_cfg=None).eval()
    xs = maps()
    expected = neck(xs)
    xs[2] = xs[2] * float('nan')
    assert all(torch.equal(a, b) for a, b in zip(neck(xs), expected, strict=True))


def test_a_new_node_takes_the_mean():
    node = FusionNode(8, 2, True, None, None)
    x, y = torch.randn(2, 2, 8, 5, 6)
    torch.testing.assert_close(node(x, y), node.post_fusion((x + y) / 2))
    deep = FusionNode(8, 3, True, None, None)
    z = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(deep(x, y, z), deep.post_fusion((deep.pre_fusion((x + y) / 2) + z) / 2))


def test_a_node_is_its_equation():
    node = shake(FusionNode(4, 2, True, None, None), 0.5).double()
    x, y = torch.randn(2, 2, 4, 3, 5).double()
    logits = node.temperature / 2 * node.spatial(torch.cat([x, y], 1))
    share = logits.flatten(1).softmax(1).view_as(logits) * 15
    torch.testing.assert_close(share.mean((2, 3)), torch.ones(2, 1).double())
    gate = node.gates[0](torch.cat([x, y], 1).mean((2, 3), keepdim=True)).sigmoid()
    torch.testing.assert_close(node(x, y), node.post_fusion(gate * x + (1 - gate) * share * y))


@pytest.mark.parametrize('count', [2, 3, 5])
def test_the_shift_rolls_four_groups_around_the_levels(count):
    neck = CrossScaleShift(32, count)
    xs = torch.randn(count, 2, 32, 3, 4)
    shifted = torch.stack(neck.shifted(list(xs)))
    for i, step in enumerate(SHIFTS):
        group = slice(2 * i, 2 * i + 2)
        assert torch.equal(shifted[:, :, group], xs.roll(-step, 0)[:, :, group])
    assert torch.equal(shifted[:, :, 8:], xs)


def test_silent_mixes_and_contexts_change_nothing_but_by_resizing():
    neck = CrossScaleShift(16, 3)
    for module in (*(mix[1] for mix in neck.mixes), neck.pixels.project, neck.levels.project):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    xs = [torch.full((1, 16, n, n), float(i + 1)) for i, n in enumerate((9, 5, 3))]
    assert all(torch.equal(y, 2 * x) for x, y in zip(xs, neck(xs), strict=True))


def test_contexts_weigh_to_one():
    context = shake(CrossScaleShift(16, 2), 0.5).pixels
    x = torch.ones(2, 16, 5, 4)
    torch.testing.assert_close(context(x), context.project(torch.ones(2, 16, 1, 1)))


@pytest.mark.parametrize('cfg', [None, dict(type='DCNv2', deform_groups=2)])
def test_a_host_keeps_the_start(cfg):
    neck = shake(RCFPN(WIDTHS, 16, 4, out_conv_cfg=cfg), 1.0)
    neck.init_weights()
    for name, parameter in neck.named_parameters():
        if any(part in name for part in ('gates', 'spatial', 'conv_offset')) or name.endswith('bias'):
            assert not parameter.any(), name
    bound = (6 / (8 + 16)) ** 0.5
    assert 0.9 * bound < neck.lateral_convs[0].conv.weight.abs().max() <= bound
    deep, bound = neck.nodes[1].pre_fusion.conv.weight, (6 / (2 * 9 * 16)) ** 0.5 if cfg is None else 1 / 12
    assert 0.9 * bound < deep.abs().max() <= bound


def test_plain_convolutions_need_no_operator_of_mmcv(monkeypatch):
    monkeypatch.setattr(mmcv.ops.modulated_deform_conv, 'modulated_deform_conv2d', None)
    RCFPN(WIDTHS, 16, 4, out_conv_cfg=None)(maps())


def test_missing_operators_are_reported_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(ImportError, match=r'RCFPN convolves by DCNv2 .* or set out_conv_cfg=None'):
        RCFPN(WIDTHS, 16, 4)


def test_bfloat16_autocast_runs_the_deformable_convolutions():
    neck = RCFPN(WIDTHS, 16, 4).eval()
    xs = maps()
    with torch.no_grad():
        expected = neck(xs)
        with torch.autocast('cpu', torch.bfloat16):
            got = neck(xs)
    for a, b in zip(got, expected, strict=True):
        assert (a.float() - b).abs().max() <= 0.05 * b.abs().max()


def test_compiles_without_a_break():
    neck, xs = RCFPN(WIDTHS, 16, 4, out_conv_cfg=None).eval(), maps()
    with torch.no_grad():
        compiled = torch.compile(neck, backend='eager', fullgraph=True)
        for a, b in zip(compiled(xs), neck(xs), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_outs=2), 'RCFPN needs num_outs of at least 3'),
        (dict(start_level=3), '0 <= start_level <= end_level < 3'),
        (dict(end_level=5), 'got start_level=0 and end_level=5'),
        (dict(out_channels=24), r'shift_ratio=16 divides, got in_channels=24'),
        (dict(out_channels=16, out_conv_cfg=dict(type='DCNv2', deform_groups=3)), 'that deform_groups divides, got 16'),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RCFPN(**{**dict(in_channels=WIDTHS, out_channels=16, num_outs=4), **kwargs})


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match=r'RCFPN was built for 3 maps with the channels \[8, 12, 16\], got 2 maps'):
        RCFPN(WIDTHS, 16, 4)(maps()[:2])
    with pytest.raises(ValueError, match='one width for all num_outs=2 levels'):
        CrossScaleShift([16, 32], 2)
