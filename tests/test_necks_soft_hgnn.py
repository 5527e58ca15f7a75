"""SoftHGFusionNeck: sizes and levels of any kind, and its own networks in each."""

import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmengine.registry import init_default_scope
from torch import nn

from mmext.blocks.soft_hgnn import SoftHGNNSeS
from mmext.export import export
from mmext.necks.soft_hgnn import SoftHGFusionNeck, resized
from mmext.registry import MODELS

MIXER = dict(type='mmext.SoftHGNN', num_hyperedges=3, num_heads=2)


def maps(widths, sizes):
    return [torch.randn(2, c, *size) for c, size in zip(widths, sizes, strict=True)]


@pytest.mark.parametrize(
    ('widths', 'sizes', 'more'),
    [
        ((8, 8, 16), ((12, 8), (6, 4), (3, 2)), {}),
        ((8, 16), ((13, 9), (7, 5)), dict(out_channels=24)),
        ((8, 8, 8, 8, 8), ((33, 21), (17, 11), (9, 6), (5, 3), (3, 2)), dict(meet=0)),
        ((16, 8, 8), ((13, 9), (6, 4), (3, 2)), dict(meet=2)),  # halves that were rounded down
        ((16,), ((5, 5),), {}),
        ((4, 8, 16), ((12, 8), (6, 4), (3, 2)), dict(levels=(1, 2))),
    ],
)
def test_maps_keep_their_shapes(widths, sizes, more):
    neck, inputs = SoftHGFusionNeck(widths, mixer=MIXER, **more), maps(widths, sizes)
    outs = neck(inputs)
    assert [y.shape for y in outs] == [x.shape for x in inputs]
    used = more.get('levels', range(len(widths)))
    assert all((y is x) != (i in used) for i, (x, y) in enumerate(zip(inputs, outs, strict=True)))
    sum(y.square().mean() for y in outs).backward()
    assert all(p.grad is not None for p in neck.parameters())


def test_every_output_sees_every_level():
    neck, inputs = SoftHGFusionNeck((8, 8, 16), mixer=MIXER).eval(), maps((8, 8, 16), ((12, 8), (6, 4), (3, 2)))
    for x in inputs:
        x.requires_grad_()
    for y in neck(inputs):
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(y.sum(), inputs, retain_graph=True))


def test_going_up_is_the_mean_and_going_down_repeats():
    x = torch.randn(1, 2, 8, 12)
    torch.testing.assert_close(resized(x, torch.empty(1, 1, 2, 3), 2), F.avg_pool2d(x, 4))
    assert torch.equal(resized(x, torch.empty(1, 1, 16, 24), -1), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    ones = torch.ones(1, 1, 5, 7)
    assert torch.equal(resized(ones, torch.empty(1, 1, 3, 4), 1), torch.ones(1, 1, 3, 4))


def test_takes_the_sparse_form_as_its_mixer():
    mixer = dict(type='mmext.SoftHGNNSeS', num_dynamic=4, top_k=1, num_fixed=1)
    neck = SoftHGFusionNeck((16, 16), mixer=mixer)
    assert sum(isinstance(m, SoftHGNNSeS) for m in neck.modules()) == 2


def test_channels_are_filled_in_behind_any_backbone():
    init_default_scope('mmdet')
    backbone = dict(type='MobileNetV2', out_indices=(2, 4, 6), init_cfg=None)
    neck = [
        dict(type='mmext.SoftHGFusionNeck', in_channels='auto', levels=(1, 2), out_channels=16),
        dict(type='FPN', in_channels='auto', out_channels=8, num_outs=3),
    ]
    head = dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8)
    cfg = dict(type='mmext.auto_channels', model='mmdet.RetinaNet', backbone=backbone, neck=neck, bbox_head=head)
    model = MODELS.build(dict(cfg, test_cfg=dict()))
    assert model.neck[0].in_channels == (32, 96, 320)
    assert len(model(torch.randn(1, 3, 65, 97), mode='tensor')[0]) == 3


class Net(nn.Module):
    def __init__(self, neck):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.neck = neck

    def forward(self, x):
        found = []
        for conv in self.convs:
            found.append(x := conv(x))
        return self.neck(found)


def test_exports_and_computes_in_half_precision(tmp_path):
    net, x = shake(Net(SoftHGFusionNeck((8, 8, 16), mixer=MIXER))).eval(), torch.randn(2, 3, 38, 27)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        half = net(x)
    for a, b in zip(half, net(x), strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.1)
    pytest.importorskip('onnxruntime')
    assert export(net, x, tmp_path / 'net.onnx') < 1e-4


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(levels=(1, 0)), r'ascending levels below 2, the number of maps, got levels=\(1, 0\)'),
        (dict(levels=(0, 2)), 'ascending levels below 2'),
        (dict(meet=2), 'meet below 2, the number of levels, got meet=2'),
        (dict(out_channels=7), 'even channels, got 7; set out_channels'),
        (dict(mixer=dict(type='mmext.SoftHGNN', num_heads=3)), 'heads that divide the channels'),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        SoftHGFusionNeck((8, 16), **kwargs)


def test_another_number_of_maps():
    with pytest.raises(ValueError, match='built for 2 maps, got 1'):
        SoftHGFusionNeck((8, 16))([torch.randn(1, 8, 4, 4)])
