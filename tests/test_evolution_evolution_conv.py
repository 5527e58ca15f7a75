"""The functions of the paper are the stock operators, to rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext.evolution import EvolutionConv2d, SelfAttention2d, TokenMixing2d
from mmext.evolution.positions import Positions

pytestmark = pytest.mark.usefixtures('double_precision')
EXACT = dict(rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('arguments', [{}, dict(groups=2), dict(groups=8), dict(stride=2, dilation=2, bias=False)])
def test_static_is_the_plain_convolution(arguments):
    plain = nn.Conv2d(8, 8, 3, padding=2, **arguments)
    layer = EvolutionConv2d(8, 8, 3, padding=2, **arguments)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(layer(x), plain(x), **EXACT)
    torch.testing.assert_close(layer.function.fold()(x), plain(x), **EXACT)


def test_a_pointwise_kernel_is_a_linear_layer_over_the_channels():
    layer, linear = EvolutionConv2d(8, 16, 1), nn.Linear(8, 16)
    layer.load_state_dict(dict(weight=linear.weight[:, :, None, None], bias=linear.bias))
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(layer(x).movedim(1, -1), linear(x.movedim(1, -1)), **EXACT)


@pytest.mark.parametrize('stride', [1, 2])
def test_involution_is_its_formula(stride):
    function = dict(type='involution', reduction=2, group_channels=4)
    layer = EvolutionConv2d(8, 8, 3, stride=stride, padding=1, bias=False, function=function).eval()
    part = layer.function
    for size in ((8, 6), (7, 8), (9, 7)):
        x = torch.randn(2, 8, *size)
        pooled = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
        weight = part.span(F.relu(part.reduce.norm(part.reduce.conv(pooled))))
        rows, columns = weight.shape[2:]
        assert (rows, columns) == tuple(-(-n // stride) for n in size)
        patches = F.unfold(x, 3, padding=1, stride=stride).view(2, 2, 4, 9, rows, columns)
        expected = (weight.view(2, 2, 1, 9, rows, columns) * patches).sum(3).view(2, 8, rows, columns)
        torch.testing.assert_close(layer(x), expected, **EXACT)


def copied_attention(heads, **kwargs):
    stock = nn.MultiheadAttention(8, heads, bias=False, batch_first=True)
    layer = SelfAttention2d(8, 8, 3, padding=1, bias=False, heads=heads, **kwargs)
    for conv, weight in zip((layer.query, layer.key, layer.value), stock.in_proj_weight.chunk(3), strict=True):
        conv.weight = nn.Parameter(weight.detach()[:, :, None, None].clone())
    layer.out.weight = nn.Parameter(stock.out_proj.weight.detach()[:, :, None, None].clone())
    return layer.eval(), stock.eval()


@pytest.mark.parametrize('scope', ['global', 'window'])
def test_self_attention_is_torchs_multi_head_attention(scope):
    layer, stock = copied_attention(4, scope=scope)
    x = torch.randn(2, 8, 5, 7)
    tokens, mask = x.flatten(2).mT, None
    if scope == 'window':
        table = Positions((3, 3), padding=(1, 1)).table((5, 7))
        mask = torch.ones(35, 36, dtype=torch.bool).scatter(1, table % 36, False)[:, :35]
    expected = stock(tokens, tokens, tokens, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(layer(x).flatten(2).mT, expected, **EXACT)
    torch.testing.assert_close(layer.by_definition(x), layer(x), **EXACT)


def test_the_kernel_of_attention_holds_the_projections_too():
    """E(p)_n = sum_m A_m(p, n) Wo_m Wv_m, with the columns and rows of head m."""
    layer, _ = copied_attention(2, scope='global')
    x = torch.randn(2, 8, 4, 5)
    kernel, positions, size = layer.dense_kernel(x)
    weights = kernel.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 20, 8))
    out, value = layer.out.weight.flatten(1), layer.value.weight.flatten(1)
    whole = sum(
        torch.einsum('bpn,oh,hc->bpnoc', weights[..., 4 * m], out[:, part], value[part])
        for m, part in enumerate((slice(0, 4), slice(4, 8)))
    )
    seen = x.flatten(2)[:, :, positions]
    y = torch.einsum('bpnoc,bcpn->bop', whole, seen).unflatten(2, size)
    torch.testing.assert_close(layer(x), y, **EXACT)


def test_token_mixing_is_a_linear_layer_over_the_pixels():
    layer, linear = TokenMixing2d(8, 8, 3, padding=1, bias=False, size=(5, 7)), nn.Linear(35, 35, bias=False)
    layer.load_state_dict(dict(mixing=linear.weight))
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(layer(x), linear(x.flatten(2)).unflatten(2, (5, 7)), **EXACT)
    with pytest.raises(ValueError, match=r'size=\(5, 7\) and takes no image of \(6, 7\)'):
        layer(torch.randn(1, 8, 6, 7))
    with pytest.raises(ValueError, match='at most 16384'):
        TokenMixing2d(8, 8, 3, size=(800, 1344))


def test_conditional_mixes_the_experts_of_each_image():
    layer = EvolutionConv2d(8, 6, 3, stride=2, groups=2, function=dict(type='conditional', num_experts=3))
    part, x = layer.function, torch.randn(3, 8, 9, 7)
    experts = part.experts.unflatten(0, (3, 6))
    for image, y in zip(x, layer(x), strict=True):
        share = torch.sigmoid(part.routing.weight.flatten(1) @ image.mean((1, 2)) + part.routing.bias)
        kernel = torch.einsum('i,i...->...', share, experts)
        bias = share @ part.expert_bias
        torch.testing.assert_close(y, F.conv2d(image[None], kernel, bias, 2, groups=2)[0], **EXACT)


@pytest.mark.parametrize('kind', ['static', 'involution'])
def test_shifted_images_have_shifted_outputs(kind):
    own = dict(group_channels=4) if kind == 'involution' else {}
    layer = EvolutionConv2d(8, 8, 3, padding=1, function=dict(type=kind, **own)).eval()
    x = torch.randn(1, 8, 9, 9)
    y, shifted = layer(x), layer(x.roll((2, 1), (2, 3)))
    torch.testing.assert_close(shifted[:, :, 3:-1, 2:-1], y[:, :, 1:-3, 1:-2], **EXACT)


@pytest.mark.parametrize(('kind', 'commutes'), [('self_attention', True), ('token_mixing', False)])
def test_what_has_no_positions_commutes_with_permutations(kind, commutes):
    own = dict(scope='global', heads=2) if kind == 'self_attention' else dict(size=(4, 5))
    layer = EvolutionConv2d(8, 8, 3, padding=1, function=dict(type=kind, **own)).eval()
    x, order = torch.randn(1, 8, 4, 5), torch.randperm(20)
    assert not torch.equal(order, torch.arange(20))
    permuted = layer(x.flatten(2)[:, :, order].unflatten(2, (4, 5)))
    expected = layer(x).flatten(2)[:, :, order].unflatten(2, (4, 5))
    assert torch.allclose(permuted, expected, **EXACT) == commutes


@pytest.mark.parametrize('function', [dict(type='mmext.RefConv2d'), dict(type='mmext.EvolutionConv2d')])
def test_what_is_no_operator_is_refused(function):
    with pytest.raises(
        ValueError, match=r'EvolutionConv2d needs a function of type static, involution, .* or an operator'
    ):
        EvolutionConv2d(8, 8, 3, function=function)


def test_any_operator_is_a_function():
    layer = EvolutionConv2d(8, 8, 3, padding=1, function=dict(type='mmext.LSConv2d', group_channels=4)).eval()
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(layer(x), layer.function(x), **EXACT)
    assert layer.spatial_specific
    assert layer.dynamic
    assert not layer.channel_specific
