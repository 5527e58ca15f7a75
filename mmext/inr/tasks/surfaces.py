"""The surface of what a coordinate network represents, as a mesh."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mmext.inr.grid import coordinate_grid
from mmext.inr.tasks.meshes import Mesh

__all__ = ['extract_mesh', 'mesh_of_grid']

#: Points that are evaluated together.
_CHUNK = 65536


@torch.no_grad()
def extract_mesh(
    field: Callable[[Tensor], Tensor],
    resolution: int = 128,
    level: float = 0.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
    device: torch.device | str | None = None,
) -> Mesh:
    """Return the surface on which a function of positions has the value ``level``, by marching cubes.

    It is evaluated in chunks, and normals of faces look to where the function is smaller.

    Args:
        field: From points (N, 3) to values (N,) or (N, 1), larger inside. Of a signed distance pass its negative.
        resolution: Points per axis.
        level: The value.
        bounds: The box, the same on each axis.
        device: Where the points are.

    Returns:
        The mesh, without faces if the function has that value nowhere; a line is logged that says so.

    Raises:
        ValueError: If there are fewer than two points per axis.
        ImportError: If scikit-image is missing.
    """
    if resolution < 2:
        raise ValueError(f'extract_mesh needs two points per axis at least, got {resolution=}')
    low, high = bounds
    points = coordinate_grid(resolution, resolution, resolution, device=device).flatten(0, -2)
    points = low + (points + 1) * ((high - low) / 2)
    values = torch.cat([field(part).reshape(-1).float().cpu() for part in points.split(_CHUNK)])
    return mesh_of_grid(values.view(resolution, resolution, resolution) - level, bounds)


def mesh_of_grid(inside: Tensor, bounds: tuple[float, float] = (-1.0, 1.0)) -> Mesh:
    """Return the surface of a function on a grid (X, Y, Z), positive inside, see :func:`extract_mesh`."""
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise ImportError(f'marching cubes need scikit-image ({error}); pip install scikit-image') from error
    values = inside.detach().float().cpu().numpy()
    if not np.isfinite(values).all() or not values.min() < 0 < values.max():
        print_log(
            f'no surface: the values on the grid are in [{values.min():.4g}, {values.max():.4g}] of the level',
            'current',
            logging.WARNING,
        )
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3)))
    low, high = bounds
    spacing: Any = tuple((high - low) / (n - 1) for n in values.shape)
    # The names of the directions suggest the opposite: with this one faces look outward where the values are larger inside.
    vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=spacing, gradient_direction='ascent')
    return Mesh(vertices + low, faces)
