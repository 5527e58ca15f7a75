import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import nn

from mmext.convs.binary_weight import BinaryWeightConv2d
from mmext.convs.xnor import XNORConv2d
from mmext.folding import fold


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
