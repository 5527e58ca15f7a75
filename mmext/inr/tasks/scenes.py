"""Scenes that need no download: views of them are computed, and their shape is known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.inr.measurements.rays import unit_ball

__all__ = ['SCENES', 'Scene', 'block_distance', 'in_package', 'photograph', 'terrain_height']

_LIGHT = (0.4, 0.3, 0.85)
#: A ray of the scene of solids has arrived that near to a surface.
_HIT = 2e-3


@dataclass(frozen=True)
class Scene:
    """A shape in the unit ball, z up, with what it looks like.

    Args:
        trace: From rays (n, 6) to color (n, 3) and depth (n), which is infinite where nothing is hit.
        level: From points (..., 3) to a continuous function that is negative in the solid alone, (...).
    """

    trace: Callable[[Tensor], tuple[Tensor, Tensor]]
    level: Callable[[Tensor], Tensor]

    def inside(self, points: Tensor) -> Tensor:
        """Return whether points (..., 3) are in the solid, (...)."""
        return self.level(points) < 0


@functools.cache
def photograph(name: str) -> Tensor:
    """Return a photograph that ships with scikit-image, (1, 3, H, W) in [0, 1].

    The file is opened as such: the functions of ``skimage.data`` may reach for the network.

    Raises:
        ImportError: If scikit-image or Pillow is missing, or the file is in none of them.
    """
    path = in_package('skimage', f'data/{name}', 'scikit-image')
    if find_spec('PIL') is None:
        raise ImportError('photographs need pillow; pip install pillow')
    from PIL import Image

    with Image.open(path) as opened:
        array = np.asarray(opened.convert('RGB'), dtype=np.float32) / 255
    return torch.from_numpy(array).movedim(-1, 0)[None]


def in_package(module: str, file: str, package: str) -> Path:
    """Return the path of a file that ships with an installed package, which is not imported.

    Raises:
        ImportError: If it is not there; the message names the ``package`` to install.
    """
    spec = find_spec(module)
    found = [Path(place) / file for place in (spec.submodule_search_locations or ())] if spec else []
    for path in found:
        if path.is_file():
            return path
    raise ImportError(f'this scene needs the file {file} of {package}; pip install {package}')


# --- solids --------------------------------------------------------------------------------------------------------------


def _slab(points: Tensor) -> Tensor:
    outside = (points - points.new_tensor((0.0, 0.0, -0.45))).abs() - points.new_tensor((0.52, 0.52, 0.06))
    return outside.clamp_min(0).norm(dim=-1) + outside.amax(-1).clamp_max(0) - 0.03


def _ball(points: Tensor) -> Tensor:
    return (points - points.new_tensor((-0.15, -0.12, 0.0))).norm(dim=-1) - 0.4


def _ring(points: Tensor) -> Tensor:
    x, y, z = (points - points.new_tensor((0.3, 0.28, -0.1))).unbind(-1)
    cosine, sine = math.cos(math.pi / 3), math.sin(math.pi / 3)
    y, z = cosine * y + sine * z, cosine * z - sine * y
    return torch.hypot(torch.hypot(x, y) - 0.26, z) - 0.1


_SOLIDS = ((_slab, 'brick.png'), (_ball, 'coffee.png'), (_ring, 'chelsea.png'))


def block_distance(points: Tensor) -> Tensor:
    """Return the signed distance of points (..., 3) from the scene ``'blocks'``, negative inside, (...)."""
    return torch.stack([solid(points) for solid, _ in _SOLIDS]).amin(0)


def _block_normal(points: Tensor) -> Tensor:
    step = 1e-3 * torch.eye(3).to(points)
    sides = block_distance(points[..., None, :] + step) - block_distance(points[..., None, :] - step)
    return F.normalize(sides, dim=-1)


def _trace_blocks(rays: Tensor) -> tuple[Tensor, Tensor]:
    depth, far = (bound.clone() for bound in unit_ball(rays))
    alive = torch.nonzero(far > 0).squeeze(1)
    hit = torch.zeros(len(rays), dtype=torch.bool)
    for _ in range(80):
        distance = block_distance(rays[alive, :3] + depth[alive, None] * rays[alive, 3:6])
        arrived = distance < _HIT
        hit[alive[arrived]] = True
        depth[alive] += torch.where(arrived, 0, 0.95 * distance)
        alive = alive[~arrived & (depth[alive] < far[alive])]
        if not len(alive):
            break
    color = torch.zeros(len(rays), 3)
    points = rays[hit, :3] + depth[hit, None] * rays[hit, 3:6]
    normal = _block_normal(points)
    which = torch.stack([solid(points) for solid, _ in _SOLIDS]).argmin(0)
    albedo = torch.zeros(len(points), 3)
    for number, (_, name) in enumerate(_SOLIDS):
        mine = which == number
        albedo[mine] = _triplanar(photograph(name), points[mine], normal[mine])
    color[hit] = albedo * _shade(normal)[:, None]
    return color, torch.where(hit, depth, torch.inf)


def _shade(normal: Tensor) -> Tensor:
    light = F.normalize(normal.new_tensor(_LIGHT), dim=0)
    return 0.35 + 0.65 * (normal @ light).clamp_min(0)


def _triplanar(image: Tensor, points: Tensor, normal: Tensor) -> Tensor:
    """Return the colors of photographs that are projected along the three axes, weighed by the normal."""
    weights = normal.abs() ** 4
    weights = weights / weights.sum(-1, keepdim=True)
    color = torch.zeros_like(points)
    for axis, (u, v) in enumerate(((1, 2), (0, 2), (0, 1))):
        place = torch.stack((points[:, u], -points[:, v]), dim=-1)
        sampled = F.grid_sample(image, place[None, None], padding_mode='reflection', align_corners=False)
        color += weights[:, axis : axis + 1] * sampled[0, :, 0].T
    return color


# --- ground --------------------------------------------------------------------------------------------------------------

#: Half the width of the piece of ground from east to west, and from north to south; where it is cut off below.
_EAST, _NORTH, _FLOOR = 0.6, 0.6, -0.2
#: Heights are exaggerated that many times.
_STEEP = 4.0


@functools.cache
def _heights() -> Tensor:
    """Return the heights of the ground, (1, 1, rows from south to north, columns from west to east), in scene units."""
    with np.load(in_package('matplotlib', 'mpl-data/sample_data/jacksboro_fault_dem.npz', 'matplotlib')) as file:
        meters = torch.from_numpy(file['elevation'].astype(np.float32))
    # The first row of the file is the north. Its cells are 92.8 m high.
    unit = 2 * _NORTH / (92.8 * meters.shape[0])
    heights = (meters.flip(0) - meters.mean()) * (unit * _STEEP)
    return heights[None, None]


def terrain_height(places: Tensor) -> Tensor:
    """Return the height of the scene ``'terrain'`` at places (..., 2), east and north, (...).

    It is the ground around the Jacksboro fault, four times as steep, between -0.6 and 0.6 in both directions.
    """
    grid = places.reshape(1, 1, -1, 2) / places.new_tensor((_EAST, _NORTH))
    sampled = F.grid_sample(_heights().to(places), grid, padding_mode='border', align_corners=False)
    return sampled.view(places.shape[:-1])


def _above_ground(points: Tensor) -> Tensor:
    """Return how far points are above the ground, or outside of the piece; negative inside."""
    inner = points.abs() - points.new_tensor((_EAST, _NORTH, torch.inf))
    walls = torch.maximum(inner.amax(-1), _FLOOR - points[..., 2])
    return torch.maximum(points[..., 2] - terrain_height(points[..., :2]), walls)


def _trace_terrain(rays: Tensor) -> tuple[Tensor, Tensor]:
    top = float(_heights().max())
    origin, direction = rays[:, :3], rays[:, 3:6]
    low, high = rays.new_tensor((-_EAST, -_NORTH, _FLOOR)), rays.new_tensor((_EAST, _NORTH, top))
    safe = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    ends = torch.stack(((low - origin) / safe, (high - origin) / safe))
    near, far = ends.amin(0).amax(-1).clamp_min(0), ends.amax(0).amin(-1)
    step = _EAST / _heights().shape[-1]  # half a cell
    alive = torch.nonzero(near < far).squeeze(1)
    depth, hit = near.clone(), torch.zeros(len(rays), dtype=torch.bool)
    # Many steps at once, because one for some thousand rays costs little more than its call.
    ahead = step * torch.arange(32)
    while len(alive):
        distances = depth[alive, None] + ahead
        below = _above_ground(origin[alive, None] + distances[..., None] * direction[alive, None]) <= 0
        found = below.any(-1)
        first = below.to(torch.int8).argmax(-1)
        depth[alive] = torch.where(found, distances.gather(1, first[:, None])[:, 0], distances[:, -1] + step)
        hit[alive[found]] = True
        alive = alive[~found & (depth[alive] < far[alive])]
    entered = hit & (depth <= near)
    before, behind = (depth - step)[hit], depth[hit]
    for _ in range(8):
        middle = (before + behind) / 2
        inside = _above_ground(origin[hit] + middle[:, None] * direction[hit]) <= 0
        before, behind = torch.where(inside, before, middle), torch.where(inside, middle, behind)
    depth[hit] = torch.where(entered[hit], near[hit], behind)

    color = torch.zeros(len(rays), 3)
    points = origin[hit] + depth[hit, None] * direction[hit]
    color[hit] = _ground_color(points, top)
    return color, torch.where(hit, depth, torch.inf)


def _ground_color(points: Tensor, top: float) -> Tensor:
    stops = points.new_tensor(
        ((0.16, 0.36, 0.2), (0.45, 0.55, 0.25), (0.76, 0.68, 0.42), (0.55, 0.36, 0.25), (0.97, 0.96, 0.94))
    )
    low = float(_heights().min())
    place = ((points[:, 2] - low) / (top - low)).clamp(0, 1) * (len(stops) - 1)
    lower = place.long().clamp_max(len(stops) - 2)
    share = (place - lower)[:, None]
    albedo = stops[lower] * (1 - share) + stops[lower + 1] * share
    step = 2e-3
    slope = [
        (terrain_height(points[:, :2] + offset) - terrain_height(points[:, :2] - offset)) / (2 * step)
        for offset in step * torch.eye(2)
    ]
    normal = F.normalize(torch.stack((-slope[0], -slope[1], torch.ones_like(slope[0])), dim=-1), dim=-1)
    wall = points[:, 2] < terrain_height(points[:, :2]) - 4e-3
    earth = points.new_tensor((0.5, 0.4, 0.32)) * (0.8 + 0.2 * torch.sin(60 * points[:, 2:]))
    return torch.where(wall[:, None], 0.7 * earth, albedo * _shade(normal)[:, None])


#: The scenes by name.
SCENES = {
    'blocks': Scene(_trace_blocks, block_distance),
    'terrain': Scene(_trace_terrain, _above_ground),
}
