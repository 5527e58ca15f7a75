"""Rays: cameras, sampling and the sums along rays, by their identities and against what is known in closed form."""

import math

import pytest
import torch

from mmext.inr.measurements.rays import (
    camera_rays,
    composite,
    look_at,
    orbit,
    ray_weights,
    resample,
    section_lengths,
    spaced,
    stratified,
    unit_ball,
)

DOUBLE = torch.float64


def bounds(number=6):
    near = torch.linspace(1, 2, number, dtype=DOUBLE)
    return near, near + torch.linspace(0.5, 2, number, dtype=DOUBLE)


def test_cameras_are_right_handed_and_look_at_the_origin():
    poses = orbit(torch.arange(24, dtype=DOUBLE), 24, 3.0)
    axes = poses[..., :3]
    torch.testing.assert_close(axes.transpose(-1, -2) @ axes, torch.eye(3, dtype=DOUBLE).expand(24, 3, 3))
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(24, dtype=DOUBLE))
    rays = torch.stack([camera_rays(pose, (5, 7), (6.0, 6.0, 3.5, 2.5)) for pose in poses])
    assert rays.shape == (24, 5, 7, 6)
    torch.testing.assert_close(rays[..., 3:].norm(dim=-1), torch.ones(24, 5, 7, dtype=DOUBLE))
    middle = rays[:, 2, 3]
    torch.testing.assert_close(middle[:, :3] + 3 * middle[:, 3:], torch.zeros(24, 3, dtype=DOUBLE))
    # Above the middle of the picture is up, right of it is right.
    assert (rays[:, 0, 3, 5] > middle[:, 5]).all()
    assert ((rays[:, 2, 6, 3:] * axes[:, :, 0]).sum(-1) > 0).all()
    elevation = torch.asin(poses[:, 2, 3] / 3).rad2deg()
    assert elevation.min() > 10
    assert elevation.max() < 60


def test_rays_pass_the_centers_of_pixels():
    pose = look_at(torch.tensor([0.0, -2.0, 0.0]))
    ray = camera_rays(pose, (4, 4), (8.0, 8.0, 2.0, 2.0))[1, 3, 3:]
    torch.testing.assert_close(ray / ray[1], torch.tensor([1.5 / 8, 1.0, 0.5 / 8]))


def test_bounds_lie_on_the_ball():
    torch.manual_seed(0)
    rays = torch.randn(400, 6, dtype=DOUBLE)
    rays[:, 3:] /= rays[:, 3:].norm(dim=-1, keepdim=True)
    near, far = unit_ball(rays)
    hit, inside = far > 0, rays[:, :3].norm(dim=-1) < 1
    assert hit.any()
    assert not hit.all()
    assert hit[inside].all()
    assert (near[inside] == 0).all()
    ends = rays[:, :3] + far[:, None] * rays[:, 3:]
    starts = rays[:, :3] + near[:, None] * rays[:, 3:]
    torch.testing.assert_close(ends[hit].norm(dim=-1), torch.ones(int(hit.sum()), dtype=DOUBLE))
    outside = hit & ~inside
    torch.testing.assert_close(starts[outside].norm(dim=-1), torch.ones(int(outside.sum()), dtype=DOUBLE))
    # Those that miss stay outside of it; those behind are not seen.
    closest = (rays[:, :3] - (rays[:, :3] * rays[:, 3:]).sum(-1, keepdim=True).clamp_max(0) * rays[:, 3:]).norm(dim=-1)
    assert (closest[~hit] >= 1).all()


def test_samples_stay_in_their_cells():
    near, far = bounds()
    edges = spaced(near, far, 9)
    torch.testing.assert_close(stratified(near, far, 9), (edges[:, 1:] + edges[:, :-1]) / 2)
    drawn = stratified(near, far, 9, jitter=True)
    assert ((drawn >= edges[:, :-1]) & (drawn <= edges[:, 1:])).all()
    assert not torch.equal(drawn, stratified(near, far, 9, jitter=True))


def test_weights_and_what_passes_sum_to_one():
    torch.manual_seed(0)
    near, far = bounds()
    distances = stratified(near, far, 16, jitter=True)
    lengths = section_lengths(distances, far)
    torch.testing.assert_close(lengths.sum(-1), far - distances[:, 0])
    density = torch.rand(6, 16, dtype=DOUBLE) * 20
    weights = ray_weights(density, lengths)
    torch.testing.assert_close(
        weights.sum(-1) + (-(density * lengths).sum(-1)).exp(), torch.ones(6, dtype=DOUBLE), rtol=0, atol=1e-15
    )
    alpha = 1 - torch.exp(-density * lengths)
    passed = torch.cumprod(torch.cat((torch.ones(6, 1, dtype=DOUBLE), 1 - alpha + 1e-10), -1), -1)[:, :-1]
    torch.testing.assert_close(weights, alpha * passed, rtol=0, atol=1e-9)


def test_a_section_in_two_parts_of_equal_density_is_the_same():
    torch.manual_seed(0)
    density, lengths = torch.rand(5, 8, dtype=DOUBLE) * 9, torch.rand(5, 8, dtype=DOUBLE)
    share = torch.rand(5, 8, 1, dtype=DOUBLE)
    parts = (lengths[..., None] * torch.cat((share, 1 - share), -1)).flatten(-2)
    split = ray_weights(density.repeat_interleave(2, -1), parts)
    torch.testing.assert_close(split.unflatten(-1, (8, 2)).sum(-1), ray_weights(density, lengths), rtol=0, atol=1e-15)


def test_two_sections_by_hand():
    weights = ray_weights(torch.tensor([[math.log(2), 5.0]], dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5 * (1 - math.exp(-5))]], dtype=DOUBLE))
    color = composite(weights, torch.tensor([[[1.0], [0.0]]], dtype=DOUBLE), background=1.0)
    torch.testing.assert_close(color, torch.tensor([[0.5 + 0.5 * math.exp(-5)]], dtype=DOUBLE))


def test_an_endless_last_section_closes_every_ray():
    near, far = bounds()
    distances = stratified(near, far, 8)
    thin = torch.full_like(distances, 1e-3)
    assert ray_weights(thin, section_lengths(distances, far)).sum(-1).max() < 0.01
    torch.testing.assert_close(
        ray_weights(thin, section_lengths(distances, far, 'inf')).sum(-1), torch.ones(6, dtype=DOUBLE)
    )


@pytest.mark.parametrize(('samples', 'opacity_error', 'depth_error'), [(32, 1e-3, 0.02), (128, 3e-4, 0.005)])
def test_a_ball_of_even_density(samples, opacity_error, depth_error):
    radius, sigma = 0.6, 40.0
    rays = camera_rays(orbit(torch.tensor(3.0, dtype=DOUBLE), 24, 3.0), (32, 32), (60.0, 60.0, 16.0, 16.0)).reshape(
        -1, 6
    )
    near, far = unit_ball(rays)
    distances = stratified(near, far, samples)
    points = rays[:, None, :3] + distances[..., None] * rays[:, None, 3:]
    density = torch.where(points.norm(dim=-1) < radius, sigma, 0.0)
    weights = ray_weights(density, section_lengths(distances, far))
    middle = -(rays[:, :3] * rays[:, 3:]).sum(-1)
    half = (middle.square() - 9 + radius**2).clamp_min(0).sqrt()
    opacity = 1 - torch.exp(-2 * half * sigma)
    assert (weights.sum(-1) - opacity).abs().mean() < opacity_error
    deep = half > 0.2
    depth = (weights * distances).sum(-1)[deep] / weights.sum(-1)[deep]
    # Light leaves a thick ball one free path behind its surface.
    assert (depth - (middle - half + 1 / sigma)[deep]).abs().mean() < depth_error


def test_resampling_inverts_the_distribution():
    near, far = bounds()
    edges = spaced(near, far, 8)
    even = resample(edges, torch.ones(6, 8, dtype=DOUBLE), 24)
    torch.testing.assert_close(even, stratified(near, far, 24))
    spike = torch.zeros(6, 8, dtype=DOUBLE)
    spike[:, 5] = 1
    for jitter in (False, True):
        drawn = resample(edges, spike, 500, jitter)
        assert ((drawn >= edges[:, 5:6]) & (drawn <= edges[:, 6:7])).double().mean() > 0.99
        assert (drawn.diff(dim=-1) >= 0).all()
    torch.manual_seed(0)
    weights = torch.rand(6, 8, dtype=DOUBLE)
    drawn = resample(edges, weights, 4000)
    found = torch.stack(
        [((drawn >= edges[:, k : k + 1]) & (drawn < edges[:, k + 1 : k + 2])).sum(-1) for k in range(8)], -1
    )
    torch.testing.assert_close(found.double() / 4000, weights / weights.sum(-1, keepdim=True), rtol=0, atol=1e-3)
    # An empty ray, which takes no place, is drawn from without a number that is none.
    assert resample(torch.zeros(1, 9), torch.zeros(1, 8), 4).isfinite().all()
