import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.random_basis import RandomBasisConv2d


@pytest.mark.parametrize(('groups', 'expansion'), [(1, 1), (1, 3), (2, 2), (8, 4)])
def test_equals_random_filters_and_then_a_pointwise_convolution(groups, expansion):
    layer = RandomBasisConv2d(8, 8, 3, stride=2, padding=1, groups=groups, expansion=expansion).double()
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    y = F.conv2d(x, layer.basis, stride=2, padding=1, groups=groups)
    y = F.conv2d(y, layer.coeff[..., None, None], layer.bias, groups=groups)
    assert layer.basis.shape == (8 * expansion, 8 // groups, 3, 3)
    torch.testing.assert_close(layer(x), y, rtol=1e-10, atol=1e-10)


def test_with_the_identity_the_filters_are_the_kernel():
    layer = RandomBasisConv2d(4, 6, 3)
    with torch.no_grad():
        layer.coeff.copy_(torch.eye(6))
    torch.testing.assert_close(layer.generate_kernel(), layer.basis)


def test_filters_are_frozen_unless_told_otherwise():
    frozen, learned = RandomBasisConv2d(4, 4, 3), RandomBasisConv2d(4, 4, 3, freeze=False)
    assert not frozen.basis.requires_grad
    assert {n for n, _ in frozen.named_parameters()} == {'coeff', 'bias'}
    assert {n for n, _ in learned.named_parameters()} == {'basis', 'coeff', 'bias'}
    learned(torch.randn(1, 4, 5, 5)).square().sum().backward()
    assert learned.basis.grad.abs().sum() > 0


def test_kernels_stay_in_the_span_of_the_filters():
    layer = RandomBasisConv2d(8, 4, 3).double()
    before = layer.basis.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        layer(torch.randn(2, 8, 6, 6, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.basis, before)
    together = torch.cat([layer.basis, layer.generate_kernel()]).flatten(1)
    assert torch.linalg.matrix_rank(layer.basis.flatten(1)) == torch.linalg.matrix_rank(together) == 4


def test_the_seed_decides_the_filters_and_nothing_else():
    def draw(seed):
        torch.manual_seed(5)
        return RandomBasisConv2d(4, 4, 3, seed=seed)

    one, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(one.basis, again.basis)
    assert not torch.equal(one.basis, other.basis)
    assert torch.equal(one.coeff, other.coeff)
    assert not torch.equal(RandomBasisConv2d(4, 4, 3).basis, RandomBasisConv2d(4, 4, 3).basis)
    torch.manual_seed(7)
    assert torch.equal(RandomBasisConv2d(4, 4, 3).basis, (torch.manual_seed(7), RandomBasisConv2d(4, 4, 3))[1].basis)


def test_init_weights_keeps_the_filters_and_draws_their_combination_anew():
    layer = RandomBasisConv2d(4, 4, 3, freeze=False)
    basis, coeff = layer.basis.detach().clone(), layer.coeff.detach().clone()
    with torch.no_grad():
        layer.basis.zero_()
    layer.init_weights()
    assert torch.equal(layer.basis, basis)
    assert not torch.equal(layer.coeff, coeff)


def test_start():
    layer = RandomBasisConv2d(64, 64, 3, expansion=2)
    bound = (64 * 9) ** -0.5
    assert bound * 0.99 < layer.basis.abs().max() <= bound
    assert layer.basis.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.coeff.var().item() == pytest.approx(2 / 128, rel=0.05)
    assert layer.generate_kernel().var().item() == pytest.approx(2 / 3 / (64 * 9), rel=0.1)


@pytest.mark.parametrize(('groups', 'expansion'), [(1, 1), (4, 3)])
def test_the_nearest_combination_is_taken(groups, expansion):
    layer = RandomBasisConv2d(8, 8, 3, groups=groups, expansion=expansion).double()
    kernel = torch.randn(8, 8 // groups, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.load_kernel(kernel)
    error = (layer.generate_kernel() - kernel).view(groups, 8 // groups, -1)
    filters = layer.basis.view(groups, 8 // groups * expansion, -1)
    # What is left is orthogonal to every filter of the group.
    torch.testing.assert_close(
        error @ filters.mT, torch.zeros(()).double().expand(groups, 8 // groups, filters.shape[1])
    )
    assert error.square().sum() < kernel.square().sum()
    assert error.square().sum() > 0.1


@pytest.mark.parametrize(('kernel', 'groups', 'expansion'), [((1, 2), 1, 1), (3, 1, 5), (3, 4, 9)])
def test_filters_that_span_everything_take_any_kernel(kernel, groups, expansion):
    layer, plain = (
        RandomBasisConv2d(4, 8, kernel, groups=groups, expansion=expansion),
        nn.Conv2d(4, 8, kernel, groups=groups),
    )
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer.fold().weight, plain.weight, rtol=1e-4, atol=1e-4)


def test_gradcheck_through_filters_and_coefficients():
    layer = RandomBasisConv2d(2, 4, 3, groups=2, freeze=False).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def run(basis, coeff):
        return torch.func.functional_call(layer, dict(basis=basis, coeff=coeff), x)

    given = [p.detach().clone().requires_grad_() for p in (layer.basis, layer.coeff)]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match='RandomBasisConv2d needs an expansion of at least 1, got expansion=0'):
        RandomBasisConv2d(4, 4, 3, expansion=0)


def test_pointwise_layers_stay_plain_and_learn():
    layer = RandomBasisConv2d(4, 8, 1, seed=0)
    layer.init_weights()
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']
