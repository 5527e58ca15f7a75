"""CATNet: the dense pyramid, the context within levels, and the RoI extractor."""

import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmext.blocks.catnet import ContextAggregation
from mmext.heads.catnet import HierarchicalRoIExtractor
from mmext.necks.catnet import SCP, DenseFPN

SIZES = ((13, 22), (7, 11), (4, 6))
WIDTHS = (4, 6, 8)
LAYER = dict(type='RoIAlign', output_size=3, sampling_ratio=2)
ROIS = torch.tensor([[0.0, 3, 4, 30, 40], [1, 0, 0, 20, 25], [1, 10, 2, 50, 33]])


def count(module):
    return sum(p.numel() for p in module.parameters())


def maps(widths=WIDTHS):
    return [torch.randn(2, width, *size) for width, size in zip(widths, SIZES, strict=False)]


def extractor(direction='bottom_up', strides=(4, 8, 16), **kwargs):
    return HierarchicalRoIExtractor(direction, LAYER, 4, strides, **kwargs)


def test_parameters_are_those_of_the_official_parts():
    maps, norm = [256, 512, 1024, 2048], dict(type='BN')
    with torch.device('meta'):
        assert count(DenseFPN(maps, 256, 5, stack_times=5, norm_cfg=norm)) == 12_276_242
        assert count(DenseFPN(maps, 256, 5, start_level=1, stack_times=5, norm_cfg=norm)) == 12_800_530
        assert count(DenseFPN(maps, 256, 5, norm_cfg=norm)) == 3_715_602
    assert count(SCP(256)) == 660_490
    assert count(HierarchicalRoIExtractor('top_down', LAYER, 256, (4, 8, 16, 32))) == 525_312


def test_names_are_the_official_ones():
    assert {k.split('.')[0] for k in DenseFPN(WIDTHS, 4, 4).state_dict()} == {
        *('lateral_convs', 'extra_convs', 'stages', 'top_down_atts', 'bottom_up_atts')
    }
    assert [k for k in SCP(4, 1).state_dict() if 'weight' in k] == [f'blocks.0.{p}.conv.weight' for p in 'akvm']
    assert [*extractor().state_dict()][:2] == ['atts.0.conv.weight', 'atts.0.conv.bias']


@pytest.mark.parametrize(('num_outs', 'lengths'), [(3, [2]), (5, [4, 3, 2])])
def test_weights_of_the_sources(num_outs, lengths):
    neck = DenseFPN(WIDTHS, 4, num_outs)
    assert [len(a) for a in neck.top_down_atts] == lengths
    assert [len(a) for a in neck.bottom_up_atts] == lengths[::-1]


def test_equal_logits_take_the_mean():
    """Bottlenecks that return their input let the sums be seen."""
    neck = DenseFPN((4, 4, 4), 4, 3)
    neck.stages[0] = nn.ModuleList(nn.Identity() for _ in range(6))
    neck.lateral_convs = nn.ModuleList(nn.Identity() for _ in range(3))
    fine, middle, coarse = xs = [x.abs() for x in maps((4, 4, 4))]

    def up(x, like):
        return F.interpolate(x, like.shape[2:], mode='bilinear')

    def down(x, like):
        return F.adaptive_max_pool2d(x, like.shape[2:])

    tops = [fine + (up(middle, fine) + up(coarse, fine)) / 2, middle + up(coarse, middle), coarse]
    expected = [fine + tops[0], middle + tops[1] + down(tops[0], middle)]
    expected.append(coarse + tops[2] + (down(tops[0], coarse) + down(tops[1], coarse)) / 2)
    for a, b in zip(neck(xs), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_stacks_share_the_weights_and_nothing_else():
    one, two = (DenseFPN(WIDTHS, 4, 4, stack_times=times) for times in (1, 2))
    shared = {k for k in one.state_dict() if 'atts' in k}
    assert shared == {k for k in two.state_dict() if 'atts' in k}
    assert count(two.stages) == 2 * count(one.stages)


@pytest.mark.parametrize('num_outs', [1, 2])
def test_pyramids_of_few_levels(num_outs):
    outs = DenseFPN(WIDTHS[:1], 4, num_outs)(maps()[:1])
    assert [tuple(y.shape[2:]) for y in outs] == [(13, 22), (7, 11)][:num_outs]


def test_a_host_keeps_the_start():
    pyramid = dict(type='mmext.DenseFPN', in_channels=WIDTHS, out_channels=4, num_outs=3)
    neck = MODELS.build([pyramid, dict(type='mmext.SCP', in_channels=4, num_outs=3)])
    shake(neck, 1.0).init_weights()
    bound = (3 / 4) ** 0.5  # Caffe2's Xavier draws from the number of inputs alone
    assert 0.5 * bound < neck[0].lateral_convs[0].conv.weight.abs().max() <= bound
    for block in neck[1].blocks:
        assert not block.m.conv.weight.any()
        assert block.v.conv.weight.abs().max() <= bound


def test_new_context_changes_nothing_and_is_its_equation_later():
    block, x = ContextAggregation(4, reduction=2).double(), torch.randn(2, 4, 3, 5).double()
    assert torch.equal(block(x), x)
    shake(block, 0.5)
    share = block.k(x).flatten(1).softmax(1)
    vector = torch.einsum('np,ncp->nc', share, block.v(x).flatten(2))
    torch.testing.assert_close(block(x), x + block.a(x).sigmoid() * block.m(vector[..., None, None]))


def test_context_is_a_plug_in_of_a_stock_backbone():
    init_default_scope('mmdet')
    plugin = dict(cfg=dict(type='mmext.ContextAggregation'), stages=(False, True), position='after_conv3')
    stem = dict(
        type='ResNet', depth=50, stem_channels=8, base_channels=4, num_stages=2, strides=(1, 2), dilations=(1, 1)
    )
    net = MODELS.build(dict(stem, out_indices=(0, 1), plugins=[plugin]))
    assert sum(isinstance(m, ContextAggregation) for m in net.modules()) == 4
    net(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('direction', ['bottom_up', 'top_down'])
def test_the_extractor_is_its_recurrence(direction):
    layer, xs = shake(extractor(direction), 0.3), maps((4, 4, 4))
    cropped = [roi(x, ROIS) for roi, x in zip(layer.roi_layers, xs, strict=True)]
    pooled = torch.zeros(3, 4, 3, 3)
    for i in (0, 1, 2) if direction == 'bottom_up' else (2, 1, 0):
        pooled = pooled + cropped[i] * layer.atts[i](torch.cat([pooled, cropped[i]], 1)).sigmoid()
    torch.testing.assert_close(layer(xs, ROIS), pooled)


def test_directions_differ_and_silent_gates_are_half_open():
    one, other = (shake(extractor(direction), 0.3) for direction in ('bottom_up', 'top_down'))
    other.load_state_dict(one.state_dict())
    xs = maps((4, 4, 4))
    assert not torch.allclose(one(xs, ROIS), other(xs, ROIS))
    for att in one.atts:
        nn.init.zeros_(att.conv.weight)
        nn.init.zeros_(att.conv.bias)
    cropped = [roi(x, ROIS) for roi, x in zip(one.roi_layers, xs, strict=True)]
    torch.testing.assert_close(one(xs, ROIS), sum(cropped) / 2)


def test_no_box_still_reaches_every_parameter():
    layer = extractor()
    layer(maps((4, 4, 4)), ROIS[:0]).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize(('half_rois', 'expected'), [(False, torch.float32), (True, torch.float16)])
def test_boxes_keep_their_precision_unless_they_shall_be_rounded(half_rois, expected):
    layer, seen = extractor(half_rois=half_rois), []
    for roi in layer.roi_layers:
        roi.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].dtype, inputs[1].dtype)))
    with torch.autocast('cpu', torch.float16):
        pooled = layer([x.half() for x in maps((4, 4, 4))], ROIS)
    assert pooled.dtype == torch.float16
    assert seen == [(expected, expected)] * 3


def test_enlarged_boxes():
    layer, xs = extractor(), maps((4, 4, 4))
    wide = layer.pooling.roi_rescale(ROIS, 1.5)
    assert torch.equal(layer(xs, ROIS, 1.5), layer(xs, wide))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: DenseFPN(WIDTHS, 4, 2), 'DenseFPN needs num_outs of at least 3'),
        (
            lambda: SCP([4, 4], 3),
            r'SCP needs one of in_channels for each of num_outs=3 levels, got in_channels=\[4, 4\]',
        ),
        (lambda: SCP(4, 2)(maps()[:2]), r'with the channels \[4, 4\], got 2 maps with \[4, 6\]'),
        (lambda: extractor()(maps()[:2], ROIS), 'featmap_strides for 3 levels, got 2 maps'),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
