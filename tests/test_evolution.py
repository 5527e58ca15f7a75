"""What every operator of the evolution family promises; a new one is tested by being registered."""

import copy

import pytest
import torch
from conv_layers import OPERATORS, image, make, own_arguments, shake, shaken
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import nn

from mmext.convs.base import ForeignWeightError
from mmext.evolution.kernels import DenseKernel, ImageKernel, SplitKernel, TapKernel, tap_softmax
from mmext.evolution.positions import Positions
from mmext.export import export_onnx
from mmext.registry import MODELS
from mmext.surgery import swap_layers

#: Geometries of a 3 x 3 layer, and what they change, in the words of ``refuses``.
GEOMETRIES = {
    'same': (dict(padding=1), ()),
    'dilated': (dict(padding=2, dilation=2), ('dilation',)),
    'strided': (dict(padding=1, stride=2), ('stride',)),
    'strided and dilated': (dict(padding=2, stride=2, dilation=2), ('stride', 'dilation')),
    'without padding': (dict(padding=0), ('other padding',)),
    'with more padding': (dict(padding=(3, 2), stride=(1, 3)), ('stride', 'other padding')),
    'even': (dict(kernel_size=4, padding='same'), ('even kernels',)),
    'depthwise place': (dict(padding=1, groups=8), ()),
    'reflect': (dict(padding=1, padding_mode='reflect'), ('padding modes',)),
    'replicate': (dict(padding=2, dilation=2, padding_mode='replicate'), ('dilation', 'padding modes')),
    'circular': (dict(padding=1, padding_mode='circular'), ('padding modes',)),
}
#: What no window that slides inside of the image has.
NO_SLIDE = {'stride', 'other padding', 'even kernels', 'padding modes'}


def fits(name, geometry):
    """Whether an operator has a kernel for a geometry, by what its class says."""
    operator = MODELS.get(name)
    refused = {*operator.refuses, *(NO_SLIDE if operator.border == 'shift' else ())}
    return not refused & set(GEOMETRIES[geometry][1])


CASES = [(name, geometry) for name in OPERATORS for geometry in GEOMETRIES if fits(name, geometry)]


REFUSED = [(name, geometry) for name in OPERATORS for geometry in GEOMETRIES if not fits(name, geometry)]


@pytest.mark.parametrize(('name', 'geometry'), REFUSED)
def test_a_geometry_without_a_kernel_is_refused_in_one_sentence(name, geometry):
    with pytest.raises(ValueError, match=rf'^{name} .*needs .*got [^\n]*$'):
        make(name, **GEOMETRIES[geometry][0])


def prepared(name, **geometry):
    """Return an operator away from its start, in eval mode and float64."""
    return shaken(name, **geometry).double().eval()


@pytest.mark.parametrize(('name', 'geometry'), CASES)
def test_fast_path_is_the_definition(name, geometry):
    layer = prepared(name, **GEOMETRIES[geometry][0])
    for batch, size in ((2, (18, 18)), (1, (18, 18)), (0, (18, 18))):
        x = torch.randn(batch, 8, *size, dtype=torch.float64)
        with torch.no_grad():
            y, expected = layer(x), layer.by_definition(x)
        assert y.shape == expected.shape
        assert batch == 0 or float((y - expected).abs().max()) < 1e-10 * max(1, float(expected.abs().max()))


@pytest.mark.parametrize('name', [n for n in OPERATORS if 'other sizes' not in MODELS.get(n).refuses])
def test_odd_sizes(name):
    geometry = dict(padding=1) if MODELS.get(name).border == 'shift' else dict(padding=1, stride=2)
    layer = prepared(name, **geometry)
    for size in ((7, 7), (8, 9), (9, 13)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        with torch.no_grad():
            y, expected = layer(x), layer.by_definition(x)
        assert y.shape[2:] == tuple(-(-s // n) for s, n in zip(size, layer.stride, strict=True))
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', OPERATORS)
def test_flags_are_properties_of_the_dense_kernel(name):
    layer = prepared(name, padding=1)
    x, other = image(dtype=torch.float64), image(dtype=torch.float64)
    with torch.no_grad():
        kernel, changed = (layer.dense_kernel(each).kernel for each in (x, other))
    assert layer.spatial_specific == (not torch.allclose(kernel, kernel[:, :1].expand_as(kernel)))
    assert layer.dynamic == (not torch.allclose(kernel, changed))
    of_channels = kernel.diagonal(dim1=-2, dim2=-1).flatten(0, 2).T
    different = len(torch.unique((of_channels * 1e6).round(), dim=0))
    assert layer.channel_specific == (different == len(of_channels))
    assert layer.mixes_channels or not (kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1))).any()


@pytest.mark.parametrize('name', OPERATORS)
def test_linear_in_the_input_only_where_it_is_static(name):
    layer = prepared(name, padding=1, bias=False)
    if layer.dynamic:
        kernel = layer.evolution_kernel(image(dtype=torch.float64))
        x = layer.features(image(dtype=torch.float64))
        torch.testing.assert_close(kernel.aggregate(2 * x), 2 * kernel.aggregate(x))
    else:
        x, other = image(dtype=torch.float64), image(dtype=torch.float64)
        torch.testing.assert_close(layer(x + 2 * other), layer(x) + 2 * layer(other))


@pytest.mark.parametrize('name', OPERATORS)
def test_gradients(name):
    layer = prepared(name, padding=1)
    x = torch.randn(1, 8, 18, 18, dtype=torch.float64, requires_grad=True)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    fast = torch.autograd.grad(layer(x).square().sum(), [x, *parameters])
    slow = torch.autograd.grad(layer.by_definition(x).square().sum(), [x, *parameters])
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


@pytest.mark.parametrize('name', OPERATORS)
def test_images_of_a_batch_do_not_see_each_other(name):
    layer, x = prepared(name, padding=1), image(batch=3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.cat([layer(one[None]) for one in x]))


@pytest.mark.parametrize('name', OPERATORS)
def test_autocast(name):
    layer, x = shaken(name, padding=1).eval(), image(batch=2)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            y = layer(x)
    assert float((y.float() - expected).abs().max()) < 0.05 * float(expected.abs().max())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        layer.train()(x).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('name', OPERATORS)
def test_it_is_one_graph_for_the_compiler(name):
    torch.compiler.reset()
    layer, x = shaken(name, padding=1).eval(), image(batch=2)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='eager')(x), layer(x))


class Host(BaseModule):
    """A host that draws every convolution and every norm anew, as a detector's head does."""

    def __init__(self, conv_cfg):
        super().__init__(init_cfg=dict(type='Normal', layer=['Conv2d', 'Linear'], std=100.0))
        self.blocks = nn.ModuleList([ConvModule(8, 8, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=dict(type='BN'))])


@pytest.mark.parametrize('name', OPERATORS)
def test_start_survives_the_hosts(name):
    host = Host(dict(type=f'mmext.{name}', **own_arguments(name)))
    host.init_weights()
    assert all(float(p.detach().abs().max()) < 20 for p in host.parameters())


@pytest.mark.parametrize('name', OPERATORS)
def test_surgery_puts_it_into_a_model(name):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    swapped = swap_layers(net, [dict(kernel_size=3, to=dict(type=f'mmext.{name}', **own_arguments(name)))])
    assert type(swapped[1]) is MODELS.get(name)
    assert swapped(torch.randn(2, 3, 18, 18)).shape == (2, 8, 18, 18)


@pytest.mark.parametrize('name', [n for n in OPERATORS if MODELS.get(n).refuses_weight])
def test_no_norm_is_fused_into_it(name):
    layer = make(name)
    with pytest.raises(ForeignWeightError, match='fuse_conv_bn'):
        _ = layer.weight * 2


@pytest.mark.parametrize('name', OPERATORS)
def test_onnx(name, tmp_path):
    pytest.importorskip('onnxruntime')
    layer = shaken(name, padding=1).eval()
    assert export_onnx(layer, image(batch=2), tmp_path / 'layer.onnx') < 1e-4


@pytest.mark.parametrize('name', [n for n in OPERATORS if not MODELS.get(n).mixes_channels])
def test_channels_that_differ_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} mixes no channels.*in_channels=8 and out_channels=16'):
        make(name, out_channels=16)


@pytest.mark.parametrize('name', OPERATORS)
def test_an_image_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match=rf'{name} needs images \(B, 8, H, W\), got \[1, 4, 18, 18\]'):
        make(name)(torch.randn(1, 4, 18, 18))


@pytest.mark.parametrize('name', [n for n in OPERATORS if make(n).loads_kernel])
@pytest.mark.parametrize('bias', [True, False])
def test_a_plain_layer_is_the_start(name, bias):
    """By a checkpoint and by surgery; what was trained stays when it is loaded."""
    plain = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
    x = image(batch=2)
    layer = make(name, padding=1, bias=bias)
    nn.Sequential(layer).load_state_dict(nn.Sequential(plain).state_dict())
    swapped = swap_layers(nn.Sequential(plain), [dict(to=dict(type=f'mmext.{name}', **own_arguments(name)))])[0]
    assert type(swapped) is type(layer)
    for start in (layer, swapped):
        torch.testing.assert_close(start.eval()(x), plain(x), rtol=1e-4, atol=1e-5)
    shake(layer)
    before = layer(x)
    layer.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), before)


# --- the forms of kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('group_map', ['block', 'interleave'])
@pytest.mark.parametrize('border', ['zero', 'shift', 'reflect', 'replicate', 'circular'])
def test_weights_of_taps(border, group_map):
    for dilation, batch in (((1, 1), 1), ((2, 1), 3)):
        positions = Positions((3, 5), dilation=dilation, border=border, group_map=group_map)
        x = torch.randn(3, 8, 7, 9, dtype=torch.float64)
        kernel = TapKernel(weight=torch.randn(batch, 2 * 15, 7, 9, dtype=torch.float64), positions=positions)
        torch.testing.assert_close(kernel.aggregate(x), kernel.dense(x).aggregate(x))


def test_parts_of_the_channels():
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    parts = [
        TapKernel(
            weight=torch.randn(2, 2 * k * k, 7, 9, dtype=torch.float64), positions=Positions((k, k), border='shift')
        )
        for k in (3, 5)
    ]
    kernel = SplitKernel(parts=parts, channels=(2, 4))
    torch.testing.assert_close(kernel.aggregate(x), kernel.dense(x).aggregate(x))


def test_a_one_hot_kernel_is_the_identity():
    x = torch.randn(2, 8, 7, 9)
    for stride in (1, 2):
        positions = Positions((3, 3), stride=(stride, stride), padding=(1, 1))
        weight = torch.zeros(1, 4, 9, *positions.output_size((7, 9)))
        weight[:, :, 4] = 1
        assert torch.equal(TapKernel(weight=weight, positions=positions).aggregate(x), x[:, :, ::stride, ::stride])


def test_the_softmax_gives_no_weight_to_what_lies_outside():
    positions = Positions((3, 3), padding=(2, 2))
    weight = tap_softmax(torch.randn(2, 4, 9, 9, 11).half(), positions, (7, 9))
    assert weight.dtype == torch.float16
    torch.testing.assert_close(weight.float().sum(2), torch.ones(2, 4, 9, 11), rtol=0, atol=4e-3)
    seen = positions.table((7, 9)).view(9, 11, 9).movedim(2, 0) >= 0
    outside = ~seen & seen.any(0)
    assert outside.any()
    assert not weight[:, :, outside].any()


def test_the_centers_of_windows():
    x = torch.arange(35.0).view(1, 1, 5, 7)
    assert torch.equal(Positions((3, 3), padding=(1, 1)).centers(x), x)
    assert torch.equal(Positions((3, 3), padding=(0, 0)).centers(x), x[:, :, 1:-1, 1:-1])
    pooled = Positions((3, 3), stride=(2, 2), padding=(1, 1)).centers(x)
    assert pooled.shape == (1, 1, 3, 4)
    assert pooled[0, 0, 2, 3] == x[0, 0, 4, 6]
    assert torch.equal(Positions((3, 3), stride=(2, 2), padding=(1, 1)).centers(x, pool=False), x[:, :, ::2, ::2])


def test_one_kernel_for_each_image():
    x, weight = torch.randn(3, 4, 7, 9, dtype=torch.float64), torch.randn(3, 6, 2, 3, 3, dtype=torch.float64)
    kernel = ImageKernel(weight=weight, positions=Positions((3, 3), (2, 1), padding=(1, 0)), groups=2)
    expected = [nn.functional.conv2d(a[None], w, None, (2, 1), (1, 0), 1, 2) for a, w in zip(x, weight, strict=True)]
    torch.testing.assert_close(kernel.aggregate(x), torch.cat(expected))
    assert isinstance(kernel.dense(x), DenseKernel)


def test_copies_compute_the_same():
    for name in OPERATORS:
        layer = prepared(name)
        x = image(dtype=torch.float64)
        other = make(name).double().eval()
        other.load_state_dict(layer.state_dict())
        with torch.no_grad():
            assert torch.equal(other(x), layer(x))
            assert torch.equal(copy.deepcopy(layer)(x), layer(x))
