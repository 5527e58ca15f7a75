import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmext.necks import SimpleFPN


def test_strides_and_widths():
    outs = SimpleFPN(16, 8, num_outs=6)([torch.randn(2, 3, 9, 9), torch.randn(2, 16, 4, 6)])
    assert [tuple(y.shape) for y in outs] == [
        (2, 8, h, w) for h, w in [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    ]


@pytest.mark.parametrize('scales', [(1, 0.5, 0.25, 0.125), (8, 0.25), (0.5,)])
def test_any_stride_of_the_backbone(scales):
    outs = SimpleFPN(16, 8, scales=scales)([torch.randn(1, 16, 16, 16)])
    assert [y.shape[2] for y in outs] == [16 * scale for scale in scales]


def test_parameters_are_those_of_the_paper():
    """Transposed convolutions with bias, their norm, and lateral and output convolutions without bias with norm each."""
    c, d = 16, 8
    up = (c * c // 2 * 4 + c // 2) + 2 * (c // 2) + (c // 2 * c // 4 * 4 + c // 4) + (c * c // 2 * 4 + c // 2)
    heads = sum(width * d + 2 * d + 9 * d * d + 2 * d for width in (c // 4, c // 2, c, c))
    assert sum(p.numel() for p in SimpleFPN(c, d).parameters()) == up + heads


def test_levels_see_only_their_map():
    neck = SimpleFPN(16, 8, in_index=0).eval()
    x = torch.randn(1, 16, 4, 4)
    for a, b in zip(neck([x, torch.zeros(1)]), neck([x]), strict=True):
        assert torch.equal(a, b)


def test_a_plain_transformer_becomes_a_detector():
    init_default_scope('mmdet')
    model = dict(
        type='mmext.auto_channels',
        model='mmdet.RetinaNet',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16),
            img_size=64,
            out_type='featmap',
        ),
        neck=dict(type='mmext.SimpleFPN', in_channels='auto', out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels='auto', feat_channels=8),
    )
    net = MODELS.build(ConfigDict(model))
    net.eval()
    with torch.no_grad():
        scores, boxes = net(torch.randn(1, 3, 64, 64), mode='tensor')
    assert [s.shape[-1] for s in scores] == [16, 8, 4, 2, 1]
    assert len(boxes) == 5


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(scales=(1, 2)), 'falling powers of 2'),
        (dict(scales=(3, 1)), 'falling powers of 2'),
        (dict(in_channels=6), 'halves its channels once for each doubling, 2 times'),
        (dict(num_outs=2), 'num_outs of at least 4'),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        SimpleFPN(**{'in_channels': 16, 'out_channels': 8, **change})


def test_a_map_that_is_not_there():
    with pytest.raises(ValueError, match='takes map in_index=2, but 1 maps came in'):
        SimpleFPN(16, 8, in_index=2)([torch.randn(1, 16, 4, 4)])
