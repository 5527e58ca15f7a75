"""Shapes in [-1, 1]: those that need no file, and those of the user."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.inr.grid import coordinate_grid
from mmext.inr.tasks.mesh_files import read_mesh
from mmext.inr.tasks.meshes import Mesh
from mmext.inr.tasks.scenes import SCENES, in_package
from mmext.inr.tasks.surfaces import extract_mesh, mesh_of_grid

__all__ = ['SHAPES', 'Shape', 'load_shape']

#: A shape's longest half extent, times this, is one.
_MARGIN = 1.05
#: Points per axis where the surface of a formula is looked for.
_FINE = 128
#: Points on a surface that stand for it where distances are measured.
_SURFACE = 200_000

#: The shapes that need no file; the last one needs nilearn, whose wheel has it.
SHAPES = (*SCENES, 'cortex')


class Shape:
    """A closed shape in [-1, 1], with an inside and a surface.

    Args:
        name: Of the shape.
        contains: From points (..., 3) to whether they are inside, (...).
        surface: Returns the surface.
        voxels: Returns the same as ``contains`` on a grid of so many points per axis, where that is faster.
        distance: From points (..., 3) to their signed distances, (...), where a formula knows them.
    """

    def __init__(
        self,
        name: str,
        contains: Callable[[Tensor], Tensor],
        surface: Callable[[], Mesh],
        voxels: Callable[[int], Tensor] | None = None,
        distance: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.name = name
        self.contains = contains
        self._surface = surface
        self._distance = distance
        self.voxels = voxels or (lambda size: contains(coordinate_grid(size, size, size)))

    @cached_property
    def surface(self) -> Mesh:
        """The surface, its normals outward."""
        return self._surface().turned_outward()

    @cached_property
    def _tree(self) -> object:
        try:
            from scipy.spatial import cKDTree
        except ImportError as error:
            raise ImportError(f'distances from a surface need scipy ({error}); pip install scipy') from error
        return cKDTree(self.surface.sample(_SURFACE)[0])

    def distance(self, points: Tensor) -> Tensor:
        """Return the signed distance of points (..., 3), negative inside, (...).

        The sign is exact. Without a formula the distance is that from the nearest of 200,000 points on the surface.
        """
        if self._distance is not None:
            return self._distance(points)
        distance = torch.from_numpy(self._tree.query(points.reshape(-1, 3).numpy())[0]).float()  # type: ignore[attr-defined]
        return distance.view(points.shape[:-1]) * torch.where(self.contains(points), -1.0, 1.0)


@lru_cache(4)
def load_shape(name: str) -> Shape:
    """Return a shape in the middle of [-1, 1], of which the longest half extent, times 1.05, is one.

    Args:
        name: ``'blocks'`` (solids), ``'terrain'`` (a piece of ground), ``'cortex'`` (half of a brain's surface, if nilearn is
            installed), or the path of a mesh (``.ply``, ``.obj``, ``.stl``, ``.gii``) or of a volume (``.npy``, (X, Y, Z),
            above 0.5 inside, its voxels cubes).

    Raises:
        ValueError: If there is no such shape, or it is not closed, or the volume is none.
        ImportError: If a package is missing that it comes with.
    """
    if name in SCENES:
        scene = SCENES[name]
        half, middle = _extent(name)

        def inside(points: Tensor) -> Tensor:
            return scene.inside(points * half + points.new_tensor(middle))

        def surface() -> Mesh:
            return extract_mesh(lambda points: -scene.level(points * half + points.new_tensor(middle)), _FINE)

        # The scene of solids has a true distance, the other one not.
        distance = (
            (lambda points: scene.level(points * half + points.new_tensor(middle)) / half) if name == 'blocks' else None
        )
        return Shape(name, inside, surface, distance=distance)
    if name == 'cortex':
        path = in_package('nilearn', 'datasets/data/fsaverage5/pial_left.gii.gz', 'nilearn')
    elif not Path(name).suffix:
        near = difflib.get_close_matches(name, SHAPES, n=1, cutoff=0.0)
        raise ValueError(
            f'ShapeDataset knows no shape={name!r}; shapes without a file are {", ".join(SHAPES)}, the nearest is {near[0]}'
        )
    else:
        path = Path(name)
    if path.suffix == '.npy':
        return _of_volume(path)
    mesh = read_mesh(path)
    mesh.check_closed(path.name)
    mesh = mesh.scaled(_MARGIN).turned_outward()
    return Shape(
        name,
        lambda points: torch.from_numpy(mesh.contains(points.numpy())),
        lambda: mesh,
        lambda size: torch.from_numpy(mesh.voxels(size)),
    )


@lru_cache(4)
def _extent(name: str) -> tuple[float, tuple[float, ...]]:
    """Return the half side and the middle of a scene's box, with its margin."""
    grid = coordinate_grid(64, 64, 64)
    places = grid[SCENES[name].inside(grid)]
    low, high = places.amin(0) - 1 / 64, places.amax(0) + 1 / 64
    return float((high - low).max()) / 2 * _MARGIN, tuple(((low + high) / 2).tolist())


def _of_volume(path: Path) -> Shape:
    if not path.is_file():
        raise ValueError(f'there is no volume {path}; give the path of a file')
    try:
        values = np.load(path)
        volume = torch.from_numpy(values.astype(np.float32))
    except Exception as error:  # of a hostile file: ValueError, EOFError, TypeError and others
        raise ValueError(f'{path} is no array of numbers ({error}); save it with numpy.save') from error
    if volume.ndim != 3 or not volume.isfinite().all() or not volume.min() < 0.5 < volume.max():
        raise ValueError(
            f'{path} is no volume with an inside: got the shape {tuple(volume.shape)} and values in '
            f'[{volume.min():.4g}, {volume.max():.4g}]; save (X, Y, Z) with values above 0.5 inside and below outside'
        )
    # What the volume's border cuts is closed there.
    padded = F.pad(volume - 0.5, (1,) * 6, value=-0.5)
    half = _MARGIN * max(padded.shape) / 2
    scale = torch.tensor([half / (n / 2) for n in padded.shape])

    def inside(points: Tensor) -> Tensor:
        grid = (points * scale).flip(-1).reshape(1, -1, 1, 1, 3)
        found = F.grid_sample(padded[None, None], grid, align_corners=False, padding_mode='border')
        return (found.view(points.shape[:-1]) > 0) & (points * scale).abs().le(1).all(-1)

    def surface() -> Mesh:
        mesh = mesh_of_grid(padded)
        middle = (np.array(padded.shape) - 1) / 2
        index = (mesh.vertices + 1) / 2 * (np.array(padded.shape) - 1)
        return Mesh((index - middle) / half, mesh.faces)

    return Shape(path.stem, inside, surface)
