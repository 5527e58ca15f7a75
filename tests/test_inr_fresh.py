"""FreSh: the spectrum of waves, the distance of spikes, and that rough pictures get higher frequencies than smooth ones."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from mmext.inr import CoordMLP, choose_frequencies, coordinate_grid, diagonal_spectrum, spectral_distance

SIREN = dict(type='mmext.CoordMLP', out_features=1, width=64, depth=3, act_cfg=dict(type='mmext.SineActivation'))
FOURIER = dict(type='mmext.CoordMLP', out_features=1, width=64, depth=3, encoding=dict(type='mmext.FourierFeatures'))
PE = dict(type='mmext.CoordMLP', out_features=1, width=64, depth=3, encoding=dict(type='mmext.PositionalEncoding'))


def wave(n, a, b):
    i = torch.arange(n, dtype=torch.float64)
    return torch.cos(2 * math.pi * (a * i[:, None] + b * i) / n)


def picture(name, side):
    image = torch.from_numpy(getattr(data, name)() / 127.5 - 1).float()[None, None]
    return F.interpolate(image, (side, side), mode='bilinear', antialias=True)[0]


@pytest.mark.parametrize(('a', 'b'), [(0, 3), (5, 0), (4, 7), (15, 15)])
def test_a_wave_is_one_spike(a, b):
    spectrum = diagonal_spectrum(wave(32, a, b), crop=None)
    assert len(spectrum) == 2 * 32 - 2
    expected = torch.zeros(62, dtype=torch.float64)
    expected[a + b - 1] = 32**2 / 2
    torch.testing.assert_close(spectrum, expected, rtol=0, atol=1e-9)


def test_orientation_counts_only_without_folding():
    """The frequencies -2 and 3 are those of the entry (30, 3), and of its conjugate (2, 29)."""
    opposite = wave(32, -2, 3)
    assert diagonal_spectrum(opposite, crop=None).argmax() + 1 == 31
    assert diagonal_spectrum(opposite, crop=None, fold=True).argmax() + 1 == 5


@pytest.mark.parametrize(
    ('n', 'a', 'b', 'k'), [(8, 6, 1, 7), (8, 1, 6, 7), (8, 2, 7, 7), (8, 3, 5, 8), (8, 5, 3, 8), (7, 6, 6, 2)]
)
def test_of_two_conjugate_entries_the_one_with_the_smaller_sum_counts(n, a, b, k):
    expected = torch.zeros(2 * n - 2, dtype=torch.float64)
    expected[k - 1] = n**2 / 2
    torch.testing.assert_close(diagonal_spectrum(wave(n, a, b), crop=None), expected, rtol=0, atol=1e-9)


def test_the_official_codes_values():
    torch.manual_seed(0)
    spectrum = diagonal_spectrum(torch.randn(1, 64, 64), crop=None)
    assert [round(float(spectrum[k - 1]), 1) for k in (40, 50, 63)] == [2072.8, 2590.1, 3710.1]


@pytest.mark.parametrize('n', [7, 8, 16, 33])
@pytest.mark.parametrize('fold', [False, True])
def test_each_pair_of_conjugates_counts_once(n, fold):
    image = torch.randn(3, n, n, dtype=torch.float64)
    magnitude = torch.fft.fft2(image).abs().sum(0)
    expected = torch.zeros(2 * n - 1, dtype=torch.float64)
    seen = set()
    for i, j in sorted(((i, j) for i in range(n) for j in range(n)), key=sum):  # the smaller sum comes first
        if ((n - i) % n, (n - j) % n) not in seen:
            seen.add((i, j))
            k = min(i, n - i) + min(j, n - j) if fold else i + j
            expected[k] += magnitude[i, j]
    torch.testing.assert_close(diagonal_spectrum(image, crop=None, fold=fold), expected[1:])


def test_cropped_spectrum_is_the_sum_over_the_first_quadrant():
    image = torch.randn(3, 32, 32, dtype=torch.float64)
    magnitude = torch.fft.fft2(image).abs().sum(0)
    expected = [sum(magnitude[i, k - i] for i in range(k + 1)) for k in range(1, 17)]
    torch.testing.assert_close(diagonal_spectrum(image, crop=16), torch.stack(expected))
    assert torch.equal(diagonal_spectrum(image, crop=16), diagonal_spectrum(image, crop=None)[:16])


def test_brightness_and_contrast_do_not_matter():
    image = torch.randn(1, 24, 24, dtype=torch.float64)
    other = diagonal_spectrum(3 * image + 5)
    assert spectral_distance(diagonal_spectrum(image), other) == pytest.approx(0, abs=1e-9)


def test_any_picture_becomes_a_square():
    assert len(diagonal_spectrum(torch.randn(3, 20, 31), crop=None)) == 38


def test_distance_of_spikes_is_that_of_their_places():
    spikes = torch.eye(20)
    assert spectral_distance(spikes[4], spikes[15] * 7) == pytest.approx(11)
    assert spectral_distance(spikes[4], spikes[4]) == 0
    a, b = torch.rand(20), torch.rand(20)
    from scipy.stats import wasserstein_distance

    expected = wasserstein_distance(range(20), range(20), a.double(), b.double())
    assert spectral_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ('cfg', 'part', 'argument', 'values'),
    [
        (SIREN, 'act_cfg', 'first_w0', (10, 60, 200)),
        (FOURIER, 'encoding', 'sigma', (1, 5, 15)),
        (PE, 'encoding', 'num_octaves', (2, 4, 6)),
    ],
)
def test_the_untrained_spectrum_rises_with_the_frequencies(cfg, part, argument, values):
    centroids = []
    for value in values:
        torch.manual_seed(0)
        args = {**{k: v for k, v in cfg.items() if k != 'type'}, part: {**cfg[part], argument: value}}
        with torch.no_grad():
            spectrum = diagonal_spectrum(CoordMLP(**args)(coordinate_grid(128, 128)).movedim(-1, 0))
        centroids.append(float((spectrum * torch.arange(64)).sum() / spectrum.sum()))
    assert centroids == sorted(centroids)
    assert centroids[-1] > centroids[0] + 3


@pytest.mark.parametrize(
    ('cfg', 'part', 'argument', 'candidates'),
    [(SIREN, 'act_cfg', 'first_w0', (10, 50, 90, 150, 200)), (FOURIER, 'encoding', 'sigma', (1, 2, 4, 8, 14))],
)
def test_grass_gets_higher_frequencies_than_the_photographer(cfg, part, argument, candidates):
    chosen = {}
    given = copy.deepcopy(cfg)
    for name in ('camera', 'grass'):
        before = torch.get_rng_state()
        best, distances = choose_frequencies(cfg, picture(name, 128), candidates, num_inits=2)
        assert torch.equal(torch.get_rng_state(), before)
        assert list(distances) == list(candidates)
        chosen[name] = best[part][argument]
        assert distances[chosen[name]] == min(distances.values())
        assert {**best, part: cfg[part]} == cfg
    assert chosen['grass'] > chosen['camera']
    assert cfg == given


def test_a_network_without_frequencies_is_refused():
    with pytest.raises(ValueError, match=r'choose_frequencies chooses .*sigma of mmext\.FourierFeatures'):
        choose_frequencies(dict(type='mmext.CoordMLP'), torch.zeros(1, 8, 8))
