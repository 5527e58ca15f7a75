import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmext.convs.complex_conv import ComplexConv2d
from mmext.convs.phconv import PHConv2d


def halves(z: torch.Tensor) -> torch.Tensor:
    return torch.cat([z.real, z.imag], 1)


def complex_input(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 7, 6, dtype=torch.complex128)


@pytest.mark.parametrize(
    'kwargs', [{}, dict(groups=2), dict(groups=4), dict(stride=2, padding=1, dilation=2, groups=2)]
)
def test_equals_torchs_complex_convolution(kwargs):
    layer, z = ComplexConv2d(8, 16, 3, bias=False, **kwargs).double(), complex_input(4)
    expected = F.conv2d(z, torch.complex(layer.real, layer.imag), **kwargs)
    torch.testing.assert_close(layer(halves(z)), halves(expected), rtol=1e-10, atol=1e-10)


def test_a_turn_of_the_input_turns_the_output():
    layer, z = ComplexConv2d(8, 6, 3, bias=False).double(), complex_input(4)
    y = torch.complex(*layer(halves(z)).chunk(2, 1))
    torch.testing.assert_close(layer(halves(1j * z)), halves(1j * y), rtol=1e-10, atol=1e-10)


def test_a_real_kernel_serves_both_parts_alike():
    layer, z = ComplexConv2d(8, 6, 3, bias=False).double(), complex_input(4)
    with torch.no_grad():
        layer.imag.zero_()
    for part, y in zip((z.real, z.imag), layer(halves(z)).chunk(2, 1), strict=True):
        torch.testing.assert_close(y, F.conv2d(part, layer.real), rtol=1e-10, atol=1e-10)


def test_is_a_hypercomplex_convolution_with_the_complex_algebra():
    layer, other = ComplexConv2d(8, 6, 3), PHConv2d(8, 6, 3, n=2)
    with torch.no_grad():
        other.algebra.copy_(torch.tensor([[[1.0, 0], [0, 1]], [[0, -1], [1, 0]]]))
        other.filters.copy_(torch.cat([layer.real, layer.imag]))
    assert torch.equal(layer.generate_kernel(), other.generate_kernel())


def test_folds_to_a_dense_layer_with_half_as_many_free_numbers():
    layer = ComplexConv2d(8, 16, 3, groups=2)
    plain = layer.fold()
    assert plain.groups == 1
    assert plain.weight.shape == (16, 8, 3, 3)
    assert plain.weight.count_nonzero() == 16 * 8 * 9 / 2
    assert layer.real.numel() + layer.imag.numel() == 16 * 8 * 9 / 2 / 2


@pytest.mark.parametrize(('init', 'fan'), [('he', 32 * 9), ('glorot', (32 + 64) * 9)])
def test_modulus_is_rayleigh_distributed_and_the_phase_uniform(init, fan):
    layer = ComplexConv2d(64, 128, 3, init=init)
    numbers = torch.complex(layer.real, layer.imag)
    assert numbers.abs().mean().item() == pytest.approx((math.pi / 2 / fan) ** 0.5, rel=0.02)
    assert numbers.abs().square().mean().item() == pytest.approx(2 / fan, rel=0.03)
    quadrants = torch.histc(numbers.angle(), 4, -math.pi, math.pi) / numbers.numel()
    torch.testing.assert_close(quadrants, torch.full((4,), 0.25), rtol=0, atol=0.02)
    assert layer.bias.eq(0).all()
    if init == 'he':
        assert layer.generate_kernel().var().item() == pytest.approx(2 / (64 * 9), rel=0.03)


@pytest.mark.parametrize('groups', [1, 2])
def test_a_complex_kernel_is_taken_exactly(groups):
    source, target = (ComplexConv2d(8, 12, 3, groups=groups) for _ in range(2))
    dense = ComplexConv2d(8, 12, 3)
    with torch.no_grad():
        dense.load_kernel(source.generate_kernel())
    torch.testing.assert_close(dense.generate_kernel(), source.generate_kernel())
    if groups == 1:
        target.load_state_dict(source.fold().state_dict())
        torch.testing.assert_close(target.real, source.real)
        torch.testing.assert_close(target.imag, source.imag)


@pytest.mark.parametrize('groups', [1, 2])
def test_any_other_kernel_is_approached_by_the_nearest(groups):
    layer = ComplexConv2d(8, 12, 3, groups=groups).double()
    plain = nn.Conv2d(8, 12, 3, groups=groups, bias=False).double()
    dense = nn.init.dirac_(torch.empty(8, 8, 1, 1, dtype=torch.float64))
    dense = F.conv2d(dense, plain.weight, padding=2, groups=groups).flip(-1, -2).transpose(0, 1)
    with torch.no_grad():
        layer.load_kernel(plain.weight)

    def distance(real, imag):
        kernel = torch.func.functional_call(Kernel(layer), {'layer.real': real, 'layer.imag': imag}, ())
        return (kernel - dense).square().sum()

    gradients = torch.autograd.grad(distance(layer.real, layer.imag), [layer.real, layer.imag])
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    assert 0 < distance(layer.real, layer.imag) < dense.square().sum()


class Kernel(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.generate_kernel()


def test_a_real_image_makes_a_plain_layer():
    layer = ComplexConv2d(3, 8, 7)
    assert layer.plain
    assert layer.weight.shape == (8, 3, 7, 7)


@pytest.mark.parametrize(
    ('inputs', 'outputs', 'groups'), [(4, 5, 1), (3, 5, 1), (8, 8, 8), (4, 4, 4), (3, 6, 3), (8, 4, 4)]
)
def test_channels_that_do_not_pair_are_refused(inputs, outputs, groups):
    with pytest.raises(ValueError, match=rf'ComplexConv2d pairs channels .* in_channels={inputs}, .* groups={groups}'):
        ComplexConv2d(inputs, outputs, 3, groups=groups)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="ComplexConv2d needs init 'he' or 'glorot', got init='ones'"):
        ComplexConv2d(4, 4, 3, init='ones')


def test_gradcheck_through_both_parts():
    layer = ComplexConv2d(4, 4, 3, groups=2).double()
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)

    def run(real, imag):
        return torch.func.functional_call(layer, dict(real=real, imag=imag), x)

    given = [p.detach().clone().requires_grad_() for p in (layer.real, layer.imag)]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


def test_a_whole_network_of_it():
    cfg = dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8)
    model = ROOT_MODELS.build({**cfg, 'conv_cfg': dict(type='mmext.ComplexConv2d')})
    model.init_weights()
    plain = [n for n, m in model.named_modules() if isinstance(m, ComplexConv2d) and m.plain]
    assert plain == ['conv1']
    assert model(torch.randn(2, 3, 64, 64))[0].isfinite().all()
