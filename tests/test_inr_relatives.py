"""Activations that belong to one paper each: FINER, WIRE-2D, and first layers whose weights come from a beta distribution."""

import pytest
import torch
from mmengine.registry import MODELS
from scipy.stats import beta

from mmext.inr import coordinate_grid
from mmext.norms.position_norm import freeze_stats


def network(act, **args):
    torch.manual_seed(0)
    cfg = dict(type='mmext.CoordMLP', out_features=1, width=16, depth=3, act_cfg=act)
    return MODELS.build({**cfg, **args})


def test_finer_and_the_derivative_that_its_authors_compute():
    act = MODELS.build(dict(type='mmext.FinerActivation', w0=7.0))
    z = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    y = act(z)
    torch.testing.assert_close(y, torch.sin(7 * (z.abs() + 1) * z))
    (found,) = torch.autograd.grad(y.sum(), z)
    phase = 7 * (z.abs() + 1) * z
    torch.testing.assert_close(found, 7 * (z.abs() + 1) * phase.cos())
    away = z.abs() > 0.5
    assert not torch.allclose(found[away], (7 * (2 * z.abs() + 1) * phase.cos())[away])


def test_finer_draws_its_first_biases():
    plain, wide = (network(dict(type='mmext.FinerActivation', **args)) for args in (dict(), dict(first_bias=5.0)))
    assert plain.linears[0].bias.abs().max() <= 0.5**0.5
    assert 2 < wide.linears[0].bias.abs().max() <= 5
    assert wide.linears[1].bias.abs().max() <= 0.25
    assert wide.linears[0].weight.abs().max() <= 0.5
    assert wide.linears[1].weight.abs().max() <= (6 / 16) ** 0.5 / 30


def test_finer_of_three_layers_has_the_size_of_the_authors():
    """Their network for signed distances: three coordinates, 256 wide, three hidden layers."""
    built = network(dict(type='mmext.FinerActivation', first_bias=1.0), in_features=3, width=256)
    assert sum(p.numel() for p in built.parameters()) == 132_865


@pytest.mark.parametrize('norm', ['BN', 'LN', 'mmext.GlobalNorm', 'mmext.CrossNorm'])
@pytest.mark.parametrize('position', ['pre', 'post'])
def test_parts_of_complex_features_are_channels_of_a_norm(norm, position):
    act = dict(type='mmext.WaveletActivation', w0=5.0, s0=5.0)
    built = network(act, norm_cfg=dict(type=norm), norm_position=position, norm_last=True)
    real = position == 'pre'
    assert built.norms[1].norm.weight.numel() == 2 * built.width
    assert (
        built.norms[0].weight.numel() == built.width if real else built.norms[0].norm.weight.numel() == 2 * built.width
    )
    coords = coordinate_grid(12, 10)
    out = built(coords)
    out.square().sum().backward()
    assert all(p.grad is not None for p in built.parameters())
    features = torch.randn(64, built.width, dtype=torch.complex64)
    parts = torch.view_as_real(built.norms[1](features))
    plain = built.norms[1].norm(torch.view_as_real(features).flatten(1))
    torch.testing.assert_close(parts.flatten(1), plain)
    if norm == 'BN':
        assert parts.mean(0).abs().max() < 1e-5
        torch.testing.assert_close(parts.var(0, unbiased=False), torch.ones(built.width, 2), rtol=1e-3, atol=0)
    # Frozen statistics are those of the same pass.
    expected = built(coords).detach()
    freeze_stats(built, coords)
    torch.testing.assert_close(built(coords), expected)
    torch.testing.assert_close(built(coords[:3]), expected[:3])


def test_a_norm_stands_behind_an_activation_with_two_inputs():
    act = dict(type='mmext.WaveletActivation', w0=5.0, s0=5.0, orthogonal=True)
    built = network(act, norm_cfg=dict(type='BN'), norm_position='post')
    built(coordinate_grid(6, 5)).sum().backward()
    assert all(p.grad is not None for p in built.parameters())


def test_wire_2d():
    built = network(dict(type='mmext.WaveletActivation', w0=10.0, s0=10.0, orthogonal=True))
    assert built.width == 8
    assert [p.dtype for p in (built.beside[0].weight, built.beside[1].weight)] == [torch.float32, torch.complex64]
    coords = coordinate_grid(3, 4)
    z = coords.view(-1, 2)
    for first, second in zip(built.linears, built.beside, strict=True):
        a, b = first(z), second(z)
        z = torch.exp(10j * a) * torch.exp(-100 * (a.abs() ** 2 + b.abs() ** 2))
    torch.testing.assert_close(built(coords), built.head(z).real.view(3, 4, 1))
    built(coords).sum().backward()
    assert all(p.grad is not None for p in built.parameters())
    before = built.beside[0].weight.clone()
    built.reset_parameters()
    assert not torch.equal(built.beside[0].weight, before)


@pytest.mark.parametrize('beta_', [1.0, 0.3, 5.0])
def test_first_weights_from_a_beta_distribution(beta_):
    """The share of weights in the outer fifth of the range."""
    built = network(dict(type='mmext.SineActivation', first_beta=beta_), width=4000, depth=1)
    weights = built.linears[0].weight * 2
    assert weights.abs().max() <= 1
    assert float((weights.abs() > 0.8).float().mean()) == pytest.approx(2 * beta.cdf(0.1, beta_, beta_), abs=0.03)
    assert built.head.weight.abs().max() <= (6 / 4000) ** 0.5 / 30


def test_a_beta_of_one_draws_as_before():
    first, second = (network(dict(type='mmext.SineActivation', **args)) for args in (dict(), dict(first_beta=1.0)))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
