import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import shake_norms
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmext.convs.partial_conv import PartialConv2d
from mmext.folding import fold

CONFIGS = sorted((Path(__file__).parents[1] / 'configs/partial_conv').glob('*/*.py'))
GEOMETRIES = {
    '3x3': dict(kernel_size=3, padding=1),
    'strided': dict(kernel_size=3, padding=1, stride=2),
    'dilated': dict(kernel_size=3, padding=2, dilation=2, stride=2),
    'uneven': dict(kernel_size=(3, 5), padding=(2, 1), stride=(1, 2)),
    'same': dict(kernel_size=4, padding='same'),
    'all-padding': dict(kernel_size=1, padding=1),
    'depthwise': dict(kernel_size=3, padding=1, groups=4),
}


def make(case='3x3', **kwargs) -> PartialConv2d:
    return PartialConv2d(4, 8, **{**GEOMETRIES[case], **kwargs}).double()


def reference(layer, x, mask):
    """The paper's formula in loops, with a mask of as many channels as the input; also where a window sees nothing."""
    plain = nn.Conv2d(4, 8, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups).double()
    plain.weight, plain.bias = layer.weight, None
    pads = layer._reversed_padding_repeated_twice
    x, mask = F.pad(x * mask, pads), F.pad(mask.expand(len(x), 4, -1, -1), pads)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    rows = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    cols = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y, valid = x.new_zeros(len(x), 8, rows, cols), x.new_zeros(len(x), 8, rows, cols)
    per = 4 // layer.groups
    for o in range(8):
        group = slice(o // (8 // layer.groups) * per, o // (8 // layer.groups) * per + per)
        for i in range(rows):
            for j in range(cols):
                window = (slice(None), group, slice(i * sh, i * sh + dh * kh, dh), slice(j * sw, j * sw + dw * kw, dw))
                seen = mask[window][:, :, :kh, :kw].flatten(1).sum(1)
                total = (x[window][:, :, :kh, :kw] * layer.weight[o]).flatten(1).sum(1)
                ratio = torch.where(seen > 0, kh * kw * per / seen, 0)
                bias = 0 if layer.bias is None else layer.bias[o]
                y[:, o, i, j] = (total * ratio + bias) * seen.clamp(max=1)
                valid[:, o, i, j] = seen.clamp(max=1)
    return y, valid


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('case', GEOMETRIES)
def test_padding_mode_equals_the_formula(case, bias):
    layer = make(case, bias=bias)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected, valid = reference(layer, x, torch.ones(1, 1, 7, 6, dtype=torch.float64))
    if bias:  # windows of padding alone keep the bias, so that a norm can be fused
        expected = torch.where(valid > 0, expected, layer.bias.view(-1, 1, 1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_the_map_of_a_3x3_layer():
    layer = make(bias=False)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    plain = F.conv2d(x, layer.weight, padding=1)
    ratio = torch.ones(6, 6, dtype=torch.float64)
    ratio[0], ratio[-1] = 1.5, 1.5
    ratio[:, 0] *= 1.5
    ratio[:, -1] *= 1.5
    torch.testing.assert_close(layer(x), plain * ratio, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x)[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1])


def test_without_padding_it_is_a_plain_convolution_and_folds():
    layer = make(padding=0)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    plain = layer.fold()
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain(x), layer(x))
    for refused in (make(), make(mode='mask', padding=0)):
        with pytest.raises(ValueError, match=r'^PartialConv2d is a plain convolution only in padding mode'):
            refused.fold()


def test_deploy_keeps_the_layer():
    model = nn.Sequential(make(), nn.ReLU()).eval()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    expected = model(x)
    assert type(fold(model)[0]) is PartialConv2d
    assert torch.equal(fold(model)(x), expected)


def test_the_map_is_made_once_per_size_and_never_stale():
    layer = make()
    for size in ((6, 6), (7, 5), (6, 6)):
        x = torch.randn(1, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(layer(x), reference(layer, x, torch.ones(1, 1, *size, dtype=torch.float64))[0])
    assert len(layer._ratios) == 2
    assert layer(torch.randn(1, 4, 6, 6, dtype=torch.float64)).shape == (1, 8, 6, 6)
    assert len(layer._ratios) == 2
    layer.stride = (2, 2)
    assert layer(torch.randn(1, 4, 6, 6, dtype=torch.float64)).shape == (1, 8, 3, 3)
    for size in range(4, 80):
        layer(torch.randn(1, 4, size, 4, dtype=torch.float64))
    assert len(layer._ratios) <= 32
    assert not layer.float()._ratios
    assert layer(torch.randn(1, 4, 6, 6)).dtype == torch.float32


def test_a_map_made_under_inference_mode_serves_training():
    layer = make()
    with torch.inference_mode():
        layer(torch.randn(1, 4, 6, 6, dtype=torch.float64))
    layer(torch.randn(1, 4, 6, 6, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is not None


def holes(channels, size=(7, 6), images=2):
    mask = (torch.rand(images, channels, *size) > 0.4).double()
    mask[0, :, :4, :4] = 0  # windows that see nothing
    return mask


@pytest.mark.parametrize('multi_channel', [True, False])
@pytest.mark.parametrize('case', GEOMETRIES)
def test_mask_mode_equals_the_formula(case, multi_channel):
    layer = make(case, mode='mask', multi_channel=multi_channel, return_mask=True)
    mask, x = holes(4 if multi_channel else 1), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    y, updated = layer(x, mask)
    expected, valid = reference(layer, x, mask)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert updated.shape[1] == (8 if multi_channel else 1)
    torch.testing.assert_close(updated.expand_as(valid), valid)


def test_holes_do_not_matter_and_stay_empty():
    layer = make(mode='mask', return_mask=True)
    mask, x = holes(1), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    y, updated = layer(x, mask)
    assert torch.equal(layer(torch.where(mask > 0, x, 100.0), mask)[0], y)
    assert (updated[0, 0, :3, :3] == 0).all()
    assert (y[0, :, :3, :3] == 0).all()
    assert (y[0, :, 4, 4] != 0).all()


def test_nothing_of_a_mask_is_kept():
    """The released layer would use the mask of one call for the next image of the same size."""
    layer = make(mode='mask')
    x, whole = torch.randn(2, 4, 7, 6, dtype=torch.float64), make()
    whole.load_state_dict(layer.state_dict())
    before = layer(x)
    masked = layer(x, holes(1))
    assert torch.equal(layer(x), before)
    assert not torch.allclose(masked, before)
    torch.testing.assert_close(before, whole(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x, torch.ones(1, 1, 7, 6, dtype=torch.float64)), before)


def test_a_soft_mask_counts_by_its_values():
    layer = make(mode='mask')
    mask, x = torch.rand(2, 1, 7, 6, dtype=torch.float64) * 0.2, torch.randn(2, 4, 7, 6, dtype=torch.float64)
    seen = F.conv2d(mask, torch.ones(1, 1, 3, 3, dtype=torch.float64), padding=1)
    assert (seen < 1).any()
    assert (seen > 1).any()
    expected = (F.conv2d(x * mask, layer.weight, padding=1) * 9 / seen + layer.bias.view(-1, 1, 1)) * seen.clamp(max=1)
    torch.testing.assert_close(layer(x, mask), expected)


def test_gradients():
    layer = make(mode='mask')
    mask, x = holes(1, (4, 4)), torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, mask), x, fast_mode=True)
    padded = make('strided')
    assert torch.autograd.gradcheck(padded, x, fast_mode=True)


@pytest.mark.parametrize('case', GEOMETRIES)
def test_a_norm_fuses_exactly_in_padding_mode(case):
    model = nn.Sequential(make(case), shake_norms(nn.BatchNorm2d(8)).double()).eval()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = model(x)
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert isinstance(fused[1], nn.Identity)
    torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)


def test_efficient_conv_bn_eval_is_exact_in_padding_mode_and_refused_in_mask_mode():
    x = torch.randn(2, 4, 7, 6)
    args = dict(kernel_size=3, padding=1, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    module = ConvModule(4, 8, conv_cfg=dict(type='mmext.PartialConv2d'), **args).eval()
    module.norm.running_mean.normal_()
    torch.testing.assert_close(module(x), module.norm(module.conv(x)).relu(), rtol=1e-5, atol=1e-5)
    module = ConvModule(4, 8, conv_cfg=dict(type='mmext.PartialConv2d', mode='mask'), **args).eval()
    with pytest.raises(RuntimeError, match=r"mode='mask' .*efficient_conv_bn_eval"):
        module(x)


def test_fusing_a_norm_is_refused_in_mask_mode():
    layer = make(mode='mask')
    with pytest.raises(RuntimeError, match=r"^PartialConv2d in mode='mask' zeroes the holes .*leave fuse_conv_bn"):
        fuse_conv_bn(nn.Sequential(layer, shake_norms(nn.BatchNorm2d(8)).double()).eval())
    layer.load_state_dict(make().state_dict(), assign=True)  # which is no fusion
    with pytest.raises(RuntimeError, match=r'1 layers have no plain form, .*depends on a mask'):
        fold(nn.Sequential(layer))


def test_checkpoints_are_those_of_a_plain_layer():
    plain, layer = nn.Conv2d(4, 8, 3, padding=1), make().float()
    layer.load_state_dict(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {'weight', 'bias'}


@pytest.mark.parametrize(
    ('mask', 'why'),
    [((2, 4, 7, 6), '1, H, W'), ((3, 1, 7, 6), 'N or 1'), ((2, 1, 6, 7), r'\(2, 1, 6, 7\)'), ((7, 6), r'\(7, 6\)')],
)
def test_a_mask_that_does_not_fit(mask, why):
    layer = make(mode='mask')
    with pytest.raises(ValueError, match=f'^PartialConv2d needs a mask of shape .*{why}'):
        layer(torch.randn(2, 4, 7, 6, dtype=torch.float64), torch.ones(mask, dtype=torch.float64))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^PartialConv2d needs mode 'padding' or 'mask', got mode='holes'"):
        make(mode='holes')
    with pytest.raises(ValueError, match=r"^PartialConv2d has a mask in mode='mask' only, got .*return_mask=True"):
        make(return_mask=True)
    with pytest.raises(ValueError, match=r"^PartialConv2d counts padding as missing .*'reflect'"):
        make(padding_mode='reflect')
    with pytest.raises(ValueError, match=r"^PartialConv2d got a mask in mode='padding'; build it with mode='mask'"):
        make()(torch.randn(1, 4, 5, 5, dtype=torch.float64), torch.ones(1, 1, 5, 5))


@pytest.mark.parametrize('mode', ['padding', 'mask'])
def test_compiles_traces_and_runs_without_data(mode):
    layer = make(mode=mode).float()
    args = (torch.randn(2, 4, 7, 6), *([holes(1).float()] if mode == 'mask' else []))
    expected = layer(*args)
    clone = copy.deepcopy(layer)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(clone, fullgraph=True, backend='aot_eager')(*args), expected)
    torch.testing.assert_close(torch.jit.trace(clone.eval(), args)(*args), expected)
    meta = [a.to('meta') for a in args]
    assert clone.to('meta')(*meta).shape == expected.shape
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(*args).dtype == torch.bfloat16
    half = layer.bfloat16()(*(a.bfloat16() for a in args))
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('config', CONFIGS, ids=lambda p: p.parent.name)
def test_every_layer_of_the_backbone_that_pads_is_partial(config):
    """As in the authors' PD-ResNet, whose stem is partial, too; layers without padding are partial by name only."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    backbone = ROOT_MODELS.build({**cfg.model.backbone, 'init_cfg': None})
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    padded = [m for m in convs if any(m.padding)]
    assert len(padded) >= 17
    assert all(type(m) is PartialConv2d for m in padded)
    assert convs[0] in padded


def test_a_soft_mask_follows_the_papers_formula_with_a_bias():
    """The released code multiplies the convolution by m' twice in this case."""
    layer = make(mode='mask')
    x, mask = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.full((1, 1, 6, 6), 0.05, dtype=torch.float64)
    y = layer(x, mask)[..., 1:-1, 1:-1]
    n = 9 * 0.05
    expected = n * (F.conv2d(x * mask, layer.weight) * 9 / n + layer.bias.view(-1, 1, 1))
    torch.testing.assert_close(y, expected)
