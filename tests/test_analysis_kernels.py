"""Pictures of kernels: the maps are the kernels that layers compute with, at the places that they are drawn at."""

import numpy as np
import pytest
import torch
from conv_layers import FAMILY, OPERATORS, image, shaken
from helpers import tool
from torch import nn

from mmext.analysis.kernels import draw_kernels, kernel_layers, kernel_maps, read_kernels
from mmext.contracts import EvolvesKernel
from mmext.convs import DCLSConv2d, RefConv2d
from mmext.errors import UsageError
from mmext.evolution import GPSA, Involution2d

CONFIG = """
default_scope = '{scope}'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=10, mean=[127.5] * 3, std=[64.0] * 3, to_rgb=True),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, conv_cfg=dict(type='mmext.{layer}')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)
"""
POINTS = [(0.1, 0.2), (0.5, 0.5), (0.95, 0.9)]


@pytest.mark.parametrize('name', OPERATORS)
def test_maps_are_the_dense_kernel_of_the_paper(name):
    torch.manual_seed(0)
    layer = shaken(name, kernel_size=3, padding=1).double().eval()
    assert isinstance(layer, EvolvesKernel)
    x = image(dtype=torch.float64)
    maps, pixels, channels, size = kernel_maps(layer, x, POINTS, channels=3)
    features, dense = layer.features(x), layer.dense_kernel(x)
    assert tuple(size) == tuple(dense.size)
    assert pixels == [(3, 1), (9, 9), (16, 17)]
    for found, (row, column) in zip(maps, pixels, strict=True):
        at = row * size[1] + column
        for map_, channel in zip(found, channels, strict=True):
            placed = torch.zeros(features.shape[1], features[0, 0].numel() + 1, dtype=torch.float64)
            seen = dense.positions[at] % placed.shape[1]  # what lies outside goes behind the last pixel
            placed = placed.index_add(1, seen, dense.kernel[0, at, :, channel].T)[:, :-1].unflatten(1, x.shape[2:])
            strongest = placed[placed.abs().sum((1, 2)).argmax()]
            torch.testing.assert_close(map_, strongest.detach(), rtol=1e-9, atol=1e-11)


# A kernel of an image with binary values is no linear map of the image, and neither is one with a mask.
@pytest.mark.parametrize('name', sorted(set(FAMILY) - {'XNORConv2d', 'PartialConv2d'}))
def test_maps_of_a_generated_kernel_are_that_kernel(name):
    layer = shaken(name).double().eval()
    kernel, _ = layer.kernel_and_bias()
    x = image(dtype=torch.float64)
    maps, pixels, channels, _ = kernel_maps(layer, x, [(0.5, 0.5)], channels=2)
    impulse = torch.zeros_like(x)
    (row, column), (first, _) = pixels[0], channels
    places = maps[0, 0].nonzero()
    assert len(places) > 0
    i, j = places[len(places) // 2].tolist()
    # The response to an impulse, in the input channel that was chosen.
    responses = []
    for channel in range(x.shape[1]):
        impulse.zero_()
        impulse[0, channel, i, j] = 1
        with torch.no_grad():
            responses.append((layer(impulse) - layer(torch.zeros_like(x)))[0, first, row, column])
    assert min(abs(r - maps[0, 0, i, j]) for r in responses) < 1e-9
    assert kernel.shape[0] >= 1


@pytest.mark.parametrize('extra', [0, 1])
def test_maps_of_attention_are_its_weights(extra):
    layer = GPSA(16, 4, num_extra_tokens=extra).eval()
    tokens = torch.randn(1, extra + 12 * 12, 16)
    maps, pixels, heads, size = kernel_maps(layer, tokens, POINTS, channels=2)
    assert (heads, size) == ([0, 2], (12, 12))
    weights = layer.dense_kernel(tokens)
    for point, (row, column) in enumerate(pixels):
        expected = weights[0, heads, extra + 12 * row + column, extra:].detach()
        torch.testing.assert_close(maps[point].flatten(1), expected)


def test_points_lie_where_they_are_said_to_lie():
    layer = nn.Conv2d(1, 1, 3, stride=2, padding=1)
    _, pixels, channels, size = kernel_maps(layer, torch.zeros(2, 1, 10, 20), [(0, 0), (1, 1), (0.5, 0.21)], channels=5)
    assert pixels == [(0, 0), (4, 9), (1, 5)]
    assert channels == [0]
    assert size == (5, 10)


def model(layer, **kwargs):
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer, nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3)).eval()


def test_layers_are_chosen_by_what_they_say_and_not_by_their_names():
    deep = nn.Sequential(*(RefConv2d(3, 3, 3, padding=1) for _ in range(7)))
    assert kernel_layers(deep) == ['0', '3', '6']
    assert kernel_layers(model(Involution2d(8, 8, 3, padding=1, group_channels=4))) == ['2']
    assert kernel_layers(model(nn.Conv2d(8, 8, 5))) == ['2', '4']
    assert kernel_layers(model(nn.Identity()), match='^0$') == ['0']
    with pytest.raises(UsageError, match='no convolution of more than one tap'):
        kernel_layers(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(UsageError, match='there are 2, such as 0, 4'):
        kernel_layers(model(nn.Identity()), match='layer')
    with pytest.raises(UsageError, match='no regular expression'):
        kernel_layers(model(nn.Identity()), match='(')


def test_a_dynamic_kernel_is_that_of_the_image_which_reaches_the_layer():
    layer = Involution2d(8, 8, 3, padding=1, group_channels=4)
    whole = model(layer)
    x = torch.randn(1, 3, 9, 9)
    (found,) = read_kernels(whole, x, ['2'], POINTS)
    reached = whole[:2](x)
    maps, *_ = kernel_maps(layer, reached, POINTS, channels=2)
    torch.testing.assert_close(found.maps, maps)
    assert not found.same
    (other,) = read_kernels(whole, -x, ['2'], POINTS)
    assert not torch.allclose(found.maps, other.maps)
    assert not any(p.grad is not None for p in whole.parameters())


def test_a_kernel_that_is_the_same_everywhere_shows_channels_in_the_place_of_points():
    (found,) = read_kernels(model(nn.Conv2d(8, 8, 3, padding=1)), torch.randn(1, 3, 9, 9), ['2'], POINTS, channels=2)
    assert found.same
    assert found.maps.shape == (1, 6, 9, 9)


def test_what_cannot_be_read_is_said():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(UsageError, match='unused is not called'):
        read_kernels(Branch(), torch.randn(1, 3, 9, 9), ['unused'], POINTS)
    with pytest.raises(UsageError, match='does not run on this image'):
        read_kernels(Branch(), torch.randn(1, 3, 2, 2), ['used'], POINTS)


def test_windows_are_drawn_at_their_places(tmp_path):
    torch.manual_seed(0)
    layer = Involution2d(8, 8, 3, padding=1, group_channels=4)
    photo = np.random.default_rng(0).integers(0, 255, (18, 18, 3), dtype=np.uint8)
    (found,) = read_kernels(model(layer), torch.randn(1, 3, 9, 9), ['2'], [(0.5, 0.5), (0.01, 0.99)], channels=1)
    figure = draw_kernels(photo, [found])
    overlay, first, second = figure.axes
    assert overlay.get_title() == '2\nInvolution2d, channel 0'
    # Pixel (4, 4) of 9, in an image twice as large: the window of three taps covers the pixels 6 to 11.
    _, center, corner = overlay.images
    assert center.get_extent() == [5.5, 11.5, 11.5, 5.5]
    np.testing.assert_allclose(first.images[0].get_array(), found.maps[0, 0, 3:6, 3:6])
    window = second.images[0].get_array()
    assert np.isnan(np.ma.filled(window, np.nan)).sum() == 5  # beyond the corner
    assert corner.get_extent() == [-2.5, 3.5, 19.5, 13.5]


def test_the_tool_writes_a_picture(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG.format(scope='mmpretrain', layer='RefConv2d'))
    photo = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(photo).save('photo.png')
    tool('visualization/kernels').main(['config.py', 'photo.png', '--shape', '64', '64', '--out', 'new/drawn.png'])
    assert Image.open('new/drawn.png').size[0] > 100
    said = capsys.readouterr().out
    assert said.count('RefConv2d, the same everywhere') == 3
    for argv, why in ((['config.py', 'no.png'], 'no.png'), (['config.py', 'config.py'], 'image')):
        with pytest.raises(UsageError, match=why):
            tool('visualization/kernels').main([*argv, '--shape', '64', '64'])
    with pytest.raises(SystemExit):
        tool('visualization/kernels').main(['config.py', 'photo.png', '--points', '2,0'])


def test_dcls_is_drawn_with_its_generated_kernel():
    layer = DCLSConv2d(8, 8, 7, padding=3, groups=8).eval()
    maps, *_ = kernel_maps(layer, torch.randn(1, 8, 15, 15), [(0.5, 0.5)], channels=8)
    torch.testing.assert_close(maps[0, :, 4:11, 4:11], layer.kernel_and_bias()[0][:, 0].detach())
