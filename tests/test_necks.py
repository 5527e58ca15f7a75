"""What every neck promises; a new one is tested by being registered."""

import inspect

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from registered import ARGUMENTS, members
from torch import Tensor, nn

from mmext.export import read_onnx, trace_onnx
from mmext.surgery.channels import fill_channels

NECKS = members('necks')
ODD = ((13, 22), (7, 11), (4, 6), (2, 3), (1, 2))


def build(name):
    return MODELS.build({'type': f'mmext.{name}', **ARGUMENTS[name]})


def widths(name):
    given = ARGUMENTS[name]['in_channels']
    return list(given) if isinstance(given, (tuple, list)) else [given] * getattr(build(name), 'num_outs', 1)


def maps(name, batch=2):
    """Return maps whose sides are odd, and do not all halve exactly."""
    return [torch.randn(batch, width, *size) for width, size in zip(widths(name), ODD, strict=False)]


def flat(outs):
    return [outs] if isinstance(outs, Tensor) else [x for out in outs for x in flat(out)]


@pytest.mark.parametrize('name', NECKS)
def test_images_are_computed_one_by_one_and_any_size_is_taken(name):
    neck, xs = build(name).eval(), maps(name, 3)
    whole = flat(neck(xs))
    alone = flat(neck([x[1:2] for x in xs]))
    for a, b in zip(whole, alone, strict=True):
        assert (a[1:2] - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize('name', NECKS)
def test_every_parameter_learns(name):
    neck = build(name).train()
    sum(out.square().mean() for out in flat(neck(maps(name)))).backward()
    assert not [n for n, p in neck.named_parameters() if p.grad is None]


@pytest.mark.parametrize('name', NECKS)
def test_bfloat16_autocast_comes_near(name):
    neck, xs = build(name).eval(), maps(name)
    with torch.no_grad():
        expected = flat(neck(xs))
        with torch.autocast('cpu', torch.bfloat16):
            got = flat(neck(xs))
    for a, b in zip(got, expected, strict=True):
        assert (a.float() - b).abs().max() <= 0.05 * b.abs().max()


def default_start(name):
    parameter = inspect.signature(MODELS.get(f'mmext.{name}')).parameters.get('init_cfg')
    return parameter is not None and parameter.default is not None


@pytest.mark.parametrize('name', [n for n in NECKS if default_start(n)])
def test_blocks_start_as_init_cfg_says(name):
    """A list of mmengine would let every ConvModule draw its weights anew, after ``init_cfg``."""
    neck = MODELS.build(
        {**ARGUMENTS[name], 'type': f'mmext.{name}', 'init_cfg': dict(type='Constant', layer='Conv2d', val=0.5)}
    )
    neck.init_weights()
    blocks = [m for m in neck.modules() if isinstance(m, ConvModule) and type(m.conv) is nn.Conv2d]
    assert blocks
    assert all((m.conv.weight == 0.5).all() for m in blocks)


class _Maps(nn.Module):
    """A neck as a function of one tensor, from which its maps are cut."""

    def __init__(self, neck, xs):
        super().__init__()
        self.neck, self.shapes = neck, [x.shape for x in xs]

    def forward(self, x):
        parts = x.split([shape[1] * shape[2] * shape[3] for shape in self.shapes], 1)
        return tuple(
            flat(self.neck([part.view(-1, *shape[1:]) for part, shape in zip(parts, self.shapes, strict=True)]))
        )


#: They compute by a Fourier transform, which they say themselves.
NOT_IN_ONNX = {'DFPN'}


@pytest.mark.parametrize('name', [n for n in NECKS if n not in NOT_IN_ONNX])
def test_exports_to_onnx(name, tmp_path):
    pytest.importorskip('onnxruntime')
    xs = maps(name)
    model, x = _Maps(build(name).eval(), xs), torch.cat([x.flatten(1) for x in xs], 1)
    with torch.no_grad():
        expected = model(x)
        trace_onnx(model, x, tmp_path / 'neck.onnx', None)
        for got, want in zip(read_onnx(tmp_path / 'neck.onnx')(x), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', [n for n in NECKS if 'in_channels' in ARGUMENTS[n]])
def test_channels_come_from_the_backbone(name):
    """A neck of one width stands behind a pyramid."""
    neck = dict(ARGUMENTS[name], type=f'mmext.{name}', in_channels='auto')
    count, several = len(widths(name)), not isinstance(ARGUMENTS[name]['in_channels'], int)
    front = dict(type='mmdet.FPN', in_channels='auto', out_channels=16, num_outs=max(count, 2))
    stem = dict(type='mmdet.MobileNetV2', widen_factor=0.1, out_indices=(2, 4, 7)[: max(count, 2)])
    cfg = dict(type='mmdet.RetinaNet', backbone=stem, neck=neck if several else [front, neck])
    filled = fill_channels(cfg)['neck']
    own = filled if several else filled[1]
    assert isinstance(own['in_channels'], int) or all(isinstance(width, int) for width in own['in_channels'])
