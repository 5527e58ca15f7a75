import pytest
import torch
import torch.nn.functional as F
from helpers import shake_norms
from torch import nn

from mmext.convs.dilated_reparam import DilatedReparamConv2d

# UniRepLKNet's table: kernel size -> (branch kernel, dilation), written down here once more.
TABLE = {
    5: [(3, 1), (3, 2)],
    7: [(5, 1), (3, 2), (3, 3)],
    9: [(5, 1), (5, 2), (3, 3), (3, 4)],
    11: [(5, 1), (5, 2), (3, 3), (3, 4), (3, 5)],
    13: [(5, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
    15: [(5, 1), (7, 2), (3, 3), (3, 5), (3, 7)],
    17: [(5, 1), (9, 2), (3, 4), (3, 5), (3, 7)],
}
ALL = [(k, *row) for k, rows in TABLE.items() for row in rows]


def make(size: int, **kwargs) -> DilatedReparamConv2d:
    layer = DilatedReparamConv2d(4, 4, size, **{'padding': size // 2, 'groups': 4, 'bias': False, **kwargs}).double()
    return shake_norms(layer).eval()


def branch_outputs(layer, x):
    """Each branch as the released block computes it: a dilated depthwise convolution of its own, and its norm."""
    size = layer.kernel_size[0]
    for branch, (k, r) in zip(layer.branches, [(size, 1), *TABLE[size]], strict=True):
        assert branch.weight.shape == (4, 1, k, k)
        y = F.conv2d(x, branch.weight, padding=r * (k - 1) // 2, dilation=r, groups=4)
        yield branch.norm(y)


@pytest.mark.parametrize('size', TABLE)
def test_folds_to_the_sum_of_dilated_convolutions(size):
    layer = make(size)
    x = torch.randn(2, 4, 20, 23, dtype=torch.float64)
    expected = sum(branch_outputs(layer, x))
    plain = layer.fold()
    assert plain.weight.shape == (4, 1, size, size)
    for result in (layer(x), plain(x)):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', TABLE)
def test_trains_as_the_sum_with_batch_statistics(size):
    layer = make(size).train()
    x = torch.randn(2, 4, 20, 23, dtype=torch.float64)
    torch.testing.assert_close(layer(x), sum(branch_outputs(layer, x)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('size', 'k', 'r'), ALL)
def test_no_branch_is_larger_than_the_kernel(size, k, r):
    assert r * (k - 1) + 1 <= size


def test_a_branch_touches_only_its_own_taps():
    layer = make(13)
    before = layer.generate_kernel()
    with torch.no_grad():
        layer.branches[2].weight.add_(1)  # 7x7, taps two apart
    touched = (layer.generate_kernel() != before)[0, 0]
    expected = torch.zeros(13, 13, dtype=torch.bool)
    expected[::2, ::2] = True
    assert torch.equal(touched, expected)


def test_folding_is_idempotent():
    """Twice from the layer: the same kernel; a model that is folded holds a plain convolution, which folds no more."""
    layer = make(9)
    first, second = layer.fold(), layer.fold()
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert type(first) is nn.Conv2d
    assert not hasattr(first, 'fold')


@pytest.mark.parametrize('size', [5, 13])
def test_a_branch_with_zero_gamma_adds_its_beta_alone(size):
    layer = make(size)
    x = torch.randn(1, 4, 20, 20, dtype=torch.float64)
    norm = layer.branches[1].norm
    others = sum(y for i, y in enumerate(branch_outputs(layer, x)) if i != 1)
    with torch.no_grad():
        norm.weight.zero_()
    layer.eval()
    expected = others + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer.fold()(x), expected, rtol=1e-10, atol=1e-10)


def test_own_branches_and_small_kernels():
    layer = DilatedReparamConv2d(4, 4, 19, padding=9, groups=4, branches=['3x3@9'])
    assert [b.kind for b in layer.branches] == ['kxk', '3x3@9']
    for size in (1, 3):
        assert DilatedReparamConv2d(4, 4, size, groups=4).plain
    assert DilatedReparamConv2d(4, 4, 7, branches=[]).plain


@pytest.mark.parametrize('size', [4, 19, (7, 9)])
def test_a_size_that_the_table_lacks(size):
    with pytest.raises(
        ValueError, match=r'^DilatedReparamConv2d has branches for kernel_size \[5, 7, 9, 11, 13, 15, 17\]'
    ):
        DilatedReparamConv2d(4, 4, size)


def test_the_size_is_found_wherever_it_is_passed():
    kinds = [b.kind for b in DilatedReparamConv2d(4, 4, 7).branches]
    for layer in (DilatedReparamConv2d(4, 4, kernel_size=7), DilatedReparamConv2d(4, 4, (7, 7))):
        assert [b.kind for b in layer.branches] == kinds == ['kxk', '5x5', '3x3@2', '3x3@3']


def test_starts_from_a_plain_kernel():
    plain, layer = nn.Conv2d(4, 4, 7, padding=3, groups=4).double(), make(7, bias=True)
    layer.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(layer.fold().weight, plain.weight)
