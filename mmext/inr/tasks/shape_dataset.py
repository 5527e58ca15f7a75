"""The points of a shape, as a data set."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset

from mmext.arguments import Count, NonNegative, Share
from mmext.inr.grid import coordinate_grid
from mmext.inr.tasks.drawing_shapes import inside_of, shaded_view
from mmext.inr.tasks.shapes import load_shape
from mmext.registry import DATASETS

__all__ = ['ShapeDataset']

#: Points that a hook measures statistics on.
_SAMPLE = 65536
#: Draws before they are repeated. One is the index of an item, so that a run that is resumed, or has workers, sees the same.
_DRAWS = 2**17
#: Signed distances are computed once, of that many times the points of a step.
_POOL = 32


@DATASETS.register_module()
class ShapeDataset(Dataset):
    """Points of a shape that are drawn anew in each step, or the grid of all (ours).

    Occupancy is known on a grid, whose points are drawn: a share of them near the surface, where a neighbor, also across a
    corner, is on the other side. Signed distances are known everywhere. They are drawn from 32 times the points, which are
    computed once: a share of them near points of the surface, the others evenly in [-1, 1]. Oriented points are a share of
    points on the surface with its normals, and others, evenly in [-1, 1], of which nothing is known.

    Args:
        shape: ``'terrain'``, ``'blocks'``, ``'cortex'`` if nilearn is installed, or the path of a closed mesh or a volume, see
            :func:`mmext.inr.load_shape`.
        kind: ``'occupancy'``, one inside and zero outside; ``'sdf'``, the signed distance, negative inside; ``'oriented'``,
            points of the surface, for :class:`mmext.OrientedPointOperator`, whose target is the signed distance.
        size: Points of the grid per axis, from -1 to 1.
        points: Points that a step sees.
        near: The share of them that is near the surface, or on it; the others are even.
        spread: Standard deviation of the distances from the surface of points near it; of ``'sdf'`` only.
        split: ``'train'``: an item for each step, its points drawn anew; ``'test'``: the grid.
        seed: Of what is drawn.

    Shape:
        The item is ``inputs``, points (n, 3) or the grid (size, size, size, 3), and ``data_samples``, a ``BaseDataElement``
        with ``measurement`` (n, 1), of oriented points (n, 4), or with ``target`` (size, size, size, 1) and ``surface``, the
        true :class:`mmext.inr.Mesh`, and the metainfo ``signal``, ``size`` and ``kind``.

    Raises:
        ValueError: If there is no such shape, its mesh is not watertight, or nothing is near its surface on the grid.
        ImportError: If a package is missing that the shape comes with.

    Example:
        >>> item = ShapeDataset(shape='blocks', size=16, points=100)[0]
        >>> item['inputs'].shape, item['data_samples'].measurement.shape
        (torch.Size([100, 3]), torch.Size([100, 1]))
    """

    example = dict(shape='blocks', size=16, points=100)

    def __init__(
        self,
        shape: str = 'terrain',
        kind: Literal['occupancy', 'sdf', 'oriented'] = 'occupancy',
        size: Count = 64,
        points: Count = 8192,
        near: Share = 0.5,
        spread: NonNegative = 0.05,
        split: Literal['train', 'test'] = 'train',
        seed: int = 0,
    ) -> None:
        if size < 4:
            raise ValueError(f'ShapeDataset needs a grid of four points per axis at least, got {size=}')
        self.shape = load_shape(shape)
        self.kind = kind
        self.size = size
        self.points = points
        self.near = near
        self.spread = spread
        self.split = split
        self.seed = seed
        # What the network represents, which the metric and the pictures ask.
        represents = 'occupancy' if kind == 'occupancy' else 'sdf'
        self.metainfo: dict[str, Any] = dict(signal=shape, size=(size, size, size), kind=represents)

    def __len__(self) -> int:
        return _DRAWS if self.split == 'train' else 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f'ShapeDataset has {len(self)} items, got the index {index}')
        sample = BaseDataElement(metainfo=self.metainfo)
        if self.split == 'test':
            sample.target = self._target
            sample.surface = self.shape.surface
            return dict(inputs=self.grid, data_samples=sample)
        inputs, sample.measurement = self._draw(self.points, self.seed, index % len(self))
        return dict(inputs=inputs, data_samples=sample)

    def statistics_sample(self) -> Tensor:
        """Return points distributed as in training, the same at each call."""
        return self._draw(_SAMPLE, self.seed, _DRAWS)[0]

    def overview(self) -> Tensor:
        """Return the shape from three sides, shaded, (3, 3, size, size)."""
        field = inside_of(self._target, self.metainfo['kind'])[..., 0]
        smooth = self.kind == 'occupancy'
        views = [shaded_view(field, *axes, smooth=smooth)[0] for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
        return torch.stack([torch.as_tensor(view).float().movedim(-1, 0).flip(1) for view in views])

    @cached_property
    def grid(self) -> Tensor:
        """All points, (size, size, size, 3)."""
        return coordinate_grid(self.size, self.size, self.size)

    @cached_property
    def _occupied(self) -> Tensor:
        return self.shape.voxels(self.size).float()

    @cached_property
    def _target(self) -> Tensor:
        return (self._occupied if self.kind == 'occupancy' else self.shape.distance(self.grid))[..., None]

    @cached_property
    def _near_surface(self) -> Tensor:
        """The indices of points on the grid that have a neighbor on the other side."""
        occupied = F.pad(self._occupied[None, None], (1,) * 6)
        shell = F.max_pool3d(occupied, 3, 1) != -F.max_pool3d(-occupied, 3, 1)
        found = shell.flatten().nonzero().squeeze(1)
        if not len(found):
            raise ValueError(
                f'ShapeDataset finds nothing of {self.metainfo["signal"]} on a grid of {self.size} points per axis; set a '
                'larger size'
            )
        return found

    @cached_property
    def _on_surface(self) -> tuple[Tensor, Tensor]:
        """Points on the surface and its normals there."""
        points, normals = self.shape.surface.sample(max(round(self.near * _POOL * self.points), 1), self.seed)
        return torch.from_numpy(points).float(), torch.from_numpy(normals).float()

    @cached_property
    def _pool(self) -> tuple[Tensor, Tensor, int]:
        """Points and their signed distances, those near the surface first, and how many these are."""
        generator = torch.Generator().manual_seed(self.seed)
        total = _POOL * self.points
        count = round(self.near * total)
        close = self._on_surface[0][:count]
        close = (close + self.spread * torch.randn(close.shape, generator=generator)).clamp(-1, 1)
        even = 2 * torch.rand(total - count, 3, generator=generator) - 1
        points = torch.cat((close, even))
        return points, self.shape.distance(points), count

    def _draw(self, points: int, *key: int) -> tuple[Tensor, Tensor]:
        """Draw points and their values; the same for the same key."""
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
        count = round(self.near * points)
        if self.kind == 'oriented':
            places, normals = self._on_surface
            chosen = torch.randint(len(places), (count,), generator=generator)
            even = 2 * torch.rand(points - count, 3, generator=generator) - 1
            known = F.pad(normals[chosen], (1, 0), value=1.0)
            return torch.cat((places[chosen], even)), torch.cat((known, known.new_zeros(len(even), 4)))
        if self.kind == 'sdf':
            coords, values, close = self._pool
            parts = [(0, close, count), (close, len(coords), points - count)]
            chosen = torch.cat([torch.randint(a, b, (n,), generator=generator) for a, b, n in parts if n])
            return coords[chosen], values[chosen, None]
        even = torch.randint(self.size**3, (points - count,), generator=generator)
        if count:
            shell = self._near_surface
            even = torch.cat((shell[torch.randint(len(shell), (count,), generator=generator)], even))
        return self.grid.flatten(0, -2)[even], self._occupied.flatten()[even, None]
