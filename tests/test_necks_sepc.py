"""SEPC: the pyramid convolution against its equation, integrated batch norm, deformable taps, and real detectors."""

import copy
import sys
from pathlib import Path

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torchvision.ops import deform_conv2d

from mmext.necks.sepc import SEPC, PConv, PConvNeck, ScaleEqualizingConv2d, integrated_norm

VARIANTS = {
    'pconv': ({}, 8_261_120),
    'ibn': ({'ibn': True}, 8_264_192),
    'lite': ({'ibn': True, 'lcconv_deform': True}, 8_347_172),
    'full': ({'ibn': True, 'lcconv_deform': True, 'pconv_deform': True}, 8_845_052),
}
FULL = VARIANTS['full'][0]
CONFIGS = Path(__file__).parents[1] / 'configs/sepc/det'


def pyramid(sizes=((13, 9), (7, 5), (4, 3), (2, 2), (1, 1)), channels=8, batch=2, dtype=torch.float32):
    return [torch.randn(batch, channels, *size, dtype=dtype) for size in sizes]


def randomise(module):
    """Give every parameter and statistic a value at which nothing cancels."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.1)
    return module


def flat(pairs):
    return [x for pair in pairs for x in pair]


def assert_levels_equal(got, want, **tolerance):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_neck_has_as_many_parameters_as_the_official_one(variant):
    kwargs, count = VARIANTS[variant]
    assert sum(p.numel() for p in SEPC(**kwargs).parameters()) == count


def test_state_dict_names_are_the_official_ones():
    norm = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    conv = ['weight', 'bias', 'conv_offset.weight', 'conv_offset.bias']
    want = {f'{name}.{key}' for name in ('lconv', 'cconv') for key in conv}
    want |= {f'{name}.{key}' for name in ('lbn', 'cbn') for key in norm}
    want |= {f'Pconvs.{t}.Pconv.{i}.{key}' for t in range(4) for i in range(3) for key in conv}
    want |= {f'Pconvs.{t}.bn.{key}' for t in range(4) for key in norm}
    assert set(SEPC(8, 8, **FULL).state_dict()) == want


def test_pconv_is_its_equation():
    pconv = randomise(PConv(3, 4)).double()
    coarse, same, fine = pconv.Pconv
    xs = pyramid(((11, 6), (6, 3), (3, 2)), channels=3, dtype=torch.float64)
    for level, z in enumerate(pconv(xs)):
        y = F.conv2d(xs[level], same.weight, same.bias, padding=1)
        if level > 0:
            y = y + F.conv2d(xs[level - 1], fine.weight, fine.bias, stride=2, padding=1)
        if level < 2:
            up = F.conv2d(xs[level + 1], coarse.weight, coarse.bias, padding=1)
            y = y + F.interpolate(up, y.shape[-2:], mode='bilinear', align_corners=True)
        torch.testing.assert_close(z, y.relu())


def test_pconv_of_one_level_is_a_convolution_and_needs_no_neighbors():
    pconv = randomise(PConv(8, 8, deform=True))
    (x,) = pyramid(((5, 7),))
    assert torch.equal(pconv([x])[0], F.conv2d(x, pconv.Pconv[1].weight, pconv.Pconv[1].bias, padding=1).relu())


def test_without_its_neighbor_taps_a_level_ignores_the_other_levels():
    pconv = randomise(PConv(8, 8))
    for i in (0, 2):
        nn.init.zeros_(pconv.Pconv[i].weight)
    xs = pyramid()
    others = [x if level == 2 else torch.randn_like(x) for level, x in enumerate(xs)]
    assert torch.equal(pconv(xs)[2], pconv(others)[2])


def test_levels_that_are_not_halves_are_resized_not_refused():
    xs = pyramid(((9, 9), (4, 4), (2, 2)))
    assert [z.shape for z in randomise(PConv(8, 8))(xs)] == [x.shape for x in xs]


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(8), nn.SyncBatchNorm(8)], ids=['BN', 'SyncBN'])
def test_integrated_norm_trains_on_all_pixels_together(norm):
    xs = [x * (1 + level) + level for level, x in enumerate(pyramid(dtype=torch.float64))]
    norm = norm.double().train()
    pixels = torch.cat([x.transpose(0, 1).flatten(1) for x in xs], dim=1)
    mean, var = pixels.mean(1), pixels.var(1, unbiased=False)
    want = [(x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt() for x in xs]
    got = integrated_norm(norm, xs)
    assert_levels_equal(got, want)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    assert not torch.allclose(got[0], nn.BatchNorm2d(8).double()(xs[0]))


def test_integrated_norm_in_eval_mode_is_the_norm_of_each_level_and_concatenates_nothing(monkeypatch):
    norm, xs = randomise(nn.BatchNorm2d(8)).eval(), pyramid()
    joint = norm(torch.cat([x.flatten(2) for x in xs], dim=2).unsqueeze(2)).squeeze(2)
    want = [part.view_as(x) for part, x in zip(joint.split([x[0, 0].numel() for x in xs], dim=2), xs, strict=True)]
    monkeypatch.setattr(torch, 'cat', lambda *_, **__: pytest.fail('concatenated'))
    assert_levels_equal(integrated_norm(norm, xs), want)


@pytest.mark.parametrize('norm', [nn.GroupNorm(2, 8), nn.BatchNorm2d(8, track_running_stats=False)], ids=['GN', 'BN'])
def test_a_norm_without_running_statistics_stays_integrated_in_eval_mode(norm):
    xs = [x * (1 + level) for level, x in enumerate(pyramid())]
    trained = integrated_norm(norm, xs)
    assert_levels_equal(integrated_norm(norm.eval(), xs), trained)
    assert not torch.allclose(trained[0], norm(xs[0]))


def test_norm_cfg_replaces_the_plain_batch_norm():
    neck = SEPC(8, 8, ibn=True, norm_cfg={'type': 'GN', 'num_groups': 2})
    assert sum(isinstance(m, nn.GroupNorm) for m in neck.modules()) == 6
    neck(pyramid())


def test_with_zero_offsets_the_full_variant_is_the_ibn_variant():
    full, ibn = SEPC(8, 8, **FULL), SEPC(8, 8, ibn=True)
    state = {k: v for k, v in full.state_dict().items() if 'conv_offset' not in k}
    ibn.load_state_dict(state)
    xs = pyramid()
    assert_levels_equal(flat(full(xs)), flat(ibn(xs)))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(9, 6), (5, 1), (1, 1), (2, 2)])
def test_the_deformable_mode_equals_torchvisions(stride, size):
    conv = randomise(ScaleEqualizingConv2d(6, 4, stride, deform=True)).double()
    nn.init.normal_(conv.conv_offset.bias, std=1.5)
    x = torch.randn(3, 6, *size, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    want = deform_conv2d(x.contiguous(), conv.conv_offset(x), conv.weight, conv.bias, stride, 1)
    got = conv(x, level=1)
    assert got.shape == conv(x, level=0).shape
    torch.testing.assert_close(got, want)
    tensors = [x, *conv.parameters()]
    grads = [torch.autograd.grad(out.sin().sum(), tensors, retain_graph=True) for out in (got, want)]
    assert_levels_equal(*grads)


def test_the_deformable_mode_takes_any_batch_size():
    conv = randomise(ScaleEqualizingConv2d(2, 2, deform=True))
    x = torch.randn(33, 2, 4, 4)
    torch.testing.assert_close(conv(x, level=1)[-1:], conv(x[-1:], level=1))


def test_the_bottom_level_is_never_deformed(monkeypatch):
    sizes = []
    real = mmcv.ops.deform_conv2d

    def spy(x, offset, *args):
        sizes.append(offset.shape[-1])
        return real(x, offset, *args)

    monkeypatch.setattr(mmcv.ops, 'deform_conv2d', spy)
    neck = SEPC(8, 8, num_outs=3, num_pconvs=1, **FULL)
    neck(pyramid(((16, 16), (8, 8), (4, 4))))
    # k_0 on two levels; k_+1 from level 2 for level 1, at the size of level 2; k_-1 on two; each task on two.
    assert sorted(sizes) == [4, 4, 4, 4, 4, 8, 8, 8, 8]


def test_bfloat16_autocast_runs_the_deformable_layers():
    neck, xs = randomise(SEPC(8, 8, **FULL)), pyramid()
    want = flat(neck.eval()(xs))
    with torch.autocast('cpu', torch.bfloat16):
        got = flat(neck(xs))
    assert_levels_equal([x.float() for x in got], want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(('padding', 'shrink'), [(1, 0), (0, 2)])
@pytest.mark.parametrize('deform', [False, True])
def test_output_sizes(padding, shrink, deform):
    xs = pyramid(((25, 18), (13, 9), (7, 5), (4, 3), (3, 3)))
    out = SEPC(8, 6, lc_padding=padding, pconv_deform=deform, lcconv_deform=deform)(xs)
    want = [(2, 6, x.shape[2] - shrink, x.shape[3] - shrink) for x in xs]
    assert [(cls.shape, reg.shape) for cls, reg in out] == [(shape, shape) for shape in want]


def test_the_pair_is_cls_then_reg():
    neck = randomise(SEPC(8, 8))
    nn.init.zeros_(neck.cconv.weight)
    nn.init.zeros_(neck.cconv.bias)
    for cls, reg in neck(pyramid()):
        assert not cls.any()
        assert reg.any()


def test_pconv_neck_gives_the_maps_before_the_task_convolutions():
    sepc, plain = randomise(SEPC(8, 8)), PConvNeck(8, 8)
    plain.load_state_dict(sepc.state_dict(), strict=False)
    xs = pyramid()
    maps = plain(xs)
    assert [z.shape for z in maps] == [x.shape for x in xs]
    assert_levels_equal(
        [F.conv2d(z, sepc.cconv.weight, sepc.cconv.bias, padding=1).relu() for z in maps], [cls for cls, _ in sepc(xs)]
    )


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('merge', [fuse_conv_bn, lambda neck: neck.fold()], ids=['fuse_conv_bn', 'fold'])
def test_merging_the_norms_changes_nothing(variant, merge):
    neck = randomise(SEPC(8, 8, **VARIANTS[variant][0])).double().eval()
    xs = pyramid(dtype=torch.float64)
    want = flat(neck(xs))
    assert_levels_equal(flat(merge(copy.deepcopy(neck))(xs)), want)


def test_fold_leaves_no_norm_and_the_original_alone():
    neck = randomise(SEPC(8, 8, **FULL)).eval()
    before = copy.deepcopy(neck.state_dict())
    folded = neck.fold()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not folded.training
    assert all(torch.equal(v, before[k]) for k, v in neck.state_dict().items())


def test_a_host_keeps_the_initialization():
    fpn = {'type': 'mmdet.FPN', 'in_channels': [8, 8, 8], 'out_channels': 8, 'num_outs': 5}
    neck = MODELS.build([fpn, {'type': 'mmext.SEPC', 'in_channels': 8, 'out_channels': 8, **FULL}])
    randomise(neck[1])
    neck.init_weights()
    for name, p in neck[1].named_parameters():
        if 'conv_offset' in name or ('bn' not in name and name.endswith('bias')):
            assert not p.any(), name
        elif 'bn' not in name:
            assert 0.008 < p.std() < 0.012, name


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_shipped_configs_build_the_variants(variant):
    cfg = Config.fromfile(CONFIGS / f'retinanet_r50_fpn_sepc-{variant}_1x_coco.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.neck[1].parameters()) == VARIANTS[variant][1]
    assert list(model.bbox_head.state_dict()) == [f'retina_{n}.{p}' for n in ('cls', 'reg') for p in ('weight', 'bias')]


def test_missing_operators_are_reported_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    SEPC(8, 8, ibn=True)
    with pytest.raises(ImportError, match='MMCV_WITH_OPS=1'):
        SEPC(8, 8, lcconv_deform=True)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'in_channels': [8, 8, 16]}, r'one width, got in_channels=\[8, 8, 16\]; put an FPN in front'),
        ({'lc_padding': 2}, 'lc_padding 1, or 0 for the official weights, got lc_padding=2'),
        ({'num_pconvs': 0}, 'num_pconvs of 1 or more, got num_pconvs=0'),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SEPC(**kwargs)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match='num_outs=5 levels and got 3; set num_outs'):
        SEPC(8, 8)(pyramid()[:3])
    with pytest.raises(ValueError, match=r'3 x 3 or more, got .*\(2, 2\), \(1, 1\)\]; enlarge the images'):
        SEPC(8, 8, lc_padding=0)(pyramid())
