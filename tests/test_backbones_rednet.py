import pytest
import torch
from helpers import shake
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.functional import unfold
from torch.utils.flop_counter import FlopCounterMode

from mmext.analysis.samples import batch_for, take_step
from mmext.backbones.rednet import RedNet
from mmext.evolution import Involution2d

SMALL = RedNet.example
#: Parameters in millions with a linear head of 1,000 classes, as published and to one digit more, and GMACs at 224 x 224 of
#: convolutions and aggregation, measured on the authors' code.
ARCHS = {
    26: (9.23, 9.233, 1.651 + 0.034),
    38: (12.39, 12.387, 2.114 + 0.053),
    50: (15.54, 15.541, 2.577 + 0.071),
    101: (25.65, 25.653, 4.546 + 0.113),
    152: (33.99, 33.985, 6.515 + 0.165),
}


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_and_operations_are_the_authors(arch):
    published, millions, macs = ARCHS[arch]
    with torch.device('meta'):
        net = RedNet(arch, out_indices=(3,)).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    params = sum(p.numel() for p in net.parameters()) + 2049 * 1000
    assert round(params / 1e6, 3) == millions
    assert abs(params / 1e6 - published) <= 0.0055  # 33.985 is published as 33.99
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize('size', [(224, 224), (97, 75), (33, 50), (1, 1)])
def test_sizes_are_rounded_up(size):
    outs = RedNet(**SMALL).eval()(torch.randn(1, 3, *size))
    for out, stride in zip(outs, (4, 8, 16), strict=True):
        assert out.shape[2:] == tuple(-(-side // stride) for side in size)


def test_bottlenecks_start_as_their_shortcuts_also_after_init_weights():
    net = RedNet(**SMALL)
    for _ in range(2):
        block = net.stages[1].blocks[1].eval()
        x = torch.rand(1, 128, 5, 5)
        torch.testing.assert_close(block(x), x, rtol=0, atol=0)
        shake(net)
        net.init_weights()
    assert all(m.weight.abs().sum() > 0 for m in net.modules() if type(m) is nn.Conv2d)


def test_another_operator_stands_for_the_involution():
    plain = RedNet(**SMALL, operator=dict(type='Conv2d'))
    assert not any(isinstance(m, Involution2d) for m in plain.modules())
    assert plain.stages[0].blocks[0].spatial.conv.weight.shape == (16, 16, 7, 7)
    reduced = RedNet(**SMALL, operator=dict(type='mmext.Involution2d', reduction=2))
    assert reduced.stages[0].blocks[0].spatial.conv.reduce.conv.out_channels == 8


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        (18, r'knows the archs \[26, 38, 50, 101, 152\], got 18; or pass dict\(depths=..., channels=...\)'),
        (dict(depths=(1,), channels=(64, 128)), 'one depth per stage'),
        (dict(depths=(1,), channels=(66,)), 'a multiple of 4'),
        (dict(depths=(1,), channels=(96,)), 'group_channels that divide'),
    ],
)
def test_bad_archs(arch, message):
    with pytest.raises(ValueError, match=message):
        RedNet(arch, out_indices=(0,))


# --- neck and head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_pyramid_is_the_hosts_with_involutions_on_its_outputs(scope):
    cfg = dict(in_channels=[8, 12, 16], out_channels=32, num_outs=5 if scope == 'mmdet' else 3)
    if scope == 'mmdet':
        cfg.update(add_extra_convs='on_output', start_level=1)
    neck = MODELS.build(dict(type='mmext.InvolutionFPN', neck=f'{scope}.FPN', **cfg))
    stock = MODELS.build(dict(type=f'{scope}.FPN', **cfg))
    assert type(neck) is type(stock)
    levels = len(neck.lateral_convs)
    for ours, theirs in zip(neck.fpn_convs[levels:], stock.fpn_convs[levels:], strict=True):
        assert type(ours) is type(theirs)
    neck.init_weights()
    for layer in neck.fpn_convs[:levels]:
        assert layer.kernel_size == (7, 7)
        assert layer.bias is None
        bound = (6 / sum(layer.span.weight.shape[:2])) ** 0.5
        assert 0.95 * bound < layer.span.weight.abs().max() <= bound
        assert not layer.span.bias.any()
    neck.eval()
    maps = [torch.randn(1, c, s, s) for c, s in zip((8, 12, 16), (20, 10, 5), strict=True)]
    fused = []
    neck.fpn_convs[0].register_forward_pre_hook(lambda _, inputs: fused.append(inputs[0]))
    outs = neck(maps)
    layer, x = neck.fpn_convs[0], fused[0]
    weight = layer.span(layer.reduce(x)).view(1, 2, 1, 49, *x.shape[2:])
    windows = unfold(x, 7, padding=3).view(1, 2, 16, 49, *x.shape[2:])
    torch.testing.assert_close(outs[0], (weight * windows).sum(3).flatten(1, 2), rtol=1e-4, atol=1e-5)
    assert len(outs) == cfg['num_outs']


def test_proposal_head_is_the_hosts_with_an_involution():
    head = MODELS.build(dict(type='mmext.InvolutionRPNHead', head='mmdet.RPNHead', in_channels=32, feat_channels=32))
    head.init_weights()
    assert type(head).__name__ == 'RPNHead'
    assert head.rpn_conv.span.weight.std() > 0.02, 'the host leaves the inside alone'
    scores, boxes = head.forward_single(torch.randn(1, 32, 9, 9))
    assert boxes.shape == (1, 4 * scores.shape[1], 9, 9)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(type='mmext.InvolutionFPN', neck='mmext.SEPC', in_channels=8, out_channels=8, num_outs=2), 'fpn_convs'),
        (dict(type='mmext.InvolutionFPN', neck='mmdet.FPN', in_channels=[8], out_channels=24, num_outs=1), 'divide'),
        (
            dict(type='mmext.InvolutionRPNHead', head='mmdet.RPNHead', in_channels=16, feat_channels=32),
            'keeps its channels',
        ),
        (
            dict(type='mmext.InvolutionRPNHead', head='mmdet.RPNHead', in_channels=16, feat_channels=16, num_convs=2),
            'num_convs=1',
        ),
    ],
)
def test_what_does_not_fit_is_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


def test_a_stock_two_stage_detector_learns_with_all_three():
    from mmengine.config import Config

    import mmext  # noqa: F401 - teaches the config loader its scopes

    cfg = Config.fromfile('configs/rednet/det/faster-rcnn_rednet50_involution-fpn_1x_coco.py')
    init_default_scope('mmdet')
    cfg.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=(64, 128, 256, 512))
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.rpn_head.type = 'mmext.InvolutionRPNHead'
    model = MODELS.build(ConfigDict(cfg.model)).train()
    log = take_step(model, cfg.optim_wrapper, batch_for('mmdet', size=96), 96)
    assert torch.isfinite(torch.as_tensor(log['loss']))
    assert sum(isinstance(m, Involution2d) for m in model.modules()) == 1 + 4 + 4 + 1
