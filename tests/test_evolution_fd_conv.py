import pytest
import torch
import torch.nn.functional as F
from helpers import shake
from torch import nn

from mmext.evolution.fd_conv import FDConv2d
from mmext.evolution.frequency import FrequencyBands


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(groups=4),
        dict(groups=32),
        dict(kernel_size=5, padding=2, bias=False),
        dict(kernel_size=1, padding=0),
        dict(kernel_size=(2, 3), padding=0),
        dict(stride=2, dilation=2, padding=2),
        dict(param_ratio=3),
        dict(act='tanh', kernel_act='softmax', local=False, bands=(), norm_cfg=None),
    ],
)
def test_starts_as_the_plain_layer_whose_kernel_it_takes(options):
    options = {**dict(kernel_size=3, padding=1), **options}
    geometry = ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'bias')
    plain = nn.Conv2d(32, 32, **{k: v for k, v in options.items() if k in geometry})
    layer = FDConv2d(32, 32, kernel_num=7, **options)
    layer.load_state_dict(plain.state_dict())
    for size in ((11, 14), (12, 9)):
        x = torch.randn(2, 32, *size)
        for mode in (True, False):
            torch.testing.assert_close(layer.train(mode)(x), plain(x), rtol=1e-4, atol=1e-5)


def test_parameters_beside_the_kernel_are_those_of_the_released_layer():
    """64 to 64 channels: 9598 more than the plain layer, of which 384 for what half a spectrum holds twice."""
    for (inputs, outputs, size), extra in {(64, 64, 3): 9598, (64, 128, 1): 6434, (128, 64, 3): 13566}.items():
        layer = FDConv2d(inputs, outputs, size, padding=size // 2, kernel_num=64)
        plain = nn.Conv2d(inputs, outputs, size)
        assert sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in plain.parameters()) == extra


@pytest.mark.parametrize('groups', [1, 4])
def test_factors_by_their_formula(groups):
    layer = shake(FDConv2d(16, 8, 3, padding=1, groups=groups, kernel_num=5, min_channels=1).double(), 0.3).eval()
    x = torch.randn(3, 16, 6, 7, dtype=torch.float64)
    mean = x.mean((2, 3), keepdim=True)
    hidden = layer.star[0] * F.relu(layer.reduce(mean)) ** 2 + layer.star[1]
    factor = {name: 2 * head(hidden).flatten(1).sigmoid() for name, head in layer.heads.items()}
    each = 16 // groups
    kernel = layer.weighed_kernel(factor['kernels'] / 5)
    local = F.conv1d(
        layer.local_norm(mean.flatten(1))[:, None], layer.local_weight, padding=layer.local_weight.shape[2] // 2
    )
    local = 2 * local.view(3, 8, 3, 3, 16).sigmoid()
    for o in range(8):
        first = o // (8 // groups) * each
        own = slice(first, first + each)
        expected = kernel[:, o] * factor['outputs'][:, o, None, None, None] * factor['inputs'][:, own, None, None]
        expected = expected * factor['taps'].view(3, 1, 3, 3) * local[:, o, ..., own].permute(0, 3, 1, 2)
        torch.testing.assert_close(layer.evolution_kernel(x).weight[:, o], expected)


def test_runs_are_of_growing_frequency_and_sum_up_to_the_kernel():
    layer = FDConv2d(16, 8, 3, padding=1, kernel_num=5, min_channels=1).double()
    whole = layer.weighed_kernel(torch.full((1, 5), 1 / 5, dtype=torch.float64))
    parts = layer.weighed_kernel(torch.eye(5, dtype=torch.float64) / 5)
    torch.testing.assert_close(parts.sum(0, keepdim=True), whole)
    energy = [torch.fft.rfft2(p.transpose(1, 2).flatten(2).flatten(0, 1)).abs() for p in parts]
    highest = []
    for spectrum in energy:
        rows, columns = torch.fft.fftfreq(24), torch.fft.rfftfreq(48)
        highest.append(float((rows[:, None] ** 2 + columns**2)[spectrum > 1e-8].max()))
    assert highest == sorted(highest)


def test_bands_sum_up_to_the_image_and_lose_what_their_map_drops():
    bands = FrequencyBands(nn.ModuleList([nn.Conv2d(4, 1, 3, padding=1) for _ in range(3)]), (2, 4, 8), None).double()
    x = torch.randn(2, 4, 16, 24, dtype=torch.float64)
    for parameter in bands.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(bands(x), x)
    nn.init.constant_(bands.weights[0].bias, -60.0)
    spectrum = torch.fft.rfft2(bands(x))
    high = torch.maximum(torch.fft.fftfreq(16).abs()[:, None], torch.fft.rfftfreq(24)) >= 0.25 - 1e-6
    assert spectrum[:, :, high].abs().max() < 1e-10
    torch.testing.assert_close(spectrum[:, :, ~high], torch.fft.rfft2(x)[:, :, ~high])


def test_a_layer_with_few_channels_stays_plain():
    layer, plain = FDConv2d(3, 64, 7, stride=2, padding=3), nn.Conv2d(3, 64, 7, stride=2, padding=3)
    assert set(layer.state_dict()) == {'weight', 'bias'}
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 20, 21)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.by_definition(x), plain(x), rtol=1e-4, atol=1e-5)
    assert layer.refuses_weight is None


def test_one_image_has_no_statistics_in_training():
    layer = FDConv2d(32, 32, 3, padding=1, kernel_num=4)
    x = torch.randn(1, 32, 9, 9)
    with pytest.raises(ValueError, match=r'FDConv2d has batch norms inside.*norm_cfg=None'):
        layer(x)
    assert layer.eval()(x).shape == x.shape
    assert FDConv2d(32, 32, 3, padding=1, kernel_num=4, norm_cfg=None)(x).shape == x.shape


def test_more_runs_than_frequencies_are_refused():
    with pytest.raises(ValueError, match=r'FDConv2d needs kernel_num of at most 544 frequencies'):
        FDConv2d(32, 32, 1, kernel_num=545)
