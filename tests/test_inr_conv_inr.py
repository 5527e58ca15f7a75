"""Conv-INR: its identities, its three re-parameterizations, and what is left of them after training."""

import pytest
import torch
from torch import nn

from mmext.convs import ConditionedConv2d
from mmext.inr import ConvINR, CoordMLP, coordinate_grid

SUBSETS = [('kxk',), ('kxk', '1xk'), ('kx1', '1x1'), ('kxk', '1xk', 'kx1', '1x1'), ('kxk', '1x1', 'identity')]
REPARAMS = {
    'plain': None,
    **{f'structural-{"-".join(s)}': dict(type='structural', branches=s) for s in SUBSETS},
    'structural': 'structural',
    'static': 'static',
    'dynamic': 'dynamic',
    'dynamic-given': dict(type='dynamic', source='given', condition_dim=6),
}


def build(reparam, **kwargs):
    torch.manual_seed(1)
    model = ConvINR(**{**dict(width=6, depth=3, reparam=reparam), **kwargs})
    if isinstance(reparam, dict) and reparam.get('source') == 'given':
        model.set_condition(torch.randn(6))
    return model


def train(model, grid, steps=3):
    target = torch.rand(*grid.shape[:-1], 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(grid) - target).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ('width', 'depth', 'trained', 'deployed'),
    [(8, 10, 5787, 5627), (10, 10, 8853, 8653), (28, 10, 65607, 65047), (32, 10, 85347, 84707), (32, 11, 94659, 93955)],
)
def test_number_of_parameters(width, depth, trained, deployed):
    model = ConvINR(width=width, depth=depth)
    assert sum(p.numel() for p in model.parameters()) == trained
    model.switch_to_deploy()
    assert sum(p.numel() for p in model.parameters()) == deployed


@pytest.mark.parametrize('size', [(5, 8), (1, 7), (6, 6)])
def test_values_have_the_size_of_the_grid(size):
    assert build(None)(coordinate_grid(*size)).shape == (*size, 3)
    assert build(None, kernel_size=5)(coordinate_grid(*size).expand(2, *size, 2)).shape == (2, *size, 3)


def test_one_by_one_kernels_are_the_perceptron():
    conv = ConvINR(width=6, depth=3, kernel_size=1)
    mlp = CoordMLP(width=6, depth=3, norm_cfg=dict(type='BN'))
    for layer, linear, norm in zip(conv.layers, mlp.linears, mlp.norms, strict=True):
        linear.load_state_dict({'weight': layer[0].weight[:, :, 0, 0], 'bias': layer[0].bias})
        norm.load_state_dict(layer[1].state_dict())
    mlp.head.load_state_dict({'weight': conv.head.weight[:, :, 0, 0], 'bias': conv.head.bias})
    grid = coordinate_grid(7, 5)
    torch.testing.assert_close(conv(grid), mlp(grid), rtol=1e-4, atol=1e-5)
    conv.freeze_stats(grid)
    mlp.freeze_stats(grid)
    points = grid.view(-1, 2)[::4]
    torch.testing.assert_close(conv(points), mlp(points), rtol=1e-4, atol=1e-5)


def test_first_layer_is_pointwise_on_ramps():
    """On linear ramps a kernel is its sum of taps plus a constant, except at the border."""
    conv = nn.Conv2d(2, 4, 3, padding=1).double()
    maps = coordinate_grid(8, 9, dtype=torch.float64).movedim(-1, 0)[None]
    pointwise = torch.einsum('oi,nihw->nohw', conv.weight.sum((2, 3)), maps)
    difference = (conv(maps) - pointwise)[..., 1:-1, 1:-1].flatten(2)
    torch.testing.assert_close(difference, difference[..., :1].expand_as(difference), rtol=0, atol=1e-12)
    assert (conv(maps) - pointwise)[0, :, 0, 0].sub(difference[0, :, 0]).abs().max() > 1e-3


@pytest.mark.parametrize('name', ['static', 'dynamic', 'dynamic-given'])
def test_weight_reparameterizations_start_exactly_at_the_plain_network(name):
    plain, model = build(None), build(REPARAMS[name])
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    grid = coordinate_grid(6, 7)
    assert torch.equal(model(grid), plain(grid))


@pytest.mark.parametrize('name', REPARAMS)
def test_all_weights_learn_and_all_extra_ones_vanish(name):
    grid = coordinate_grid(8, 7)
    model = train(build(REPARAMS[name]), grid)
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not [n for n in silent if not n.endswith('bias')], silent  # a bias before a norm has no slope
    with torch.no_grad():
        whole = model(grid)
        model.freeze_stats(grid)
        frozen = model(grid)
        torch.testing.assert_close(frozen, whole, rtol=1e-3, atol=2e-5)
        model.switch_to_deploy()
        torch.testing.assert_close(model(grid), frozen, rtol=1e-4, atol=1e-5)
        state = {n: t.clone() for n, t in model.state_dict().items()}
        model.switch_to_deploy()

    plain = build(None)
    plain.switch_to_deploy()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(plain(grid), model(grid))


def test_a_given_condition_changes_the_kernels():
    model = train(build(REPARAMS['dynamic-given']), coordinate_grid(6, 6))
    model.eval()
    grid = coordinate_grid(6, 6)
    before = model(grid)
    model.set_condition(torch.arange(6.0))
    assert (model(grid) - before).abs().max() > 1e-5
    layer = next(m for m in model.modules() if isinstance(m, ConditionedConv2d))
    assert layer.condition.mean().abs() < 1e-6
    assert layer.condition.std(correction=0).item() == pytest.approx(1)
    scaled = model(grid)
    model.set_condition(10 * torch.arange(6.0) + 3)
    torch.testing.assert_close(model(grid), scaled)


def test_static_reparameterization_learns_its_basis():
    layer = build('static').layers[1][0]
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.state_dict()['weight'].ndim == 5, 'saved so that no plain layer takes it for its kernel'


@pytest.mark.parametrize('name', ['plain', 'structural', 'static', 'dynamic'])
def test_compiles_whole(name):
    model, grid = build(REPARAMS[name]), coordinate_grid(5, 6)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(grid), model(grid), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('norm', ['mmext.GlobalNorm', 'mmext.CrossNorm', None])
def test_other_norms(norm):
    grid = coordinate_grid(6, 5)
    model = build(None, norm_cfg=dict(type=norm) if norm else None)
    whole = model(grid).detach()
    model.freeze_stats(grid)
    torch.testing.assert_close(model(grid), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['plain', 'structural', 'static', 'dynamic'])
def test_initializing_again_draws_everything_anew(name):
    model = build(REPARAMS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.init_weights()
    assert not [n for n, p in model.named_parameters() if (p == 7).any()]


def test_bad_arguments():
    with pytest.raises(ValueError, match='odd kernel_size'):
        ConvINR(kernel_size=4)
    with pytest.raises(ValueError, match='one hidden layer'):
        ConvINR(depth=0)
    with pytest.raises(ValueError, match='knows reparam'):
        ConvINR(reparam='semantic')
    with pytest.raises(ValueError, match='needs a grid'):
        build(None)(torch.randn(5, 2))
    with pytest.raises(ValueError, match='ConditionedConv2d needs source'):
        ConditionedConv2d(2, 2, 3, source='image')
    with pytest.raises(ValueError, match='condition of shape'):
        build(REPARAMS['dynamic-given']).set_condition(torch.randn(5))
    with pytest.raises(RuntimeError, match='from coordinates'):
        build('dynamic').set_condition(torch.randn(32))
