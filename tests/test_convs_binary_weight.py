import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import nn

from mmext.convs.binary_weight import BinaryWeightConv2d, XNORConv2d, binarize_weight
from mmext.folding import fold

LAYERS = [BinaryWeightConv2d, XNORConv2d]


def latent(*shape):
    """Weights of which some lie outside of [-1, 1] and some are exactly zero."""
    weight = torch.randn(*shape).double()
    weight.flatten()[::7] = 0
    return weight


@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
def test_every_filter_has_exactly_two_values(grad):
    layer = BinaryWeightConv2d(6, 8, 3, grad=grad, clamp=False)
    layer.weight.data.copy_(latent(8, 6, 3, 3))
    kernel = layer.fold().weight
    for o in range(8):
        alpha = layer.weight[o].abs().mean()
        assert kernel[o].unique().tolist() == pytest.approx([-alpha.item(), alpha.item()], rel=1e-6)
        assert kernel[o].unique().numel() == 2
    assert (kernel[layer.weight == 0] > 0).all(), 'the sign of zero is +1'


def test_binarizing_again_changes_nothing():
    kernel = binarize_weight(latent(8, 6, 3, 3), clamp=False)
    torch.testing.assert_close(binarize_weight(kernel, clamp=False), kernel, rtol=1e-14, atol=0)


def test_scale_and_signs_are_the_nearest_in_least_squares():
    weight = latent(1, 2, 2, 2)
    ours = (binarize_weight(weight, clamp=False) - weight).square().sum()
    best = torch.tensor(float('inf')).double()
    for bits in range(2**8):
        signs = torch.tensor([1.0 if bits >> i & 1 else -1.0 for i in range(8)]).double().view_as(weight)
        best = torch.minimum(best, ((weight * signs).mean() * signs - weight).square().sum())
    torch.testing.assert_close(ours, best)


@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
@pytest.mark.parametrize('per_output', [True, False])
def test_gradients_are_those_of_the_formulas(grad, per_output):
    weight = latent(4, 3, 3, 3).requires_grad_()
    coming = torch.randn(4, 3, 3, 3).double()
    binarize_weight(weight, grad, clamp=False, per_output=per_output).backward(coming)
    expected = torch.zeros_like(coming)
    filters = [[o] for o in range(4)] if per_output else [[0, 1, 2, 3]]
    for members in filters:
        w, g = weight.detach()[members], coming[members]
        n, alpha, inside = w.numel(), w.abs().mean(), (w.abs() <= 1).double()
        sign = torch.where(w >= 0, 1.0, -1.0).double()
        expected[members] = {
            'paper': g * (1 / n + alpha * inside),
            'exact': alpha * inside * g + sign * (g * sign).sum() / n,
            'ste': inside * g,
        }[grad]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_straight_through_gradient_stops_outside_of_one():
    weight = torch.tensor([0.5, -1.0, 1.5, -2.0]).view(1, 4, 1, 1).requires_grad_()
    binarize_weight(weight, 'ste', clamp=False).sum().backward()
    assert weight.grad.flatten().tolist() == [1, 1, 0, 0]


def test_center_is_the_mean_over_the_input_channels():
    layer = BinaryWeightConv2d(6, 8, 3, center=True, clamp=False)
    centered = layer.weight - layer.weight.mean(1, keepdim=True)
    kernel = layer.fold().weight
    assert torch.equal(kernel > 0, centered >= 0)
    torch.testing.assert_close(kernel.abs()[:, 0, 0, 0], centered.abs().mean((1, 2, 3)))


@pytest.mark.parametrize('cls', LAYERS)
def test_training_keeps_the_latent_weights_in_range_and_evaluation_does_not_touch_them(cls):
    layer = cls(4, 4, 3)
    layer.weight.data.mul_(20)
    x = torch.randn(1, 4, 6, 6)
    evaluated = copy.deepcopy(layer).eval()
    before = evaluated.weight.clone()
    out = evaluated(x)
    assert torch.equal(evaluated.weight, before)
    torch.testing.assert_close(layer(x), out, msg='both forms compute with the clamped weights')
    assert layer.weight.abs().max() == 1
    free = cls(4, 4, 3, clamp=False)
    free.weight.data.mul_(20)
    free(x)
    assert free.weight.abs().max() > 1


@pytest.mark.parametrize('cls', LAYERS)
@pytest.mark.parametrize('grad', ['paper', 'exact', 'ste'])
def test_a_layer_may_be_called_twice_in_one_forward(cls, grad):
    """As a detector's head does with every level; the clamp in place must not spoil the first call's backward."""
    layer = cls(4, 4, 3, padding=1, grad=grad)
    layer(layer(torch.randn(1, 4, 6, 6))).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('scale_input', [True, False])
def test_xnor_equals_the_definition_in_loops(groups, scale_input):
    layer = XNORConv2d(4, 8, 3, stride=2, padding=1, groups=groups, scale_input=scale_input).double()
    x = torch.randn(2, 4, 7, 6).double()
    x[0, 0, 0, 0] = 0
    alpha = layer.weight.abs().mean((1, 2, 3))
    sign = torch.where(x >= 0, 1.0, -1.0).double()
    padded_sign, padded_abs = F.pad(sign, (1, 1, 1, 1)), F.pad(x.abs(), (1, 1, 1, 1))
    expected = torch.zeros(2, 8, 4, 3).double()
    per_group = 4 // groups
    for o in range(8):
        first = o // (8 // groups) * per_group
        for i in range(4):
            for j in range(3):
                window = (
                    slice(None),
                    slice(first, first + per_group),
                    slice(2 * i, 2 * i + 3),
                    slice(2 * j, 2 * j + 3),
                )
                dot = (padded_sign[window] * layer.weight[o].sign()).sum((1, 2, 3)) * alpha[o]
                scale = padded_abs[window].mean((1, 2, 3)) if scale_input else 1.0
                expected[:, o, i, j] = dot * scale + layer.bias[o]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_xnor_passes_the_gradient_where_the_input_is_small():
    layer = XNORConv2d(1, 1, 1, bias=False, scale_input=False)
    x = torch.tensor([0.5, -1.0, 1.5, -2.0]).view(1, 1, 2, 2).requires_grad_()
    layer(x).sum().backward()
    alpha = layer.weight.item()
    assert x.grad.flatten().tolist() == pytest.approx([alpha, alpha, 0, 0])


@pytest.mark.parametrize('kwargs', [dict(padding=1, padding_mode='reflect'), dict(padding='same', dilation=2)])
def test_xnor_pads_as_asked(kwargs):
    layer = XNORConv2d(4, 4, 3, **kwargs)
    assert layer(torch.randn(1, 4, 7, 6)).shape == (1, 4, 7, 6)


def test_xnor_says_that_it_cannot_fold():
    module = ConvModule(4, 4, 3, conv_cfg=dict(type='mmext.XNORConv2d'), norm_cfg=dict(type='BN')).eval()
    assert type(module.conv) is XNORConv2d
    assert not hasattr(module.conv, 'fold')
    with pytest.raises(RuntimeError, match=r'conv \(XNORConv2d: it binarizes its input\)'):
        fold(nn.Sequential(module))


def test_xnor_shares_its_checkpoint_with_the_binary_weights_and_with_no_plain_layer():
    layer, other, plain = XNORConv2d(4, 4, 3), BinaryWeightConv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    with pytest.raises(RuntimeError, match='size mismatch for weight'):
        plain.load_state_dict(layer.state_dict(), strict=False)


@pytest.mark.parametrize('training', [True, False])
def test_xnor_compiles_as_one_graph(training):
    layer = XNORConv2d(4, 4, 3).train(training)
    x = torch.randn(1, 4, 6, 6)
    expected = copy.deepcopy(layer)(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='aot_eager')(x), expected)


def test_xnor_trains_under_autocast():
    layer = XNORConv2d(4, 4, 3)
    with torch.autocast('cpu', torch.bfloat16):
        layer(torch.randn(1, 4, 6, 6)).float().square().mean().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('cls', LAYERS)
def test_bad_arguments(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__} knows the gradients .*, got grad='exakt'"):
        cls(4, 4, 3, grad='exakt')
    with pytest.raises(ValueError, match=rf'{cls.__name__} with center=True needs at least two input channels'):
        cls(4, 4, 3, groups=4, center=True)
    with pytest.raises(TypeError, match=rf'{cls.__name__} has no argument no_such'):
        cls(4, 4, 3, no_such=1)
