import pytest
import torch

from mmext.blocks.haar_dwt import HaarDWT2d


def test_a_square_becomes_its_sum_and_differences():
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).view(1, 1, 2, 2)
    assert HaarDWT2d()(x)[0].flatten().tolist() == [5.5, -2.5, -1.5, 0.5]


def test_the_differences_of_a_channel_stand_together():
    x = torch.zeros(1, 3, 4, 4)
    x[:, 1] = torch.randn(4, 4)
    (level,) = HaarDWT2d()(x)
    assert level.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [1, 6, 7, 8]


@pytest.mark.parametrize('levels', [1, 2, 3])
@pytest.mark.parametrize('size', [(8, 16), (24, 8)])
def test_it_is_orthogonal_and_has_an_inverse(levels, size):
    dwt = HaarDWT2d(levels)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    maps = dwt(x)
    energy = sum(m[:, 3:].square().sum() for m in maps) + maps[-1][:, :3].square().sum()
    torch.testing.assert_close(energy, x.square().sum())
    torch.testing.assert_close(dwt.inverse(maps), x)


def test_a_level_is_the_transform_of_the_sums_before():
    first, second = HaarDWT2d(2)(torch.randn(1, 4, 8, 8))
    assert torch.equal(HaarDWT2d()(first[:, :4])[0], second)


@pytest.mark.parametrize('size', [(7, 8), (5, 9), (1, 1)])
def test_odd_sides_get_zeros_behind_them(size):
    dwt = HaarDWT2d(3)
    x = torch.randn(1, 2, *size)
    back = dwt.inverse(dwt(x))
    torch.testing.assert_close(back[..., : size[0], : size[1]], x)


def test_gradients():
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(HaarDWT2d(2), (x,))


def test_another_number_of_levels_is_refused():
    with pytest.raises(ValueError, match='has 2 levels, got 1'):
        HaarDWT2d(2).inverse([torch.zeros(1, 4, 2, 2)])
