"""SPW: starts as the plain network, ends as one, and never trains the semantic network."""

import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmext.folding import fold
from mmext.inr import SPW, RandomPyramid, SemanticEncoder, coordinate_grid

SMALL = dict(width=6, depth=3)
NETWORKS = {
    'relu': dict(type='mmext.CoordMLP', **SMALL),
    'siren': dict(type='mmext.CoordMLP', **SMALL, act_cfg=dict(type='mmext.SineActivation')),
    'wire': dict(type='mmext.CoordMLP', **SMALL, act_cfg=dict(type='mmext.WaveletActivation', w0=3.0, s0=1.0)),
    'cn': dict(type='mmext.CoordMLP', **SMALL, norm_cfg=dict(type='mmext.CrossNorm')),
    'mfn': dict(type='mmext.MFN', **SMALL, input_scale=8.0),
    'conv': dict(type='mmext.ConvINR', **SMALL),
}
FORMS = {
    'full': dict(),
    'no-trunk': dict(trunk_dim=None),
    'lowrank': dict(mode='lowrank', rank=2),
    'hidden-only': dict(layers=r'linears|layers'),
}


def build(network, form='full'):
    torch.manual_seed(2)
    return SPW(NETWORKS[network], condition_dim=10, **{'trunk_dim': 8, **FORMS[form]})


def train(model, grid, steps=3):
    model.set_condition(torch.randn(10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(grid) - 1).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('network', NETWORKS)
def test_starts_as_the_plain_network_and_folds_to_it(network, form):
    grid = coordinate_grid(7, 6)
    model = build(network, form)
    torch.manual_seed(2)
    plain = MODELS.build(NETWORKS[network])
    model.set_condition(torch.randn(10))
    assert torch.equal(model(grid), plain(grid))

    train(model, grid)
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    for name, weight in model.generated_weights().items():
        assert (weight - model.network.get_parameter(name)).abs().max() > 1e-6, name
    with torch.no_grad():
        whole = model(grid)
        model.freeze_stats(grid)
        frozen = model(grid)
        torch.testing.assert_close(frozen, whole, rtol=1e-3, atol=1e-4)
        folded = model.fold()
        torch.testing.assert_close(folded(grid), frozen, rtol=0, atol=1e-6)
        assert type(fold(copy.deepcopy(model))) is type(plain)
    plain.freeze_stats(grid)
    assert {n: t.shape for n, t in folded.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert {type(m) for m in folded.modules()} == {type(m) for m in plain.modules()}


def test_hidden_layers_alone_can_be_generated():
    assert build('relu').names == ('linears.0', 'linears.1', 'linears.2', 'head')
    assert build('relu', 'hidden-only').names == ('linears.0', 'linears.1', 'linears.2')


def test_number_of_parameters_of_the_generation_networks():
    network = dict(type='mmext.CoordMLP')
    plain = sum(p.numel() for p in MODELS.build(network).parameters())
    weights = 2 * 28 + 9 * 28 * 28 + 28 * 3
    for trunk, expected in ((None, 1568 * weights), (64, 1569 * 64 + 64 * weights), (16, 1569 * 16 + 16 * weights)):
        model = SPW(network, condition_dim=1568, trunk_dim=trunk)
        assert sum(p.numel() for p in model.parameters()) == plain + expected


def test_one_step_moves_the_weights_by_one_plus_the_square_of_the_condition():
    grid = coordinate_grid(5, 5, dtype=torch.float64)
    model = build('relu', 'no-trunk').double()
    model.set_condition(torch.randn(10, dtype=torch.float64))
    plain = copy.deepcopy(model.network)
    before = {n: p.detach().clone() for n, p in plain.named_parameters()}
    for net in (model, plain):
        (net(grid) - 1).square().mean().backward()
        torch.optim.SGD(net.parameters(), lr=0.01).step()
    factor = 1 + model.condition.square().sum()
    for name, weight in model.generated_weights().items():
        step = plain.get_parameter(name) - before[name]
        assert step.abs().max() > 0
        torch.testing.assert_close(weight - before[name], factor * step, rtol=1e-10, atol=1e-14)


def test_lowrank_form_has_that_rank():
    model = train(build('relu', 'lowrank'), coordinate_grid(6, 6), steps=5)
    difference = model.generated_weights()['linears.1.weight'] - model.network.linears[1].weight
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2


def test_the_encoder_describes_the_image_and_is_never_trained():
    encoder = SemanticEncoder(size=32)
    image, other = torch.rand(3, 40, 50), torch.rand(3, 40, 50)
    v = encoder(image)
    assert v.shape == (16 + 32 + 64,)
    assert torch.equal(encoder(image), v)
    assert not torch.equal(encoder(other), v)
    torch.testing.assert_close(encoder(torch.stack((image, other))), (v + encoder(other)) / 2)
    assert torch.equal(encoder(image[:1]), encoder(image[:1].expand(3, -1, -1)))
    assert torch.equal(SemanticEncoder(size=32)(image), v), 'the stand-in is the same everywhere'
    assert not [p for p in encoder.train().parameters() if p.requires_grad]
    assert not encoder.training


def test_stages_of_a_hosts_backbone():
    cfg = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    image = torch.rand(3, 32, 32)
    encoder = SemanticEncoder({**cfg, 'out_indices': (0, 1, 2, 3)}, size=None)
    state = {n: t.clone() for n, t in encoder.state_dict().items()}
    assert encoder(image).shape == (8 + 16 + 32 + 64,)
    assert all(torch.equal(t, state[n]) for n, t in encoder.state_dict().items())
    named = SemanticEncoder(cfg, modules=('layer1.0', 'layer2.1'))
    named.backbone.load_state_dict(encoder.backbone.state_dict())
    named.size = None
    torch.testing.assert_close(named(image)[8:], encoder(image)[8:24])
    with pytest.raises(ValueError, match=r'no submodule .*layer9'):
        SemanticEncoder(cfg, modules=('layer9',))


def test_a_signal_is_described_and_nothing_of_the_encoder_is_kept():
    model = SPW(NETWORKS['relu'], semantics=dict(type='mmext.SemanticEncoder', size=16))
    names = set(model.state_dict())
    image = torch.rand(1, 20, 20)
    before = torch.get_rng_state()
    model.set_signal(image)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.condition.mean().abs() < 1e-5
    assert model.condition.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert set(model.state_dict()) == names
    assert not [m for m in model.modules() if isinstance(m, (SemanticEncoder, RandomPyramid))]


@pytest.mark.parametrize('network', ['siren', 'cn', 'mfn', 'conv'])
def test_compiles_whole(network):
    model, grid = build(network), coordinate_grid(5, 6)
    model.set_condition(torch.randn(10))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(grid), model(grid), rtol=1e-4, atol=1e-5)


def test_initializing_again_draws_everything_anew():
    for form in ('full', 'lowrank'):
        model = build('siren', form)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        model.init_weights()
        assert not [n for n, p in model.named_parameters() if (p == 7).any()]


def test_bad_arguments():
    with pytest.raises(ValueError, match='SPW needs mode'):
        SPW(NETWORKS['relu'], mode='half')
    with pytest.raises(ValueError, match='no linear layer or convolution'):
        SPW(NETWORKS['relu'], layers='nothing')
    with pytest.raises(ValueError, match=r'SPW needs a condition of shape \(10,\), got \(9,\)'):
        build('relu').set_condition(torch.randn(9))
    assert isinstance(build('relu').trunk, nn.Linear)
