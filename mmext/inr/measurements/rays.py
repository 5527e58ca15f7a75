"""Cameras, rays and what is summed along them, in a scene that lies in the unit ball.

A camera is its pose, (3, 4): the columns are the axes right, up and backward in scene units, then the center. It looks along
minus its third axis, as those of NeRF do. A ray is (6,): origin and unit direction. Depth is distance along the ray.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    'Jitter',
    'Lens',
    'camera_rays',
    'composite',
    'look_at',
    'orbit',
    'pixel_rays',
    'ray_weights',
    'resample',
    'section_lengths',
    'simple_lens',
    'spaced',
    'stratified',
    'unit_ball',
]

#: Focal lengths fx, fy and principal point cx, cy, in pixels.
Lens = tuple[float, float, float, float]
#: Whether something is drawn, and by which generator if not by torch's own.
Jitter = bool | torch.Generator
_GOLDEN_ANGLE = math.pi * (3 - 5**0.5)


def look_at(center: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the pose, (..., 3, 4), of a camera at ``center``, (..., 3), that looks at ``target`` with the z axis up.

    Args:
        center: Where the camera stands; not above or below the target.
        target: What it looks at, by default the origin.
    """
    backward = center if target is None else center - target
    backward = backward / backward.norm(dim=-1, keepdim=True)
    up = torch.zeros_like(backward)
    up[..., 2] = 1
    right = torch.linalg.cross(up, backward)
    right = right / right.norm(dim=-1, keepdim=True)
    return torch.stack((right, torch.linalg.cross(backward, right), backward, center), dim=-1)


def orbit(index: Tensor, views: int, radius: float, elevation: tuple[float, float] = (10.0, 60.0)) -> Tensor:
    """Return poses on a spiral around the scene, (..., 3, 4).

    Azimuths advance by the golden angle. The sines of the elevations grow evenly, so that the cameras are spread evenly over
    their part of the sphere.

    Args:
        index: Positions on the spiral, (...), from 0 to ``views``; halves stand between two views.
        views: Number of views of the whole spiral.
        radius: Distance of the cameras from the origin.
        elevation: Of the first and of the last one, in degrees.
    """
    low, high = (math.sin(math.radians(e)) for e in elevation)
    height = low + (high - low) * ((index + 0.5) / views).clamp(0, 1)
    azimuth, flat = _GOLDEN_ANGLE * index, (1 - height.square()).sqrt()
    return look_at(radius * torch.stack((flat * azimuth.cos(), flat * azimuth.sin(), height), dim=-1))


def pixel_rays(pose: Tensor, row: Tensor, column: Tensor, lens: Lens) -> Tensor:
    """Return the rays of cameras through places of their pictures, (..., 6).

    Args:
        pose: (..., 3, 4).
        row: In pixels from the upper edge, (...); halves are centers.
        column: In pixels from the left edge, (...).
        lens: Focal lengths fx, fy and principal point cx, cy, in pixels.
    """
    fx, fy, cx, cy = lens
    local = torch.stack(((column - cx) / fx, (cy - row) / fy, -torch.ones_like(row)), dim=-1)
    local = local / local.norm(dim=-1, keepdim=True)
    directions = (pose[..., :3] @ local[..., None]).squeeze(-1)
    return torch.cat((pose[..., 3].expand_as(directions), directions), dim=-1)


def camera_rays(pose: Tensor, size: tuple[int, int], lens: Lens) -> Tensor:
    """Return the rays of a camera through the centers of all pixels, (H, W, 6), see :func:`pixel_rays`."""
    rows, columns = (torch.arange(side).to(pose) + 0.5 for side in size)
    row, column = torch.meshgrid(rows, columns, indexing='ij')
    return pixel_rays(pose, row, column, lens)


def simple_lens(size: tuple[int, int], field_of_view: float) -> Lens:
    """Return a lens with the principal point in the middle.

    Args:
        size: (H, W).
        field_of_view: From the left edge to the right one, in radians.
    """
    height, width = size
    focal = width / (2 * math.tan(field_of_view / 2))
    return focal, focal, width / 2, height / 2


def unit_ball(rays: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays, (..., 6), enter and leave the unit ball, (...) each; both zero where they miss it.

    A ray that starts inside enters at zero.
    """
    origin, direction = rays[..., :3], rays[..., 3:6]
    middle = -(origin * direction).sum(-1)
    square = middle.square() - origin.square().sum(-1) + 1
    half = square.clamp_min(0).sqrt()
    hit = (square > 0) & (middle + half > 0)
    far = torch.where(hit, middle + half, 0)
    return torch.where(hit, (middle - half).clamp_min(0), 0), far


def stratified(near: Tensor, far: Tensor, samples: int, jitter: Jitter = False) -> Tensor:
    """Return one distance in each of ``samples`` equal cells from ``near`` to ``far``, (..., S).

    Args:
        near: (...).
        far: (...).
        samples: S.
        jitter: Draw it evenly in its cell, by a generator if one is given; otherwise it is the middle.
    """
    share = drawn(near, (*near.shape, samples), jitter)
    cells = torch.arange(samples, dtype=near.dtype, device=near.device)
    return near[..., None] + (far - near)[..., None] * ((cells + share) / samples)


def drawn(like: Tensor, shape: tuple[int, ...], jitter: Jitter) -> Tensor:
    """Return even draws from [0, 1), or one half for all, see :func:`stratified`."""
    if jitter is False:
        return like.new_full((), 0.5)
    generator = jitter if isinstance(jitter, torch.Generator) else None
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def spaced(near: Tensor, far: Tensor, samples: int) -> Tensor:
    """Return the edges of the cells of :func:`stratified`, (..., S + 1)."""
    share = torch.linspace(0, 1, samples + 1, dtype=near.dtype, device=near.device)
    return near[..., None] + (far - near)[..., None] * share


def resample(edges: Tensor, weights: Tensor, samples: int, jitter: Jitter = False, eps: float = 1e-4) -> Tensor:
    r"""Return distances that are distributed as weights over cells, (..., M), in ascending order; no gradient flows.

    The density within a cell is even. The draws are evenly spaced in the inverse of the distribution function.

    Args:
        edges: Of the cells, (..., S + 1), ascending.
        weights: Of the cells, (..., S), not negative; their sum does not matter.
        samples: M.
        jitter: Draw each evenly within its M-th part; otherwise it is the middle.
        eps: Added to each weight, so that no cell is left out.
    """
    edges, weights = edges.detach(), weights.detach() + eps
    upper = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    upper = torch.cat((torch.zeros_like(upper[..., :1]), upper[..., :-1], torch.ones_like(upper[..., :1])), dim=-1)
    zero = upper.new_zeros(upper.shape[:-1])
    share = stratified(zero, zero + 1, samples, jitter).contiguous()
    cell = torch.searchsorted(upper.contiguous(), share, right=True).clamp(1, weights.shape[-1]) - 1
    low, high = upper.gather(-1, cell), upper.gather(-1, cell + 1)
    start, end = edges.gather(-1, cell), edges.gather(-1, cell + 1)
    return start + (end - start) * ((share - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def section_lengths(distances: Tensor, far: Tensor, last: Literal['far', 'inf'] = 'far') -> Tensor:
    """Return the length of ray that each sample stands for, up to the next one, (..., S).

    Args:
        distances: (..., S), ascending.
        far: Where the rays end, (...).
        last: What the last one stands for: the rest of the ray, or, as in NeRF's code, 1e10. With the latter every ray is
            opaque as soon as the density at its last sample is positive.
    """
    end = far[..., None] if last == 'far' else torch.full_like(distances[..., :1], 1e10)
    return torch.diff(torch.cat((distances, end), dim=-1), dim=-1).clamp_min(0)


def ray_weights(density: Tensor, lengths: Tensor) -> Tensor:
    r"""Return the share of light that comes from each sample, (..., S).

    .. math:: w_k = T_k (1 - e^{-\sigma_k \delta_k}), \qquad T_k = e^{-\sum_{j < k} \sigma_j \delta_j}

    The sum of all is :math:`1 - e^{-\sum \sigma_k \delta_k}`, the opacity of the ray.
    """
    depth = density * lengths
    # The sum of those before, without a difference of large numbers.
    before = torch.cat((torch.zeros_like(depth[..., :1]), depth[..., :-1].cumsum(-1)), dim=-1)
    return torch.exp(-before) * -torch.expm1(-depth)


def composite(weights: Tensor, values: Tensor, background: float | Tensor = 0.0) -> Tensor:
    """Return the sums of values over samples by their weights, and of the background by what is left, (..., C).

    Args:
        weights: (..., S).
        values: (..., S, C).
        background: Seen where the ray is not opaque.
    """
    return (weights[..., None] * values).sum(-2) + (1 - weights.sum(-1, keepdim=True)) * background
