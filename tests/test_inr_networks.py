"""Coordinate networks: encodings, activations, parameter counts, layouts, frozen statistics and initialization."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from mmext.inr import MFN, CoordMLP, FourierFeatures, PositionalEncoding, SineActivation, coordinate_grid

PE = dict(type='mmext.PositionalEncoding')
SIREN = dict(type='mmext.SineActivation')
# The 28 x 10 networks of the released code: arguments, parameters, buffers.
VARIANTS = {
    'relu': (dict(), 7479, 0),
    'siren': (dict(act_cfg=dict(SIREN, bias_init='weight')), 7479, 0),
    'pemlp': (dict(encoding=PE), 8599, 0),
    'bn': (dict(norm_cfg=dict(type='BN')), 8039, 570),
    'ln': (dict(norm_cfg=dict(type='LN')), 8039, 0),
    'gn': (dict(norm_cfg=dict(type='mmext.GlobalNorm')), 8039, 0),
    'cn': (dict(norm_cfg=dict(type='mmext.CrossNorm')), 8039, 0),
    'bn+pe': (dict(norm_cfg=dict(type='BN'), encoding=PE), 9159, 570),
    'ln+pe': (dict(norm_cfg=dict(type='LN'), encoding=PE), 9159, 0),
    'gn+pe': (dict(norm_cfg=dict(type='mmext.GlobalNorm'), encoding=PE), 9159, 0),
    'cn+pe': (dict(norm_cfg=dict(type='mmext.CrossNorm'), encoding=PE), 9159, 0),
}
SMALL = dict(width=8, depth=3)
NETWORKS = {
    **{name: dict(type='mmext.CoordMLP', **SMALL, **args) for name, (args, _, _) in VARIANTS.items()},
    'gauss': dict(type='mmext.CoordMLP', **SMALL, act_cfg=dict(type='mmext.GaussianActivation')),
    'wire': dict(type='mmext.CoordMLP', **SMALL, act_cfg=dict(type='mmext.WaveletActivation', w0=5.0, s0=2.0)),
    'fourier': dict(type='mmext.CoordMLP', **SMALL, encoding=dict(type='mmext.FourierFeatures', num_frequencies=4)),
    'mfn-fourier': dict(type='mmext.MFN', **SMALL, filter_type='fourier', input_scale=8.0),
    'mfn-gabor': dict(type='mmext.MFN', **SMALL, filter_type='gabor', input_scale=8.0),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return MODELS.build(NETWORKS[request.param])


def words(tensors):
    return sum(t.numel() * (2 if t.is_complex() else 1) for t in tensors)


# --- counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', VARIANTS)
def test_official_networks_have_the_published_number_of_parameters(variant):
    args, parameters, buffers = VARIANTS[variant]
    model = CoordMLP(**args)
    assert words(model.parameters()) == parameters
    assert words(model.buffers()) == buffers
    assert len(model.state_dict()) == len(list(model.parameters())) + len(list(model.buffers()))


def test_a_norm_on_the_output_gives_the_published_bits_per_pixel():
    """The released results of BN are larger than its code by one BatchNorm1d(3) with an int64 counter."""
    plain, last = (CoordMLP(norm_cfg=dict(type='BN'), norm_last=last) for last in (False, True))

    def bits(model):
        return sum(8 * t.numel() * t.element_size() for t in model.state_dict().values()) / 512**2

    assert bits(CoordMLP()) == pytest.approx(0.91296, abs=1e-5)
    assert bits(plain) == pytest.approx(1.05212, abs=1e-5)
    assert bits(last) == pytest.approx(1.05383, abs=1e-5)
    assert bits(CoordMLP(norm_cfg=dict(type='BN'), norm_last=True, encoding=PE)) == pytest.approx(1.19055, abs=1e-5)


def test_sizes_of_the_baselines():
    assert words(CoordMLP(width=256, depth=4).parameters()) == 198915
    wire = CoordMLP(width=28, depth=3, act_cfg=dict(type='mmext.WaveletActivation'))
    assert wire.width == 19
    assert [linear.weight.dtype for linear in wire.linears] == [torch.float32, torch.complex64, torch.complex64]
    assert wire.head.weight.dtype == torch.complex64


# --- parts ---------------------------------------------------------------------------------------------------------------


def test_coordinates_of_a_grid():
    grid = coordinate_grid(3, 5)
    assert grid.shape == (3, 5, 2)
    assert grid[0, 0].tolist() == [-1, -1]
    assert grid[2, 0].tolist() == [1, -1]
    assert grid[1, 3].tolist() == [0, 0.5]


def test_positional_encoding_in_its_two_orders():
    assert PositionalEncoding()(torch.zeros(2)).tolist() == [0, 0] + [0, 0, 1, 1] * 10
    point = torch.tensor([0.3, -0.7], dtype=torch.float64)
    row, column = point.tolist()
    by_function, by_axis = [row, column], []
    for octave in range(3):
        f = 2**octave * math.pi
        by_function += [math.sin(f * row), math.sin(f * column), math.cos(f * row), math.cos(f * column)]
        by_axis += [math.sin(f * row), math.cos(f * row), math.sin(f * column), math.cos(f * column)]
    encode = PositionalEncoding(num_octaves=3)
    assert encode(point).tolist() == pytest.approx(by_function, abs=1e-12)
    encode = PositionalEncoding(num_octaves=3, include_input=False, order='axis')
    assert encode.out_features == 12
    assert encode(point).tolist() == pytest.approx(by_axis, abs=1e-12)


def test_fourier_features():
    encode = FourierFeatures(num_frequencies=2000, sigma=3.0)
    assert encode.frequencies.std().item() == pytest.approx(3, rel=0.05)
    assert 'frequencies' in encode.state_dict()
    assert not list(encode.parameters())
    points = torch.randn(4, 2)
    phase = 2 * math.pi * points @ encode.frequencies.T
    torch.testing.assert_close(encode(points), torch.cat((phase.cos(), phase.sin()), -1), rtol=0, atol=1e-4)
    before = torch.get_rng_state()
    assert torch.equal(FourierFeatures(seed=3).frequencies, FourierFeatures(seed=3).frequencies)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(FourierFeatures().frequencies, FourierFeatures().frequencies)


def test_encodings_stay_exact_under_autocast():
    points = torch.rand(50, 2)
    for encode in (PositionalEncoding(), FourierFeatures(sigma=20.0)):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            low = encode(points)
        assert torch.equal(low, encode(points))


def test_activations():
    z = torch.randn(20, dtype=torch.float64)
    build = MODELS.build
    torch.testing.assert_close(build(dict(SIREN, w0=3.0))(z), torch.sin(3 * z))
    torch.testing.assert_close(build(dict(type='mmext.GaussianActivation', scale=2.0))(z), torch.exp(-4 * z**2))
    wavelet = build(dict(type='mmext.WaveletActivation', w0=3.0, s0=2.0))
    envelope = torch.exp(-4 * z**2)
    torch.testing.assert_close(wavelet(z), torch.complex(envelope * (3 * z).cos(), envelope * (3 * z).sin()))
    c = torch.complex(z, z.flip(0))
    expected = torch.exp(-3 * c.imag - 4 * (c.real**2 + c.imag**2))
    torch.testing.assert_close(wavelet(c).real, expected * (3 * c.real).cos())


# --- initialization ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('bias_init', 'first', 'hidden'), [('zero', 7.1, (0.92, 0.99)), ('default', 13.5, (1.44, 1.56))]
)
def test_siren_pre_activations(bias_init, first, hidden):
    model = CoordMLP(width=256, depth=4, act_cfg=SIREN)
    if bias_init == 'zero':
        for linear in model.linears:
            nn.init.zeros_(linear.bias)
    spreads = []
    for act in model.activations:
        act.register_forward_hook(lambda m, args, out: spreads.append((m.w0 * args[0]).std().item()))
    model(coordinate_grid(64, 64))
    assert spreads[0] == pytest.approx(first, rel=0.08)
    assert all(hidden[0] - 0.05 < spread < hidden[1] + 0.05 for spread in spreads[1:]), spreads


def test_siren_ranges():
    model = CoordMLP(width=64, depth=3, act_cfg=dict(SIREN, w0=20.0, first_w0=50.0, bias_init='weight'))
    assert [act.w0 for act in model.activations] == [50, 20, 20]
    bounds = [1 / 2, *[(6 / 64) ** 0.5 / 20] * 3]
    for linear, bound in zip([*model.linears, model.head], bounds, strict=True):
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert 0.5 * bound < linear.bias.abs().max() <= bound
    linear = nn.Linear(64, 512)
    SineActivation().init_linear(linear)
    assert linear.bias.abs().max().item() == pytest.approx(1 / 8, rel=0.05)


def test_wavelet_layers_have_torchs_initialization():
    wire = CoordMLP(width=128, depth=3, act_cfg=dict(type='mmext.WaveletActivation'))
    weight = wire.linears[1].weight
    torch.manual_seed(5)
    reference = nn.Linear(wire.width, wire.width, dtype=torch.cfloat).weight
    assert weight.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.2)


def test_initializing_again_draws_everything_anew(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7.0)
    network.init_weights()
    assert not [n for n, p in network.named_parameters() if (p == 7).any()]
    torch.manual_seed(3)
    network.init_weights()
    values = network(coordinate_grid(4, 4))
    torch.manual_seed(3)
    network.reset_parameters()
    assert torch.equal(network(coordinate_grid(4, 4)), values)


# --- the networks --------------------------------------------------------------------------------------------------------


def test_values_come_in_the_layout_of_the_coordinates(network):
    grid = coordinate_grid(6, 5)
    values = network(grid)
    assert values.shape == (6, 5, 3)
    assert values.dtype == torch.float32
    assert torch.equal(network(grid.view(-1, 2)), values.view(-1, 3))
    assert torch.equal(network(grid.view(2, 3, 5, 2)), values.view(2, 3, 5, 3))


def test_every_parameter_learns(network):
    network(coordinate_grid(6, 5)).square().mean().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_frozen_network_is_evaluated_point_by_point(network):
    grid = coordinate_grid(9, 8)
    whole = network.train()(grid).detach()
    network.freeze_stats(grid)
    assert not network.training
    with torch.no_grad():
        torch.testing.assert_close(network(grid), whole, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(network(grid[2, 3]), whole[2, 3], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(network(grid[:, 1::3]), whole[:, 1::3], rtol=1e-3, atol=1e-5)


def test_derivatives(network):
    network.double()
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.weight.is_complex():
            module.to(torch.complex128)
    points = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    # A small step crosses no kink of ReLU.
    assert torch.autograd.gradcheck(network, (points,), eps=1e-7, atol=1e-3, rtol=1e-2)


def test_compiles_whole(network):
    grid = coordinate_grid(4, 5)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend='aot_eager')
    values = compiled(grid)
    torch.testing.assert_close(values, network(grid), rtol=1e-4, atol=1e-5)
    values.square().mean().backward()


def test_half_precision_and_autocast_run(network):
    grid = coordinate_grid(6, 5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.isfinite(network(grid)).all()
    if not network.__dict__.get('complex_valued'):
        assert network.bfloat16()(grid).dtype == torch.bfloat16


def test_runs_on_the_meta_device(network):
    assert network.to('meta')(coordinate_grid(4, 5, device='meta')).shape == (4, 5, 3)


def test_norm_position_and_the_last_norm():
    for position in ('pre', 'post'):
        model = CoordMLP(width=6, depth=1, norm_cfg=dict(type='LN'), norm_position=position, norm_last=True)
        points = torch.randn(5, 2)
        z = model.linears[0](points)
        hidden = F.relu(F.layer_norm(z, (6,))) if position == 'pre' else F.layer_norm(F.relu(z), (6,))
        torch.testing.assert_close(model(points), F.layer_norm(model.head(hidden), (3,)))


# --- multiplicative filters ----------------------------------------------------------------------------------------------


def test_one_filter_is_a_linear_map_of_the_filter():
    points = torch.randn(7, 2)
    for kind in ('fourier', 'gabor'):
        model = MFN(width=5, depth=1, filter_type=kind)
        torch.testing.assert_close(model(points), model.head(model.filters[0](points)))
        assert not len(model.linears)


def test_gabor_filter_equals_its_definition():
    model = MFN(width=5, depth=2, input_scale=3.0)
    points, filter_ = torch.randn(7, 2), model.filters[1]
    distance = (points[:, None] - filter_.mu).square().sum(-1)
    wave = torch.sin(points @ filter_.weight.T + filter_.bias)
    torch.testing.assert_close(filter_(points), wave * torch.exp(-filter_.gamma / 2 * distance))
    first = model.filters[0](points)
    torch.testing.assert_close(model(points), model.head(model.linears[0](first) * filter_(points)))


def test_filters_start_in_their_distributions():
    model = MFN(width=4000, depth=2, input_scale=64.0, alpha=6.0, beta=2.0)
    filter_ = model.filters[0]
    assert filter_.gamma.mean().item() == pytest.approx(6 / 2 / 2, rel=0.05)
    assert filter_.gamma.var().item() == pytest.approx(6 / 2 / 4, rel=0.15)
    assert 0.99 < filter_.mu.abs().max() <= 1
    assert 0.99 * math.pi < filter_.bias.abs().max() <= math.pi
    frequencies = filter_.weight / filter_.gamma.sqrt()[:, None]
    assert frequencies.abs().max().item() == pytest.approx(64 / 2**0.5 / 2**0.5, rel=0.01)
    assert model.linears[0].weight.abs().max().item() == pytest.approx(4000**-0.5, rel=0.01)


# --- bad arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(norm_position='in'), 'CoordMLP needs norm_position'),
        (dict(depth=0), 'CoordMLP needs one hidden layer'),
        (dict(encoding=dict(PE, in_features=3)), 'encoding of 3 coordinates'),
        (
            dict(act_cfg=dict(type='mmext.WaveletActivation', orthogonal=True), norm_cfg=dict(type='BN')),
            "pass norm_position='post'",
        ),
        (dict(encoding=dict(PE, order='x')), 'PositionalEncoding needs order'),
        (dict(encoding=dict(PE, num_octaves=0, include_input=False)), 'no feature'),
        (dict(act_cfg=dict(SIREN, bias_init='x')), 'bias_init'),
        (dict(type='mmext.MFN', filter_type='x'), 'MFN needs filter_type'),
        (dict(type='mmext.MFN', depth=0), 'MFN needs one filter'),
    ],
)
def test_bad_arguments(cfg, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({'type': 'mmext.CoordMLP', **cfg})
