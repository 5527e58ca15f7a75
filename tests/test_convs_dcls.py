import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.dcls import DCLSConv2d

VERSIONS = ('v0', 'v1', 'max', 'gauss')


def make(version: str, *args, spread: float = 2.0, **kwargs) -> DCLSConv2d:
    """Build a layer in float64 with points all over the window and widths of their own."""
    layer = DCLSConv2d(*args, version=version, **kwargs).double()
    with torch.no_grad():
        layer.P.uniform_(-spread, spread)
        layer.project_parameters()
        if layer.SIG is not None:
            layer.SIG.uniform_(-0.6, 0.6)
    return layer


def profile(version: str, d: float, sig: float) -> float:
    if version == 'gauss':
        return math.exp(-0.5 * (d / (abs(sig) + 0.27)) ** 2)
    return max(0.0, (abs(sig) + 1 if version == 'max' else 1.0) - abs(d))


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('kernel_size', [(5, 7), (4, 5)])
def test_kernel_equals_the_definition_in_loops(version, kernel_size):
    layer = make(version, 4, 6, kernel_size, groups=2, kernel_count=3)
    height, width = kernel_size
    expected = torch.zeros(6, 2, height, width, dtype=torch.float64)
    for o in range(6):
        for i in range(2):
            for m in range(3):
                (y, x), sig = layer.P[:, o, i, m].tolist(), [0.0, 0.0]
                if layer.SIG is not None:
                    sig = layer.SIG[:, o, i, m].tolist()
                drawn = torch.tensor(
                    [
                        [
                            profile(version, r - height // 2 - y, sig[0]) * profile(version, s - width // 2 - x, sig[1])
                            for s in range(width)
                        ]
                        for r in range(height)
                    ],
                    dtype=torch.float64,
                )
                if version != 'v0':
                    drawn = drawn / (drawn.sum() + 1e-7)
                expected[o, i] += layer.point_weight[o, i, m].item() * drawn
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(('version', 'tolerance'), [('v0', 0), ('v1', 1e-6)])
def test_points_on_a_lattice_are_a_dilated_convolution(version, tolerance):
    layer = DCLSConv2d(4, 4, 7, padding=3, kernel_count=9, version=version)
    dilated = nn.Conv2d(4, 4, 3, padding=3, dilation=3)
    lattice = torch.tensor([-3.0, 0.0, 3.0])
    with torch.no_grad():
        layer.point_weight.copy_(dilated.weight.flatten(2))
        layer.P[0] = lattice.repeat_interleave(3)
        layer.P[1] = lattice.repeat(3)
        layer.bias.copy_(dilated.bias)
    sparse = torch.zeros(4, 4, 7, 7)
    sparse[..., ::3, ::3] = dilated.weight.detach()
    torch.testing.assert_close(layer.fold().weight, sparse, rtol=tolerance, atol=tolerance)
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), dilated(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('version', ['v1', 'max', 'gauss'])
def test_a_normalized_point_keeps_its_weight(version):
    layer = make(version, 2, 3, 7)
    torch.testing.assert_close(layer.generate_kernel().sum((2, 3)), layer.point_weight.sum(2), rtol=1e-5, atol=1e-6)


def test_the_versions_meet():
    bilinear, triangle, wide = (make(version, 2, 3, 7) for version in ('v0', 'v1', 'max'))
    for other in (triangle, wide):
        other.load_state_dict(bilinear.state_dict(), strict=False)
    nn.init.zeros_(wide.SIG)
    torch.testing.assert_close(triangle.generate_kernel(), bilinear.generate_kernel(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(wide.generate_kernel(), triangle.generate_kernel(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('version', VERSIONS)
def test_gradcheck(version):
    layer = make(version, 2, 2, (5, 3), kernel_count=3, spread=0.9)
    names = [name for name, _ in layer.named_parameters() if name != 'bias']

    def kernel(*values):
        return torch.func.functional_call(
            _Kernel(layer), {f'layer.{n}': v for n, v in zip(names, values, strict=True)}, ()
        )

    assert names == ['point_weight', 'P'] + (['SIG'] if version in ('max', 'gauss') else [])
    values = [layer.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(kernel, values)
    assert torch.autograd.gradgradcheck(kernel, values)


class _Kernel(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.generate_kernel()


@pytest.mark.parametrize('version', ['v0', 'v1', 'max'])
@pytest.mark.parametrize('place', [0.0, 1.0, -2.0, 2.0])
def test_a_point_on_a_pixel_has_the_derivative_to_the_right(place, version):
    """In particular one that was stopped at the border, which otherwise would never leave it."""
    layer = DCLSConv2d(1, 1, (1, 5), kernel_count=1, version=version).double()
    nn.init.ones_(layer.point_weight)

    def at(x):
        with torch.no_grad():
            layer.P[0], layer.P[1] = 0, x
        return layer.generate_kernel().flatten()

    slope = (at(place + 1e-6) - at(place)).detach() / 1e-6
    for tap in range(5):
        layer.zero_grad()
        at(place)[tap].backward()
        assert layer.P.grad[1].item() == pytest.approx(slope[tap].item(), abs=1e-5)


@pytest.mark.parametrize(
    ('kernel_size', 'bounds'), [((7, 3), ((-3, 3), (-1, 1))), ((4, 2), ((-2, 1), (-1, 0))), ((1, 3), ((0, 0), (-1, 1)))]
)
def test_positions_are_kept_inside(kernel_size, bounds):
    layer = DCLSConv2d(4, 4, kernel_size, version='v0')
    with torch.no_grad():
        layer.P.uniform_(-20, 20)
    layer.project_parameters()
    for positions, (low, high) in zip(layer.P, bounds, strict=True):
        assert (positions.min(), positions.max()) == (low, high)
    # Whoever stands on the last row or column is still drawn.
    torch.testing.assert_close(layer.generate_kernel().sum((2, 3)), layer.point_weight.sum(2))


def test_initialization_is_the_released_one():
    layer = DCLSConv2d(64, 64, 17, kernel_count=34, groups=4)
    bound = (16 * 34) ** -0.5
    for drawn in (layer.point_weight, layer.bias):
        assert drawn.abs().max() <= bound
    assert layer.point_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.P.shape == (2, 64, 16, 34)
    assert layer.P.std().item() == pytest.approx(0.5, rel=0.02)
    assert (layer.SIG == 0.23).all()
    with torch.no_grad():
        layer.P.fill_(9)
    layer.init_weights()
    assert layer.P.abs().max() < 4
    assert DCLSConv2d(64, 64, 3).P.abs().max() == 1
    assert DCLSConv2d(4, 4, 3, version='v1').SIG is None


@pytest.mark.parametrize('version', ['max', 'gauss'])
def test_widths_learn_from_the_start_and_from_a_given_kernel(version):
    layer = DCLSConv2d(4, 4, 5, padding=2, version=version)
    for start in (layer.init_weights, lambda: layer.load_state_dict(nn.Conv2d(4, 4, 5).state_dict())):
        start()
        layer.zero_grad()
        layer(torch.randn(1, 4, 8, 8)).square().sum().backward()
        assert layer.SIG.grad.abs().sum() > 0
        assert layer.P.grad.abs().sum() > 0


@pytest.mark.parametrize(('version', 'tolerance'), [('v0', 0.0), ('v1', 1e-6), ('max', 5e-3), ('gauss', 0.03)])
@pytest.mark.parametrize('kernel_size', [(3, 3), (2, 3), (1, 1), (7, 5)])
def test_a_plain_kernel_up_to_the_window_is_taken(version, tolerance, kernel_size):
    layer = DCLSConv2d(4, 6, (7, 5), padding=(3, 2), kernel_count=36, version=version, bias=False)
    plain = nn.Conv2d(4, 6, kernel_size, padding=tuple(k // 2 for k in kernel_size), bias=False)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 12, 12)
    expected = plain(x)[..., :12, :12]  # an even kernel's padding gives one row more
    assert (layer(x) - expected).norm() <= tolerance * expected.norm() + 1e-5


def test_the_largest_taps_are_taken():
    layer = DCLSConv2d(1, 1, 3, kernel_count=2, version='v0', bias=False)
    layer.load_state_dict({'weight': torch.tensor([[[[0.1, -3.0, 0.2], [0.0, 0.5, 0.0], [2.0, 0.0, 0.4]]]])})
    assert layer.fold().weight.tolist() == [[[[0, -3, 0], [0, 0, 0], [2, 0, 0]]]]


def test_a_larger_kernel_is_refused():
    with pytest.raises(RuntimeError, match='Unexpected key'):
        DCLSConv2d(1, 1, 3).load_state_dict(nn.Conv2d(1, 1, 5).state_dict())


def test_surgery_keeps_what_a_network_computes():
    stock = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    rules = [
        dict(
            kernel_size=3,
            stride=1,
            to=dict(type='mmext.DCLSConv2d', kernel_size=7, padding=3, kernel_count=9, version='v0'),
        )
    ]
    plain = ROOT_MODELS.build(stock)
    model = ROOT_MODELS.build({**stock, 'type': 'mmext.swap_layers', 'model': 'mmpretrain.ResNet', 'rules': rules})
    model.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    model.eval()
    plain.eval()
    for a, b in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('version', VERSIONS)
def test_compiles_and_traces(version):
    layer = DCLSConv2d(4, 4, 5, groups=4, version=version)
    x = torch.randn(1, 4, 8, 8)
    layer(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    compiled(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-5)
    layer.eval().requires_grad_(False)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))


def test_a_depthwise_layer_of_the_paper_has_its_size():
    layer = DCLSConv2d(96, 96, 17, groups=96, padding=8, kernel_count=34, version='v0')
    assert layer(torch.randn(1, 96, 20, 20)).shape == (1, 96, 20, 20)
    # 34 of 289 taps; with the positions, which the paper shares among the blocks of a stage, 102 numbers.
    assert {n: p[..., 0, 0, :].numel() if n == 'P' else p[0].numel() for n, p in layer.named_parameters()} == {
        'point_weight': 34,
        'P': 68,
        'bias': 1,
    }


def test_options_for_the_optimizer():
    fast = dict(lr_mult=5.0, decay_mult=0.0)
    assert DCLSConv2d(4, 4, 3, version='v1').optim_options() == {'P': fast}
    assert DCLSConv2d(4, 4, 3).optim_options() == {'P': fast, 'SIG': fast}
    assert DCLSConv2d(4, 4, 1).optim_options() == {}


def test_pointwise_layers_stay_plain():
    layer = DCLSConv2d(4, 8, 1)
    layer.init_weights()
    layer.project_parameters()
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ('kwargs', 'law'),
    [
        (dict(kernel_count=0), 'positive kernel_count, got kernel_count=0'),
        (dict(version='v2'), "'max' or 'gauss', got version='v2'"),
    ],
)
def test_bad_arguments(kwargs, law):
    with pytest.raises(ValueError, match=f'DCLSConv2d needs .*{law}'):
        DCLSConv2d(4, 4, 3, **kwargs)
