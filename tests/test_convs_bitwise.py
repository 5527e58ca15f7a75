import pytest
import torch

from mmext.convs.bitwise import BitwiseConv2d


def definition(layer):
    kernel = torch.zeros_like(layer.sign_bits)
    for index, raw in enumerate(layer.magnitude_bits.chunk(layer.bits - 1)):
        kernel += (raw > 0) * 2**index
    return layer.alpha * torch.where(layer.sign_bits > 0, -kernel, kernel)


@pytest.mark.parametrize('bits', [2, 5, 8])
def test_kernel_is_the_definition(bits):
    layer = BitwiseConv2d(6, 8, 3, bits=bits).double()
    torch.testing.assert_close(layer.fold().weight, definition(layer))
    levels, alpha = layer.integers()
    assert levels.dtype == torch.int8
    assert levels.abs().max() <= 2 ** (bits - 1) - 1
    torch.testing.assert_close(levels * alpha, layer.fold().weight)


@pytest.mark.parametrize('bits', [2, 3, 8])
@pytest.mark.parametrize('channels', [1, 3, 64])
def test_start_has_hes_standard_deviation(bits, channels):
    layer = BitwiseConv2d(channels, 256, 3, bits=bits)
    assert layer.fold().weight.std().item() == pytest.approx((2 / (9 * channels)) ** 0.5, rel=0.05)


def test_untrained_levels_are_those_of_the_sheet():
    levels = BitwiseConv2d(64, 256, 3).integers()[0].float()
    assert levels.std().item() == pytest.approx(73.3, rel=0.02)
    assert (levels == 0).float().mean().item() == pytest.approx(2**-7, rel=0.2)


def test_derivatives_are_straight_through():
    layer = BitwiseConv2d(2, 3, 3, bits=4).double()
    coming = torch.randn(3, 2, 3, 3).double()
    layer.generate_kernel().backward(coming)
    sign = torch.where(layer.sign_bits > 0, -1.0, 1.0)
    for index, grad in enumerate(layer.magnitude_bits.grad.chunk(3)):
        torch.testing.assert_close(grad, layer.alpha * sign * 2**index * coming)
    whole = sum((raw > 0) * 2**index for index, raw in enumerate(layer.magnitude_bits.chunk(3)))
    torch.testing.assert_close(layer.sign_bits.grad, -layer.alpha * whole * coming)


def test_frozen_bits_do_not_move():
    layer = BitwiseConv2d(4, 4, 3, bits=4, trainable_bits=(2,))
    before = layer.magnitude_bits.detach().clone()
    layer(torch.randn(1, 4, 5, 5)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert torch.equal(layer.magnitude_bits[:8], before[:8])
    assert not torch.equal(layer.magnitude_bits[8:], before[8:])


@pytest.mark.parametrize('bits', [2, 8])
def test_a_given_kernel_is_met_to_half_a_level(bits):
    kernel = torch.randn(8, 6, 3, 3)
    layer = BitwiseConv2d(6, 8, 3, bits=bits)
    layer.load_state_dict({'weight': kernel, 'bias': torch.zeros(8)})
    assert (layer.fold().weight - kernel).abs().max() <= layer.alpha / 2 * 1.0001
    layer.load_state_dict({'weight': torch.zeros(8, 6, 3, 3), 'bias': torch.zeros(8)})
    assert not layer.fold().weight.any()


@pytest.mark.parametrize('kwargs', [dict(bits=1), dict(bits=9), dict(bits=2.5), dict(bits=4, trainable_bits=(3,))])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=r'BitwiseConv2d (has|needs) .*, got .*bits='):
        BitwiseConv2d(4, 4, 3, **kwargs)
