import pytest
import torch
from helpers import shake
from torch import nn

from mmext.evolution.halo_attention import HaloAttention2d


def build(**kwargs):
    layer = HaloAttention2d(8, 8, **{**dict(kernel_size=5, padding=2, block_size=4, num_heads=2), **kwargs})
    return shake(layer.double(), 0.2).eval()


def test_one_block_without_halo_and_places_is_full_attention():
    layer = build(kernel_size=1, padding=0, block_size=6, bias=False)
    nn.init.zeros_(layer.rel_rows)
    nn.init.zeros_(layer.rel_columns)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    q, k, v = (conv(x).flatten(2).unflatten(1, (2, -1)).mT for conv in (layer.query, layer.key, layer.value))
    full = nn.functional.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).view_as(x)
    torch.testing.assert_close(layer(x), full)


@pytest.mark.parametrize('size', [(8, 12), (9, 13), (3, 5)])
@pytest.mark.parametrize('stride', [1, 2, 4])
@pytest.mark.parametrize('masked', [True, False])
def test_any_size_and_stride_is_the_definition(size, stride, masked):
    layer = build(stride=stride, masked=masked)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    y = layer(x)
    assert y.shape[2:] == tuple(-(-n // stride) for n in size)
    torch.testing.assert_close(y, layer.by_definition(x), rtol=1e-10, atol=1e-10)


def test_weights_outside_of_the_image():
    x = torch.randn(1, 8, 7, 9, dtype=torch.float64)
    for masked in (True, False):
        dense = build(masked=masked).dense_kernel(x)
        weight = dense.kernel.diagonal(dim1=-2, dim2=-1)[0, ..., 0]
        inside = (weight * (dense.positions >= 0)).sum(-1)
        assert torch.allclose(inside, torch.ones_like(inside)) == masked
        torch.testing.assert_close(weight.sum(-1), torch.ones_like(inside))


def test_equivariant_to_steps_of_a_block_and_to_no_others():
    layer = build(block_size=4)
    x = torch.zeros(1, 8, 32, 32, dtype=torch.float64)
    x[:, :, 12:20, 12:20] = torch.randn(8, 8, 8)
    for step, same in ((4, True), (1, False)):
        moved = layer(x.roll((step, step), (2, 3)))
        assert torch.allclose(moved, layer(x).roll((step, step), (2, 3))) == same


def test_other_blocks_than_the_stride_divides_are_refused():
    with pytest.raises(ValueError, match=r'HaloAttention2d needs .* a stride that divides block_size .* block_size=5'):
        build(block_size=5, stride=2)
