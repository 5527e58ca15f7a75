import pytest
import torch
from helpers import shake

from mmext.evolution.dynamic_filter import DynamicFilter2d


def build(channels=8, **kwargs):
    layer = DynamicFilter2d(
        channels, channels, **{**dict(kernel_size=3, padding=1, hidden_channels=8, bias=False), **kwargs}
    )
    return shake(layer.double(), 0.2).eval()


def test_filters_of_pixels_are_powers_below_one_for_all_channels():
    layer = build()
    kernel = layer.dense_kernel(torch.randn(2, 8, 5, 6, dtype=torch.float64)).kernel.diagonal(dim1=-2, dim2=-1)
    assert (kernel >= 0).all()
    assert (kernel.sum(2) < 1).all()
    assert torch.equal(kernel[..., :1].expand_as(kernel), kernel)


@pytest.mark.parametrize('filters', ['pixel', 'image'])
@pytest.mark.parametrize('stride', [1, 2])
def test_low_and_high_are_the_input(filters, stride):
    options = dict(filters=filters, padding_mode='reflect', stride=stride)
    low, high = build(**options), build(**options, passes='high')
    high.load_state_dict(low.state_dict())
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(low(x) + high(x), x[..., ::stride, ::stride])


def test_a_constant_image_passes_low():
    layer = build(filters='image', padding_mode='reflect')
    x = torch.full((2, 8, 6, 7), 3.0, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)


def test_a_tap_correlates_fully_with_the_center_itself():
    """The released formula divides by nothing, so that the center's value is the number of channels less one."""
    rho = build().correlations(100 * torch.randn(1, 8, 6, 7, dtype=torch.float64))
    torch.testing.assert_close(rho[:, 4], torch.full_like(rho[:, 4], 7.0), rtol=1e-4, atol=1e-4)
    assert (rho.abs() < 7.001).all()


def test_single_channels_do_not_correlate():
    with pytest.raises(ValueError, match=r'DynamicFilter2d correlates the channels .* pass correlation=False'):
        build(1)
    layer = build(1, correlation=False)
    assert layer(torch.randn(1, 1, 6, 7, dtype=torch.float64)).isfinite().all()


def test_one_image_has_no_statistics():
    layer = build(filters='image').train()
    with pytest.raises(ValueError, match=r'DynamicFilter2d has batch norms inside.*norm_cfg=None'):
        layer(torch.randn(1, 8, 6, 7, dtype=torch.float64))
    build(filters='image', norm_cfg=None).train()(torch.randn(1, 8, 6, 7, dtype=torch.float64))
