"""CARAFE: the sum of the paper in loops, mmcv's weights, and mmdet's own pyramid with it."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops.carafe import CARAFEPack
from mmengine.registry import init_default_scope
from torch import nn

from mmext.blocks.carafe import CARAFE
from mmext.registry import MODELS
from mmext.takeover import distance, verdict

NECK = dict(
    type='mmext.swap_layers',
    model='mmdet.FPN_CARAFE',
    in_channels=[4, 8],
    out_channels=8,
    num_outs=3,
    rules=[dict(layer='CARAFEPack', to=dict(type='mmext.CARAFE'))],
)


def by_loops(layer, x):
    """Return the sum of the paper over each new pixel, with the kernels that mmcv's layer would make."""
    scale, size = layer.scale_factor, layer.up_kernel
    with torch.no_grad():
        kernels = F.pixel_shuffle(layer.content_encoder(layer.channel_compressor(x)), scale)
    kernels = kernels.unflatten(1, (layer.up_group, size**2)).softmax(2)
    around = F.pad(x, [size // 2] * 4)
    out = x.new_zeros(*x.shape[:2], x.shape[2] * scale, x.shape[3] * scale)
    wide = x.shape[1] // layer.up_group
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            window = around[:, :, i // scale : i // scale + size, j // scale : j // scale + size].flatten(2)
            for c in range(x.shape[1]):
                out[:, c, i, j] = (window[:, c] * kernels[:, c // wide, :, i, j]).sum(1)
    return out


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(scale_factor=3, up_kernel=3, up_group=2),
        dict(up_group=4, encoder_kernel=5, encoder_dilation=2, compressed_channels=3),
        dict(scale_factor=1, up_kernel=1, encoder_kernel=1),
    ],
)
@pytest.mark.parametrize('size', [(4, 5), (1, 3)])
def test_it_is_the_sum_of_the_paper(kwargs, size):
    layer = CARAFE(4, **kwargs).double()
    nn.init.normal_(layer.content_encoder.weight)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_loops(layer, x))


def test_weights_are_those_of_mmcv_and_the_start_is_a_mean():
    theirs, ours = CARAFEPack(8, 2, up_group=2), CARAFE(8, up_group=2)
    ours.load_state_dict(theirs.state_dict())
    assert ours.arguments_from(theirs) == dict(
        channels=8,
        scale_factor=2,
        up_kernel=5,
        up_group=2,
        encoder_kernel=3,
        encoder_dilation=1,
        compressed_channels=64,
    )
    x = torch.randn(1, 8, 6, 6)
    mean = F.interpolate(F.avg_pool2d(x, 5, 1, 2), scale_factor=2)
    assert (ours(x) - mean).abs().max() < 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason='mmcv may have an operator for what is here')
def test_what_does_not_run_here_is_not_called_lost():
    theirs = CARAFEPack(8, 2)
    assert verdict(distance(theirs, CARAFE(8))) == 'the same tensors (the old layer does not run here)'
    assert verdict(distance(theirs, CARAFE(8, up_kernel=3))) == 'none'
    assert verdict(distance(theirs, nn.Identity())) == 'none'


def test_mmdets_pyramid_runs_with_it_and_keeps_its_keys_and_its_start():
    init_default_scope('mmdet')
    neck = MODELS.build(NECK)
    plain = {k: v for k, v in NECK.items() if k not in ('model', 'rules')}
    assert list(neck.state_dict()) == list(MODELS.build({**plain, 'type': 'mmdet.FPN_CARAFE'}).state_dict())
    neck.init_weights()
    assert neck.upsample_modules[0].content_encoder.weight.std() < 0.002
    outs = neck([torch.randn(1, 4, 9, 13), torch.randn(1, 8, 5, 7)])
    assert [tuple(y.shape[2:]) for y in outs] == [(9, 13), (5, 7), (3, 4)]
    sum(y.square().sum() for y in outs).backward()
    assert all(p.grad is not None for p in neck.parameters())


def test_half_precision():
    layer = CARAFE(4)
    x = torch.randn(1, 4, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        half = layer(x)
    assert (half - layer(x)).abs().max() < 0.05


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(up_kernel=4), 'odd kernels'),
        (dict(encoder_kernel=2), 'odd kernels'),
        (dict(up_group=3), 'divides the channels'),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        CARAFE(8, **kwargs)
