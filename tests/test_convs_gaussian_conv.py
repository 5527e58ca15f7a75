import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext.convs.gaussian_conv import GaussianConv2d
from mmext.folding import fold

COVARIANCES = ('iso', 'diag', 'full')


def make(*args, **kwargs) -> GaussianConv2d:
    """Build a layer in float64 with Gaussians of their own."""
    layer = GaussianConv2d(*args, **kwargs).double()
    with torch.no_grad():
        layer.log_sigma.uniform_(-0.4, 0.6)
    return layer


def gaussian_in_loops(layer: GaussianConv2d, numbers: list[float]) -> torch.Tensor:
    rows, cols = layer.reach
    if layer.covariance == 'full':
        a, b, c = numbers
        upper = torch.tensor([[math.exp(a), b], [0, math.exp(c)]], dtype=torch.float64)
    else:
        upper = torch.diag(torch.tensor([math.exp(numbers[0]), math.exp(numbers[-1])], dtype=torch.float64))
    precision = (upper.T @ upper).inverse()
    g = torch.zeros(2 * rows + 1, 2 * cols + 1, dtype=torch.float64)
    for r in range(-rows, rows + 1):
        for s in range(-cols, cols + 1):
            z = torch.tensor([-r, s], dtype=torch.float64)  # y upwards
            g[r + rows, s + cols] = torch.exp(-0.5 * z @ precision @ z)
    return g / g.sum()


@pytest.mark.parametrize('covariance', COVARIANCES)
@pytest.mark.parametrize('per', ['layer', 'channel'])
@pytest.mark.parametrize(('max_sigma', 'reach'), [(1.2, (3, 3)), ((1.2, 1.0), (3, 2)), ([1.0, 1.8], (2, 4))])
def test_kernel_is_the_full_convolution_with_the_gaussian(covariance, per, max_sigma, reach):
    layer = make(4, 6, (3, 2), groups=2, dilation=(1, 2), covariance=covariance, per=per, max_sigma=max_sigma)
    assert layer.reach == reach
    rows, cols = reach
    expected = torch.zeros(6, 2, 3 + 2 * rows, 3 + 2 * cols, dtype=torch.float64)
    for o in range(6):
        for i in range(2):
            channel = (o // 3) * 2 + i if per == 'channel' else 0
            g = gaussian_in_loops(layer, layer.log_sigma[channel].tolist())
            for u in range(3):
                for v in range(2):
                    expected[o, i, u : u + 2 * rows + 1, 2 * v : 2 * v + 2 * cols + 1] += (
                        layer.weight[o, i, u, v].detach() * g
                    )
    torch.testing.assert_close(layer.generate_kernel(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ('covariance', 'numbers', 'max_sigma', 'middle', 'edge'),
    [
        ('diag', [math.log(0.7), math.log(1.3)], (1.0, 1.5), 0.569912, 0.00962),
        ('full', [-0.2, -0.5, 0.4], (1.0, 2.0), 0.130931, None),
    ],
)
def test_values_of_the_released_window(covariance, numbers, max_sigma, middle, edge):
    """The middle of the profile of rows, and of the Gaussian, in a window that is cut as the released one is."""
    layer = GaussianConv2d(1, 1, 3, sigma=0.5, max_sigma=max_sigma, covariance=covariance).double()
    with torch.no_grad():
        layer.log_sigma[0] = torch.tensor(numbers)
        g = layer.gaussian()[0]
    rows, cols = layer.reach
    assert g.shape == ((5, 7) if covariance == 'diag' else (5, 9))
    profile = g.sum(1) if covariance == 'diag' else g[:, cols]
    assert profile[rows].item() == pytest.approx(middle, abs=1e-6)
    assert edge is None or profile[0].item() == pytest.approx(edge, abs=1e-6)


def test_covariance_tilts_the_kernel_with_y_upwards():
    layer = GaussianConv2d(1, 1, 3, covariance='full')
    with torch.no_grad():
        layer.log_sigma[0, 1] = 0.8  # y and x grow together
        g = layer.gaussian()[0]
    row, col = layer.reach
    up_right, down_right = g[row - 1, col + 1], g[row + 1, col + 1]
    assert up_right > 2 * down_right


@pytest.mark.parametrize('covariance', COVARIANCES)
def test_the_gaussian_keeps_the_sum_of_the_weights(covariance):
    layer = make(3, 4, 3, covariance=covariance, per='channel')
    torch.testing.assert_close(layer.generate_kernel().sum((2, 3)), layer.weight.sum((2, 3)))


@pytest.mark.parametrize('covariance', COVARIANCES)
def test_without_width_it_is_the_plain_convolution(covariance):
    layer = GaussianConv2d(4, 4, 3, padding=1, sigma=0.1, covariance=covariance, max_sigma=1.0)
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-5, atol=1e-6)


def test_the_forms_meet_where_there_is_no_covariance():
    layers = {c: GaussianConv2d(3, 4, 3, sigma=0.8, covariance=c).double() for c in COVARIANCES}
    for layer in layers.values():
        layer.load_state_dict(layers['iso'].state_dict() | {'log_sigma': layer.log_sigma})
    kernel = layers['iso'].generate_kernel()
    for layer in layers.values():
        torch.testing.assert_close(layer.generate_kernel(), kernel)


@pytest.mark.parametrize('covariance', COVARIANCES)
@pytest.mark.parametrize(
    'geometry',
    [
        dict(padding=1),
        dict(padding=(0, 2), stride=(2, 1)),
        dict(padding=2, dilation=2, groups=2, per='channel'),
        dict(padding='same', dilation=2),
        dict(padding='valid', bias=False),
        dict(padding=1, padding_mode='reflect', per='channel'),
        dict(padding='same', padding_mode='circular'),
        dict(padding=(0, 2), stride=(2, 1), max_sigma=(1.0, 2.4), per='channel'),
        dict(padding='same', dilation=2, max_sigma=(2.4, 1.0)),
    ],
)
def test_blur_and_convolution_are_the_generated_kernel(covariance, geometry):
    layer = make(4, 6, 3, covariance=covariance, **{'max_sigma': 1.0, **geometry})
    x = torch.randn(2, 4, 11, 12, dtype=torch.float64)
    expected = super(GaussianConv2d, layer).forward(x)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.fold()(x), expected)
    plain = nn.Conv2d(4, 6, 3, **{k: v for k, v in geometry.items() if k not in ('per', 'max_sigma')}).double()
    assert layer(x).shape == plain(x).shape


@pytest.mark.parametrize('padding', [0, 1])
def test_the_released_two_passes_differ_in_the_border_ring_only(padding):
    layer = make(3, 4, 3, padding=padding, bias=False)
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    blurred = F.conv2d(x, layer.gaussian().expand(3, 1, -1, -1), padding=layer.reach, groups=3)
    two_passes = F.conv2d(blurred, layer.weight, padding=padding)
    ring = padding
    inside = (..., slice(ring, 12 - 2 + 2 * padding - ring), slice(ring, 12 - 2 + 2 * padding - ring))
    torch.testing.assert_close(layer(x)[inside], two_passes[inside])
    assert torch.allclose(layer(x), two_passes) == (padding == 0)


@pytest.mark.parametrize('covariance', COVARIANCES)
@pytest.mark.parametrize('groups', [1, 4])
def test_gradcheck(covariance, groups):
    layer = make(4, 4, 3, groups=groups, padding=1, covariance=covariance, sigma=0.5)
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)

    def run(log_sigma, weight):
        return torch.func.functional_call(layer, dict(log_sigma=log_sigma, weight=weight), x)

    values = [layer.log_sigma.detach().requires_grad_(), layer.weight.detach().requires_grad_()]
    assert torch.autograd.gradcheck(run, values, fast_mode=True)


def test_the_start_is_a_round_gaussian_and_a_xavier_kernel():
    for covariance, numbers in zip(COVARIANCES, ([2], [2, 2], [2, 0, 2]), strict=True):
        layer = GaussianConv2d(64, 32, 3, sigma=math.exp(2), covariance=covariance, per='channel')
        assert layer.log_sigma.shape == (64, len(numbers))
        torch.testing.assert_close(layer.log_sigma, torch.tensor(numbers).expand(64, -1).float())
    bound = (6 / (96 * 9)) ** 0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_sizes_follow_max_sigma_and_not_sigma():
    layer = GaussianConv2d(8, 8, 3, groups=8, sigma=0.5, max_sigma=3.0, std_devs=2.5)
    before = layer.generate_kernel().shape
    assert before == (8, 1, 3 + 2 * 8, 3 + 2 * 8)
    nn.init.constant_(layer.log_sigma, 5.0)
    assert layer.generate_kernel().shape == before


@pytest.mark.parametrize('max_sigma', [2.0, (2.0, 3.0), (3.0, 2.0)])
@pytest.mark.parametrize('covariance', COVARIANCES)
def test_standard_deviations_are_kept_inside(covariance, max_sigma):
    layer = GaussianConv2d(6, 6, 3, covariance=covariance, per='channel', max_sigma=max_sigma)
    rows, cols = layer.max_sigma
    with torch.no_grad():
        layer.log_sigma[0] = 3.0
        layer.log_sigma[1] = -9.0
        layer.log_sigma[2] = 0.2
    layer.project_parameters()
    torch.testing.assert_close(layer.log_sigma[2], torch.full_like(layer.log_sigma[2], 0.2))
    sigmas = layer.log_sigma.exp()
    if covariance == 'full':
        a, b, c = layer.log_sigma.unbind(1)
        sigmas = torch.stack([a.exp(), torch.hypot(b, c.exp())], 1)
    assert sigmas[:, 0].max() <= rows * 1.0001
    assert sigmas[:, -1].max() <= cols * 1.0001
    assert sigmas[0, 0].item() == pytest.approx(min(rows, cols) if covariance == 'iso' else rows)
    assert sigmas[0, -1].item() == pytest.approx(min(rows, cols) if covariance == 'iso' else cols)
    assert layer.log_sigma[1, 0].exp().item() == pytest.approx(0.1)


def test_deployment_folds_a_depthwise_layer_and_leaves_a_dense_one():
    model = nn.Sequential(GaussianConv2d(4, 4, 3, groups=4), GaussianConv2d(4, 4, 3), GaussianConv2d(4, 4, 1)).eval()
    x = torch.randn(1, 4, 20, 20)
    expected = model(x)
    folded = fold(model)
    assert [type(m).__name__ for m in folded] == ['Conv2d', 'GaussianConv2d', 'Conv2d']
    torch.testing.assert_close(folded(x), expected)


def test_a_dense_layer_compiles_traces_and_runs_under_autocast_and_on_meta():
    layer = GaussianConv2d(4, 4, 3, padding=1).eval()
    x = torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='aot_eager')(x), expected)
        torch.testing.assert_close(torch.jit.trace(layer, x)(x), expected)
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(layer(x).float(), expected, rtol=0.05, atol=0.05)
        assert layer.to('meta')(x.to('meta')).shape == expected.shape


def test_a_dense_layer_runs_in_bfloat16():
    layer = GaussianConv2d(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 9, 9)
    expected = layer(x)
    out = layer.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_pointwise_layers_stay_plain():
    layer = GaussianConv2d(4, 8, 1)
    layer.init_weights()
    layer.project_parameters()
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias']
    assert layer.optim_options() == {}
    assert GaussianConv2d(4, 8, 3).optim_options() == dict(log_sigma=dict(decay_mult=0.0))


@pytest.mark.parametrize(
    ('kwargs', 'law'),
    [
        (dict(covariance='round'), "covariance .*, got covariance='round'"),
        (dict(per='pixel'), "per 'layer' or 'channel', got per='pixel'"),
        (dict(sigma=0.0), r'0.1 <= sigma <= max_sigma, .*, got sigma=0.0'),
        (dict(sigma=3.0, max_sigma=2.0), 'sigma=3.0, max_sigma=2.0'),
        (dict(sigma=1.0, max_sigma=(2.0, 0.5)), r'sigma=1.0, max_sigma=\(2.0, 0.5\)'),
        (dict(sigma=1.0, max_sigma=(2.0, 2.0, 2.0)), r'a number or a pair, .*, max_sigma=\(2.0, 2.0, 2.0\)'),
        (dict(std_devs=0), 'std_devs=0'),
        (dict(kernel_size=2, padding='same'), 'pads both sides alike.*kernel_size=\\(2, 2\\)'),
    ],
)
def test_bad_arguments(kwargs, law):
    with pytest.raises(ValueError, match=f'GaussianConv2d .*{law}'):
        GaussianConv2d(4, 4, **{'kernel_size': 3, **kwargs})
