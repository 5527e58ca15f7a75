import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.weighted_conv import WeightedConv2d
from mmext.surgery import swap_layers


def test_density_of_a_3x3_kernel():
    a = 0.7
    expected = torch.tensor([[a * a, a, a * a], [a, 1, a], [a * a, a, a * a]])
    torch.testing.assert_close(WeightedConv2d(2, 2, 3, density=[a]).mask(), expected)


def test_density_of_a_5x5_kernel_is_the_outermost_first():
    alpha = [0.2, 0.8, 1, 0.8, 0.2]
    mask = WeightedConv2d(2, 2, 5, density=(0.2, 0.8)).mask()
    for i in range(5):
        for j in range(5):
            assert mask[i, j].item() == pytest.approx(alpha[i] * alpha[j])


@pytest.mark.parametrize('trainable', [False, True])
def test_density_is_symmetric(trainable):
    mask = WeightedConv2d(2, 2, 7, density=[0.25, 0.15, 0.55], trainable=trainable).mask()
    for same in (mask.T, mask.flip(0), mask.flip(1)):
        assert torch.equal(mask, same)
    assert mask[3, 3] == 1


def test_one_number_stands_for_all():
    assert torch.equal(WeightedConv2d(2, 2, 7, density=0.5).density, torch.full((3,), 0.5))


def test_the_default_is_a_plain_convolution():
    layer, plain = WeightedConv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
    plain.load_state_dict({'weight': layer.weight.data, 'bias': layer.bias.data})
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(layer(x), plain(x))


def test_what_learns_and_what_is_saved():
    fixed, trained = WeightedConv2d(2, 2, 3, density=0.5), WeightedConv2d(2, 2, 3, density=0.5, trainable=True)
    assert 'density' not in dict(fixed.named_parameters())
    assert 'density' in dict(trained.named_parameters())
    assert set(fixed.state_dict()) == set(trained.state_dict()) == {'weight', 'density', 'bias'}
    trained(torch.randn(1, 2, 5, 5)).square().sum().backward()
    assert trained.density.grad.abs().sum() > 0


def test_init_weights_starts_over():
    layer = WeightedConv2d(32, 64, 3, density=0.5, trainable=True)
    with torch.no_grad():
        layer.density.fill_(3)
        layer.bias.fill_(3)
    layer.init_weights()
    assert layer.density.tolist() == [0.5]
    assert layer.bias.eq(0).all()
    assert layer.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_a_step_of_sgd_on_the_kernel_is_scaled_by_the_density_squared():
    layer, plain = WeightedConv2d(2, 3, 3, density=0.7).double(), nn.Conv2d(2, 3, 3).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    plain.load_state_dict(layer.fold().state_dict())
    for module in (layer, plain):
        module(x).square().sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.01).step()
    before = layer.fold().weight.detach()
    step = 0.01 * plain.weight.grad
    moved = plain.weight.detach() + step - layer.mask().square() * step
    torch.testing.assert_close(before, moved, rtol=1e-10, atol=1e-12)


def test_a_plain_network_goes_on_unchanged():
    cfg = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    plain = ROOT_MODELS.build(cfg)
    weighted = swap_layers(
        model=dict(cfg),
        rules=[
            dict(kernel_size=3, to=dict(type='mmext.WeightedConv2d', density=0.7)),
            dict(kernel_size=7, to=dict(type='mmext.WeightedConv2d', density=[0.25, 0.15, 0.55], trainable=True)),
        ],
    )
    result = weighted.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    x = torch.randn(1, 3, 32, 32)
    plain.eval()  # not chained: it returns None
    weighted.eval()
    torch.testing.assert_close(weighted(x)[0], plain(x)[0], rtol=1e-4, atol=1e-5)


def test_a_zero_density_cannot_take_a_kernel():
    layer = WeightedConv2d(2, 2, 3, density=0.0)
    assert layer.generate_kernel().count_nonzero() == 4
    with pytest.raises(ValueError, match=r'WeightedConv2d cannot start .* density of zero'):
        layer.load_state_dict(nn.Conv2d(2, 2, 3).state_dict())


def test_pointwise_layers_stay_plain():
    layer = WeightedConv2d(4, 8, 1, density=[0.3], trainable=True)
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']
    assert 'plain' in repr(layer)


@pytest.mark.parametrize(
    ('size', 'density', 'message'),
    [
        (3, [0.5, 0.7], r'needs \(kernel_size - 1\) / 2 = 1 densities'),
        (5, [0.5], r'= 2 densities, the outermost first, got density=\[0.5\]'),
        ((3, 5), 1.0, r'needs a square odd kernel, got kernel_size=\(3, 5\)'),
        (4, 1.0, r'needs a square odd kernel, got kernel_size=\(4, 4\)'),
    ],
)
def test_bad_arguments(size, density, message):
    with pytest.raises(ValueError, match=f'WeightedConv2d .*{message}'):
        WeightedConv2d(4, 4, size, density=density)


def test_gradcheck_through_kernel_and_density():
    layer = WeightedConv2d(2, 2, 5, density=[0.2, 0.8], trainable=True).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def run(weight, density):
        return torch.func.functional_call(layer, dict(weight=weight, density=density), x)

    given = [p.detach().clone().requires_grad_() for p in (layer.weight, layer.density)]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
