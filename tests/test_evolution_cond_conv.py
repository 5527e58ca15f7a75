import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from torch import nn

from mmext.evolution.cond_conv import CondConv2d


def build(**kwargs):
    return shake(CondConv2d(8, 12, **{**dict(kernel_size=3, padding=1, num_experts=3), **kwargs}).double(), 0.3).eval()


@pytest.mark.parametrize('options', [dict(), dict(groups=4, stride=2), dict(dilation=2, padding=2, bias=False)])
def test_every_image_has_the_mixture_of_its_own_mean(options):
    layer = build(**options)
    x = torch.randn(4, 8, 9, 10, dtype=torch.float64)
    share = (x.mean((2, 3)) @ layer.routing.weight.flatten(1).T + layer.routing.bias).sigmoid()
    experts = layer.experts.unflatten(0, (3, 12))
    for image, weights, y in zip(x, share, layer(x), strict=True):
        bias = None if layer.expert_bias is None else weights @ layer.expert_bias
        kernel = torch.einsum('e,eoikl->oikl', weights, experts)
        expected = F.conv2d(image[None], kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        torch.testing.assert_close(y, expected[0])


def test_equal_images_have_equal_outputs():
    x = torch.randn(1, 8, 9, 10, dtype=torch.float64).expand(3, -1, -1, -1)
    y = build()(x)
    torch.testing.assert_close(y, y[:1].expand_as(y))


@pytest.mark.parametrize('number', [1, 4, 7])
def test_experts_start_apart_around_a_plain_kernel_alike_everywhere(number):
    plain = nn.Conv2d(8, 12, 3, padding=1).double()
    layers = [CondConv2d(8, 12, 3, padding=1, num_experts=number).double() for _ in range(2)]
    for seed, layer in enumerate(layers):
        torch.manual_seed(seed)
        layer.load_state_dict(plain.state_dict())
    state = layers[0].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in layers[1].state_dict().items())
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(layers[0](x), plain(x))
    experts = layers[0].experts.unflatten(0, (number, 12))
    assert number == 1 or (experts[0] - experts[1]).abs().max() > 0
    layers[0](x).square().sum().backward()
    assert layers[0].routing.weight.grad.abs().sum() > 0


def test_a_smaller_kernel_lies_in_the_center():
    plain, layer = nn.Conv2d(8, 12, 1), CondConv2d(8, 12, 3, padding=1)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 9, 10)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-5)
