"""The interface of measurement operators, and the two simplest: everything, and means over blocks."""

import pytest
import torch
from torch import nn

from mmext.inr import DownsamplingOperator, IdentityOperator, MeasurementOperator, coordinate_grid
from mmext.registry import MODELS

IMAGE = torch.rand(12, 18, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- the interface, and everything ---------------------------------------------------------------------------------------


def test_identity_measures_every_pixel():
    operator = MODELS.build(dict(type='mmext.IdentityOperator'))
    assert operator(IMAGE) is IMAGE
    assert operator.measure(IMAGE) is IMAGE
    assert operator.coordinates(IMAGE) is IMAGE
    assert operator.baseline(IMAGE, (12, 18)) is None


def test_the_baseline_of_a_noisy_picture_is_itself():
    operator = IdentityOperator(noise=0.1)
    noisy = operator.measure(IMAGE)
    assert torch.equal(operator.baseline(noisy, (12, 18)), noisy)


def test_noise_is_a_share_of_the_largest_value_and_belongs_to_the_seed():
    image = torch.full((200, 200, 1), -5.0)
    image[0, 0] = 2.0
    noise = IdentityOperator(noise=0.1, seed=3).measure(image) - image
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    before = torch.random.get_rng_state()
    again = IdentityOperator(noise=0.1, seed=3).measure(image) - image
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again, noise)
    assert not torch.equal(IdentityOperator(noise=0.1, seed=4).measure(image) - image, noise)


def test_a_complex_measurement_has_noise_in_both_parts():
    clean = torch.full((40_000,), 2 + 0j)
    noise = MeasurementOperator(noise=0.1).with_noise(clean) - clean
    # Half of the power each.
    for part in (noise.real, noise.imag):
        assert part.std().item() == pytest.approx(0.2 / 2**0.5, rel=0.02)


def test_only_what_is_simulated_is_noisy():
    image = IMAGE.clone().requires_grad_()
    operator = IdentityOperator(noise=0.1)
    assert torch.equal(operator(image), image)
    assert torch.equal(operator.clean(image), image)
    assert not operator.measure(image).requires_grad


def test_the_preview_is_a_picture_of_what_is_known():
    image = 3 * IMAGE - 1
    expected = image.clamp(0, 1).movedim(-1, 0)
    assert torch.equal(IdentityOperator().preview(image, (12, 18)), expected)
    assert torch.equal(IdentityOperator(noise=0.1).preview(image, (12, 18)), expected)
    assert torch.equal(IdentityOperator().preview(1j * image, (12, 18)), image.abs().clamp(0, 1).movedim(-1, 0))
    means = DownsamplingOperator(3).measure(IMAGE)
    assert DownsamplingOperator(3).preview(means, (12, 18)).shape == (3, 12, 18)


@pytest.mark.parametrize('kind', [IdentityOperator, DownsamplingOperator])
def test_negative_noise_is_refused(kind):
    with pytest.raises(ValueError, match=rf'{kind.__name__} needs a standard deviation noise >= 0, got noise=-0.1'):
        kind(noise=-0.1)


def test_an_operator_must_define_its_forward_pass():
    class Blind(MeasurementOperator):
        pass

    with pytest.raises(NotImplementedError, match=r'Blind must define forward\(image\)'):
        Blind()(IMAGE)


@pytest.mark.parametrize('cfg', [dict(type='IdentityOperator'), dict(type='DownsamplingOperator', factor=2)])
def test_nothing_is_learned_or_saved(cfg):
    operator = MODELS.build(dict(cfg, type=f'mmext.{cfg["type"]}'))
    operator.measure(IMAGE)
    assert not operator.state_dict()
    assert not list(operator.parameters())


# --- means over blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('factor', [1, 2, 3, 6])
def test_blocks_are_averaged(factor):
    means = DownsamplingOperator(factor).measure(IMAGE)
    assert means.shape == (12 // factor, 18 // factor, 3)
    for i in range(12 // factor):
        for j in range(18 // factor):
            block = IMAGE[factor * i : factor * (i + 1), factor * j : factor * (j + 1)]
            torch.testing.assert_close(means[i, j], block.reshape(-1, 3).mean(0))


def test_the_layout_in_memory_does_not_matter():
    channels_first = IMAGE.movedim(-1, 0).contiguous().movedim(0, -1)
    assert torch.equal(DownsamplingOperator(3).measure(channels_first), DownsamplingOperator(3).measure(IMAGE))


@pytest.mark.parametrize('factor', [2, 3])
def test_coarse_pixels_stand_in_the_centers_of_their_blocks(factor):
    coords = DownsamplingOperator(factor).coordinates(coordinate_grid(12, 18, dtype=torch.float64))
    for i in range(12 // factor):
        for j in range(18 // factor):
            row, column = (factor * k + (factor - 1) / 2 for k in (i, j))
            expected = torch.tensor([2 * row / 11 - 1, 2 * column / 17 - 1], dtype=torch.float64)
            torch.testing.assert_close(coords[i, j], expected)


@pytest.mark.parametrize('points', ['centers', 'all'])
def test_a_linear_network_predicts_the_means_exactly(points):
    network, coords = nn.Linear(2, 3, dtype=torch.float64), coordinate_grid(12, 18, dtype=torch.float64)
    operator = DownsamplingOperator(3, points)
    torch.testing.assert_close(operator(network(operator.coordinates(coords))), operator.measure(network(coords)))


def test_only_all_points_are_exact_for_a_curved_network():
    coords = coordinate_grid(12, 18, dtype=torch.float64)
    measured = DownsamplingOperator(3).measure(coords.square())
    assert torch.equal(
        DownsamplingOperator(3, 'all')(DownsamplingOperator(3, 'all').coordinates(coords).square()), measured
    )
    assert not torch.allclose(DownsamplingOperator(3)(DownsamplingOperator(3).coordinates(coords).square()), measured)


def test_the_network_is_evaluated_at_the_centers_only():
    operator, coords = DownsamplingOperator(3), coordinate_grid(12, 18)
    assert operator.coordinates(coords).shape == (4, 6, 2)
    assert operator(IMAGE) is IMAGE
    assert DownsamplingOperator(3, 'all').coordinates(coords) is coords


def test_the_baseline_interpolates_the_means():
    means = DownsamplingOperator(3).measure(IMAGE)
    guess = DownsamplingOperator(3).baseline(means, (12, 18))
    assert guess.shape == IMAGE.shape
    assert guess.dtype == IMAGE.dtype
    # A cubic goes through its values, and those stand in the middle of the blocks.
    torch.testing.assert_close(guess[1::3, 1::3], means)
    flat = torch.full((4, 6, 1), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        DownsamplingOperator(2).baseline(flat, (8, 12)), torch.full((8, 12, 1), 0.3, dtype=torch.float64)
    )


def test_the_gradient_of_a_mean_is_shared_by_its_block():
    image = IMAGE.clone().requires_grad_()
    DownsamplingOperator(3, 'all')(image)[1, 2, 0].backward()
    expected = torch.zeros_like(IMAGE)
    expected[3:6, 6:9, 0] = 1 / 9
    torch.testing.assert_close(image.grad, expected)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="DownsamplingOperator needs points 'centers' or 'all', got points='corners'"):
        DownsamplingOperator(points='corners')
    with pytest.raises(ValueError, match='DownsamplingOperator needs a factor of at least 1, got factor=0'):
        DownsamplingOperator(0)
    with pytest.raises(ValueError, match='whole blocks, got 12 x 18; set size to 10, 15'):
        DownsamplingOperator(5).measure(IMAGE)
    with pytest.raises(ValueError, match='factor=5 needs an image of whole blocks'):
        DownsamplingOperator(5).coordinates(coordinate_grid(12, 18))
