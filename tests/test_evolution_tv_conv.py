"""TVConv: kernels by position, kept in eval mode, resized for other images."""

import pytest
import torch
import torch.nn.functional as F

from mmext.evolution import TVConv2d

pytestmark = pytest.mark.usefixtures('double_precision')


def drawn(**kwargs):
    layer = TVConv2d(4, 4, 3, padding=1, size=(12, 10), **kwargs)
    with torch.no_grad():
        layer.position.normal_()
    return layer


def test_at_the_start_kernels_differ_in_a_rim_alone():
    layer = TVConv2d(4, 4, 3, padding=1, size=(14, 14))
    (weight,) = layer.maps((14, 14))
    inner = weight[..., 3:-3, 3:-3]
    assert inner.std((-1, -2)).max() < 1e-12
    assert weight.std((-1, -2)).max() > 1e-3


def test_it_is_its_formula():
    layer = drawn(position_bias=True, bias=False)
    x = torch.randn(3, 4, 12, 10)
    patches = F.unfold(x, 3, padding=1).view(3, 4, 9, 12, 10)
    weight = layer.draw(layer.position).view(1, 4, 9, 12, 10)
    expected = (weight * patches).sum(2) + layer.draw_bias(layer.position)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_kernels_are_drawn_once_in_eval_mode():
    layer, calls = drawn().eval(), []
    layer.draw.register_forward_hook(lambda *_: calls.append(1))
    x, other = torch.randn(1, 4, 12, 10), torch.randn(1, 4, 20, 6)
    with torch.no_grad():
        ys = [layer(x), layer(other), layer(x), layer(other)]
        assert len(calls) == 2, 'once for each size'
        torch.testing.assert_close(ys[:2], ys[2:])
        torch.testing.assert_close(layer.train()(x), ys[0])
        layer.eval().position.normal_()
        assert not torch.allclose(layer(x), ys[0])


def test_an_output_of_another_size_has_the_resized_kernels():
    layer = drawn()
    (known,), (other,) = layer.maps((12, 10)), layer.maps((24, 5))
    torch.testing.assert_close(other, F.interpolate(known, (24, 5), mode='bilinear', align_corners=False))
    assert layer(torch.randn(1, 4, 24, 5)).shape == (1, 4, 24, 5)
