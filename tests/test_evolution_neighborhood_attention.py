import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from torch import nn

from mmext.evolution.neighborhood_attention import NeighborhoodAttention2d


def build(**kwargs):
    layer = NeighborhoodAttention2d(8, 8, **{**dict(kernel_size=3, padding=1, num_heads=2), **kwargs})
    return shake(layer.double(), 0.2).eval()


def test_a_window_as_large_as_the_image_is_full_attention():
    layer = build(kernel_size=5, padding=2, relative_bias=False)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    q, k, v = layer.qkv(x).flatten(2).unflatten(1, (3, 2, -1)).mT.unbind(1)
    full = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).view_as(x)
    torch.testing.assert_close(layer(x), layer.proj(full))


@pytest.mark.parametrize('dilation', [1, 2, 3])
def test_pixels_attend_to_their_own_class_alone(dilation):
    """Every weight lies on a pixel whose rows and columns differ by multiples of the dilation; each row sums to one."""
    layer = build(padding=dilation, dilation=dilation)
    dense = layer.dense_kernel(torch.randn(1, 8, 9, 10, dtype=torch.float64))
    pixel = torch.arange(90)[:, None]
    assert (dense.positions >= 0).all()
    assert not ((dense.positions // 10 - pixel // 10) % dilation).any()
    assert not ((dense.positions % 10 - pixel % 10) % dilation).any()
    weight = dense.kernel.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(weight.sum(2), torch.ones_like(weight[:, :, 0]))


@pytest.mark.parametrize('size', [(2, 9), (4, 3), (1, 1)])
def test_a_map_smaller_than_a_window_is_that_of_a_padded_one(size):
    layer = build(kernel_size=5, padding=2)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    padded = F.pad(x, (0, max(5 - size[1], 0), 0, max(5 - size[0], 0)))
    torch.testing.assert_close(layer(x), layer(padded)[..., : size[0], : size[1]])
    torch.testing.assert_close(layer(x), layer.by_definition(x))


def test_places_are_counted_from_the_pixel_at_the_border_too():
    """With equal queries and keys only the table matters, and it says which neighbor is looked at."""
    layer = build(qkv_bias=False)
    with torch.no_grad():
        layer.qkv.weight[:16] = 0
        layer.relative.zero_()
        layer.relative[:, 3, 2] = 200.0  # one row below
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64)
    value = layer.qkv(x)[:, 16:]
    torch.testing.assert_close(layer(x)[:, :, :-1], layer.proj(value[:, :, 1:]))


def test_heads_follow_the_channels():
    assert NeighborhoodAttention2d(96, 96, 3, padding=1).num_heads == 3
    assert NeighborhoodAttention2d(16, 16, 3, padding=1).num_heads == 1
    with pytest.raises(ValueError, match='NeighborhoodAttention2d needs num_heads that divide in_channels'):
        build(num_heads=3)


def test_dropout_in_training_alone():
    layer = build(attn_drop=0.999, bias=False)
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x))
    assert not torch.allclose(layer.train()(x), nn.Module.eval(layer)(x))
