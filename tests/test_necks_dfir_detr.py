"""DFPN: sizes and levels of any kind, and the attention on its last map."""

import pytest
import torch
from helpers import shake
from mmengine.registry import init_default_scope
from torch import nn

from mmext.necks.dfir_detr import DFPN, _positions
from mmext.registry import MODELS


def maps(widths, sizes):
    return [torch.randn(2, c, *size) for c, size in zip(widths, sizes, strict=True)]


@pytest.mark.parametrize(
    ('widths', 'sizes', 'more', 'further'),
    [
        ((4, 8, 16), ((12, 8), (6, 4), (3, 2)), {}, ()),
        ((4, 8), ((13, 9), (7, 5)), dict(num_outs=4), ((4, 3), (2, 2))),
        ((4, 8, 16, 16), ((13, 9), (7, 5), (4, 3), (2, 2)), dict(start_level=1), ()),
        ((4, 8), ((13, 9), (6, 4)), dict(num_outs=3, add_extra_convs=True), ((3, 2),)),  # halves rounded down
        ((4, 8), ((12, 8), (6, 4)), dict(num_outs=4, add_extra_convs='on_output'), ((3, 2), (2, 1))),
        ((4,), ((5, 5),), dict(num_heads=0), ()),
    ],
)
def test_sizes_of_the_outputs_and_every_parameter_learns(widths, sizes, more, further):
    neck = DFPN(widths, 8, num_blocks=1, feedforward_channels=8, **more)
    outs = neck(maps(widths, sizes))
    assert [tuple(y.shape[1:]) for y in outs] == [(8, *s) for s in (*sizes[more.get('start_level', 0) :], *further)]
    sum(y.square().mean() for y in outs).backward()
    assert not [n for n, p in neck.named_parameters() if p.grad is None]


def test_every_output_sees_every_level():
    neck, inputs = DFPN((4, 4, 4), 8).eval(), maps((4, 4, 4), ((12, 8), (6, 4), (3, 2)))
    for x in inputs:
        x.requires_grad_()
    for y in neck(inputs):
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(y.sum(), inputs, retain_graph=True))


def test_places_have_codes_of_their_own():
    codes = _positions(5, 7, 16)
    assert codes.shape == (35, 16)
    assert torch.cdist(codes, codes).fill_diagonal_(1).min() > 0.1
    neck, x = DFPN((4,), 8).eval(), torch.randn(1, 8, 3, 4)
    assert not torch.allclose(neck.attend(x.flip(3)).flip(3), neck.attend(x))


def test_takes_the_place_of_the_stock_pyramid_by_its_type_alone():
    init_default_scope('mmdet')
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    neck = dict(in_channels='auto', start_level=1, add_extra_convs='on_input', out_channels=8, num_outs=5)
    head = dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8)
    cfg = dict(type='mmext.auto_channels', model='mmdet.RetinaNet', backbone=backbone, bbox_head=head, test_cfg=dict())
    model = MODELS.build(dict(cfg, neck=dict(neck, type='mmext.DFPN')))
    outs = model(torch.randn(1, 3, 129, 65), mode='tensor')[0]
    stock = MODELS.build(dict(cfg, neck=dict(neck, type='FPN')))(torch.randn(1, 3, 129, 65), mode='tensor')[0]
    assert [y.shape for y in outs] == [y.shape for y in stock]


def test_half_precision_and_torch_export():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = shake(DFPN((3, 3), 8, num_blocks=1))

        def forward(self, x):
            return self.neck((x, x[..., ::2, ::2]))

    net, x = Net().eval(), torch.randn(1, 3, 11, 8)
    with torch.no_grad():
        expected = net(x)
        traced = torch.jit.trace(net, x, check_trace=False)(x)
        with torch.autocast('cpu', torch.bfloat16):
            half = net(x)
    for want, got, rough in zip(expected, traced, half, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rough.float(), want, rtol=0.2, atol=0.1 * float(want.abs().max()))


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(out_channels=6), 'that 4 and num_heads divide, got out_channels=6'),
        (dict(out_channels=12), 'num_heads=8; 0 heads leave the attention out'),
        (dict(start_level=2), 'start_level below 2, the maps, got start_level=2'),
        (dict(num_outs=1), 'num_outs of at least 2, the maps from start_level=0 on, got num_outs=1'),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        DFPN((4, 8), **kwargs)


def test_another_number_of_maps():
    with pytest.raises(ValueError, match='built for 2 maps, got 1'):
        DFPN((4, 8), 8)([torch.randn(1, 4, 4, 4)])
