"""DFIR-DETR's blocks: normal equations, attention over as many pixels as an image asks for, paths that alternate."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from mmcv.cnn import build_plugin_layer
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmext.blocks.dfir_detr import DCFA, DPSC, FIRC, FIRC3, DynamicAttention, norm_preserving_upsample
from mmext.errors import UsageError
from mmext.export import export


def circular(x, kernel):
    """The convolution with centered kernels, around the edges, written with shifts."""
    half = kernel.shape[-1] // 2
    shifts = [(i, j) for i in range(kernel.shape[-2]) for j in range(kernel.shape[-1])]
    return sum(kernel[:, i, j, None, None] * x.roll((i - half, j - half), (-2, -1)) for i, j in shifts)


def solver(scale=1, size=3, channels=4, **kwargs):
    layer = FIRC(channels, size, scale, **{'padding': 0, **kwargs}).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias, 9)  # a regularization that matters
    return layer


@pytest.mark.parametrize('scale', [1, 2, 3])
@pytest.mark.parametrize('sides', [(6, 8), (7, 5)])
@pytest.mark.parametrize('size', [3, 5])
def test_the_normal_equations_hold(scale, sides, size):
    layer, y = solver(scale, size), torch.randn(2, 4, *sides).double()
    x = layer(y)
    kernel, weight = layer.weight, layer.regularization()
    blurred = circular(x, kernel)
    residual = torch.zeros_like(blurred)
    residual[..., ::scale, ::scale] = blurred[..., ::scale, ::scale] - y
    back = circular(residual, kernel.flip(1, 2))  # the adjoint of a centered convolution
    start = y.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert (back + weight * (x - start)).abs().max() < 1e-12 * max(1, float(x.abs().max()))


@pytest.mark.parametrize('scale', [1, 2])
def test_a_kernel_of_one_tap_finds_where_it_starts(scale):
    layer, y = solver(scale), torch.randn(2, 4, 6, 5).double()
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[:, 1, 1] = 1
    start = y.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert (layer(y) - start).abs().max() < 1e-12


@pytest.mark.parametrize('scale', [1, 2])
@pytest.mark.parametrize('mode', ['replicate', 'circular'])
def test_a_fresh_layer_keeps_a_constant_map_and_its_start_sums_to_one(scale, mode):
    layer = FIRC(4, scale=scale, padding_mode=mode).double()
    torch.testing.assert_close(layer.weight.sum((1, 2)), torch.ones(4).double())
    assert layer.regularization().unique().item() == pytest.approx(1 / (1 + math.exp(9)) + 1e-5, rel=1e-5)
    y = torch.full((1, 4, 6, 5), 3.0).double()
    torch.testing.assert_close(layer(y), torch.full((1, 4, 6 * scale, 5 * scale), 3.0).double())


def test_both_ways_agree_for_maps_of_the_same_size():
    layer, y = solver(), torch.randn(2, 4, 6, 7).double()
    torch.testing.assert_close(layer._larger(y), layer._same_size(y), rtol=1e-9, atol=1e-9)


def test_gradients_of_the_solver():
    layer = solver(2, channels=1)
    y = torch.randn(1, 1, 3, 4).double().requires_grad_()
    parameters = dict(layer.named_parameters())

    def call(y, weight, bias):
        return torch.func.functional_call(layer, dict(weight=weight, bias=bias), y)

    assert torch.autograd.gradcheck(call, (y, parameters['weight'], parameters['bias']))


@pytest.mark.parametrize('sides', [(1, 1), (2, 9), (13, 7)])
def test_any_size_and_half_precision(sides):
    block, x = shake(FIRC3(8, 6), 0.1).eval(), torch.randn(2, 8, *sides)
    with torch.no_grad():
        exact = block(x)
        with torch.autocast('cpu', torch.bfloat16):
            half = block(x)
    assert exact.shape == (2, 6, *sides)
    assert half.isfinite().all()
    assert FIRC(8)(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.2, atol=0.1 * float(exact.abs().max()))


def test_firc3_is_its_equation():
    block, x = shake(FIRC3(4, 6, 2, 0.5), 0.1).eval(), torch.randn(2, 4, 5, 6)
    y = block.enter(x)
    for layer in block.refine:
        y = layer(y)
    torch.testing.assert_close(block(x), block.leave(y + block.beside(x)))
    assert len(block.refine) == 2
    assert isinstance(FIRC3(4, 6).leave, nn.Identity)


def test_the_export_to_onnx_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip('onnxruntime')
    with pytest.raises(RuntimeError, match='ONNX knows no Fourier transform of this form, and FIRC computes by one'):
        export(nn.Sequential(nn.Conv2d(3, 4, 1), FIRC3(4)).eval(), torch.randn(2, 3, 8, 8), tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())
    assert export(FIRC3(4).eval(), torch.randn(2, 4, 8, 8), tmp_path / 'net.pt', 'torchscript') < 1e-4
    assert issubclass(UsageError, ValueError)


def attention(min_keep=0.05, heads=1):
    norm = dict(type='GN', num_groups=1)
    return shake(DynamicAttention(8, heads, min_keep, norm, dict(type='SiLU')).double(), 0.3)


def plain(layer, x, kept=None):
    """Attention in loops over the images, heads and rows."""
    normed = layer.norm(x)
    parts = [f(normed).flatten(2).chunk(layer.num_heads, 1) for f in (layer.query, layer.key, layer.value)]
    found = []
    for image in range(len(x)):
        heads = []
        for q, k, v in zip(*parts, strict=True):
            logits = q[image].T @ k[image] / math.sqrt(len(q[image]))
            for row in logits:
                row[row.argsort(descending=True)[None if kept is None else kept[image] :]] = -math.inf
            heads.append(v[image] @ logits.softmax(1).T)
        found.append(torch.cat(heads))
    return layer.project(torch.stack(found).view_as(x))


@torch.no_grad()
@pytest.mark.parametrize('heads', [1, 2])
def test_attention_that_keeps_all_is_plain_attention(heads):
    layer, x = attention(1.0, heads), torch.randn(2, 8, 4, 5).double()
    normed = layer.norm(x)
    q, k, v = (f(normed).flatten(2).unflatten(1, (heads, -1)).mT for f in (layer.query, layer.key, layer.value))
    expected = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
    torch.testing.assert_close(layer(x), layer.project(expected))


@torch.no_grad()
def test_each_image_keeps_its_own_number():
    layer, x = attention(heads=2), torch.randn(3, 8, 4, 5).double() * torch.tensor([0.2, 1, 5])[:, None, None, None]
    layer.norm = nn.Identity()  # so that the images differ by more than noise
    nn.init.normal_(layer.count[0].conv.weight, std=0.5)
    kept = layer.kept(layer.share(x), 20).flatten().tolist()
    assert len(set(kept)) > 1
    torch.testing.assert_close(layer(x), plain(layer, x, kept))
    for i, image in enumerate(x):
        torch.testing.assert_close(layer(image[None])[0], layer(x)[i])  # whatever else is in the batch


def test_the_count_learns_and_does_not_change_the_value():
    layer, x = attention(), torch.randn(2, 8, 4, 5).double()
    out = layer(x)
    out.square().mean().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer.count[1].weight.grad.abs().sum() > 0
    share = layer.share(layer.norm(x))
    assert torch.equal(share / share.detach(), torch.ones_like(share))
    assert layer.kept(torch.full((1, 1, 1, 1), 1e-9), 20) == 1
    assert layer.kept(torch.ones(1, 1, 1, 1), 20) == 20


def test_upsampling_keeps_the_norm():
    x = torch.randn(2, 3, 5, 7).double()
    assert norm_preserving_upsample(x, (10, 14)).abs().sum() == pytest.approx(float(x.abs().sum()))
    assert torch.equal(norm_preserving_upsample(x, (5, 7)), x)
    ones = torch.ones(1, 1, 4, 4)
    assert norm_preserving_upsample(ones, (7, 9)).sum() == pytest.approx(16)


def test_the_two_paths_alternate():
    layer, x = DPSC(8, dict(type='BN'), dict(type='SiLU')).eval(), torch.randn(2, 8, 5, 6)
    out, first = layer(x), layer.first(x)
    assert torch.equal(out[:, ::2], first)
    assert torch.equal(out[:, 1::2], layer.second(first))


def test_dcfa_passes_half_beside_its_blocks():
    block, x = shake(DCFA(8, 12, 2), 0.1).eval(), torch.randn(2, 8, 5, 6)
    beside, first = block.enter(x).chunk(2, 1)
    second = block.blocks[0](first)
    parts = (beside, first, second, block.blocks[1](second))
    torch.testing.assert_close(block(x), block.leave(torch.cat(parts, 1)))


def test_dcfa_exports_and_computes_in_half_precision(tmp_path):
    net, x = nn.Sequential(nn.Conv2d(3, 8, 1), shake(DCFA(8, 8, 1), 0.1)).eval(), torch.randn(2, 3, 6, 7)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert net(x).isfinite().all()
    pytest.importorskip('onnxruntime')
    assert export(net, x, tmp_path / 'net.onnx') < 1e-4


def test_stands_in_a_stock_residual_network():
    assert build_plugin_layer(dict(type='mmext.DCFA'), in_channels=8)[0] == 'dcfa'
    assert build_plugin_layer(dict(type='mmext.FIRC3'), in_channels=8)[0] == 'firc3'
    init_default_scope('mmdet')
    rule = dict(layer='BasicBlock', match=r'layer4\.1$', to=dict(type='mmext.DCFA'))
    stock = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    net = MODELS.build(dict(type='mmext.swap_layers', model=stock, rules=[rule]))
    assert isinstance(net.layer4[1], DCFA)
    assert net(torch.randn(1, 3, 64, 33))[-1].shape == (1, 64, 2, 2)
    rule['match'] = r'layer4\.0$'
    with pytest.raises(ValueError, match=r'layer4\.0, because .*its shortcut is a convolution'):
        MODELS.build(dict(type='mmext.swap_layers', model=stock, rules=[rule]))


def test_heads_that_do_not_fit():
    with pytest.raises(ValueError, match='DCFA needs num_heads that divide 4, the channels inside, got num_heads=3'):
        DCFA(8, num_heads=3)
