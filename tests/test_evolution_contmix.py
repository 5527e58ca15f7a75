"""ContMix: weights that sum to one, small images, and where the parts of the channels look."""

import pytest
import torch
from torch import nn

from mmext.evolution import ContMixConv2d

pytestmark = pytest.mark.usefixtures('double_precision')


def bare(kernel_size=7, **kwargs):
    """Return the layer without what comes before and after the aggregation."""
    layer = ContMixConv2d(8, 8, kernel_size, padding=kernel_size // 2, heads=2, bias=False, **kwargs).eval()
    layer.value = layer.fuse = nn.Identity()
    with torch.no_grad():
        for parameter in layer.mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize('size', [(12, 9), (7, 7), (3, 5), (1, 1)])
def test_a_constant_map_stays_constant_at_the_border_too(size):
    layer = bare()
    kernel = layer.evolution_kernel(torch.randn(2, 8, *size))
    for part in kernel.parts:
        torch.testing.assert_close(part.weight.sum(2), torch.ones(2, 2, *part.weight.shape[3:]))
    constant = torch.randn(1, 8, 1, 1).expand(2, 8, *size)
    torch.testing.assert_close(layer(constant), constant.contiguous())


@pytest.mark.parametrize('size', [(1, 1), (2, 9), (5, 6), (6, 7), (13, 4)])
def test_an_image_smaller_than_a_window_keeps_its_size(size):
    layer = bare()
    y = layer(torch.randn(2, 8, *size))
    assert y.shape == (2, 8, *size)
    assert layer.mixer.grown_size(size)[0] >= 7
    assert layer.mixer.grown_size((7, 9)) == (7, 9)


def test_half_of_the_channels_look_near():
    layer = bare()
    x = torch.randn(1, 8, 15, 15)
    kernel = layer.evolution_kernel(x)
    moved = x.clone()
    moved[:, :, 7, 10] += 1  # three columns off the center
    change = (kernel.aggregate(moved) - kernel.aggregate(x))[0, :, 7, 7]
    assert not change[:4].any()
    assert change[4:].all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(stride=2, padding=1), 'stride=1'),
        (dict(padding=0), r'padding=\(1, 1\)'),
        (dict(padding=1, padding_mode='reflect'), "padding_mode='zeros'"),
        (dict(padding=1, heads=3), 'heads=3 and in_channels=8'),
    ],
)
def test_what_has_no_kernel_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContMixConv2d(8, 8, 3, **{'heads': 2, **arguments})
