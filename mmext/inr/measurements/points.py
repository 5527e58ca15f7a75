"""Points of a shape, each of which is known to be inside or how far from the surface."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmext.arguments import Count
from mmext.inr.measurements.operators import Field, LossKind, MeasurementOperator
from mmext.numerics import at_least_float32
from mmext.registry import MODELS

__all__ = ['PointOperator']


@MODELS.register_module()
class PointOperator(MeasurementOperator):
    r"""Points of a shape are measured one by one: its occupancy, or its signed distance (ours).

    The data set, a :class:`mmext.ShapeDataset`, draws the points and brings their values.

    Args:
        kind: ``'occupancy'``: one inside and zero outside; ``'sdf'``: the signed distance, negative inside.
        loss: ``'bce'``: binary cross entropy, the network returns logits; ``'mse'`` or ``'l1'``: a distance of values. By
            default the first one for occupancy and the second one for distances.
        chunk: Points that are evaluated together; memory of an evaluation does not grow beyond that.

    Shape:
        Points (..., 3) to values (..., 1).

    Raises:
        ValueError: If signed distances are given a cross entropy.

    Example:
        >>> operator = PointOperator()
        >>> operator.reconstruct(lambda points: points.sum(-1, keepdim=True), torch.zeros(4, 4, 4, 3))['prediction'].mean()
        tensor(0.5000)
    """

    pointwise = True
    simulates = False

    def __init__(
        self, kind: Literal['occupancy', 'sdf'] = 'occupancy', loss: LossKind | None = None, chunk: Count = 65536
    ) -> None:
        super().__init__(loss=loss or ('bce' if kind == 'occupancy' else 'mse'))
        if kind == 'sdf' and self.loss_kind == 'bce':
            raise ValueError(
                "PointOperator with kind='sdf' compares distances, which have no cross entropy, got loss='bce'; pass 'mse'"
            )
        self.kind = kind
        self.chunk = chunk

    def forward(self, image: Tensor) -> Tensor:
        """Return the values."""
        return image

    @torch.no_grad()
    def reconstruct(self, field: Field, coords: Tensor) -> dict[str, Tensor]:
        """Return the values at all points of the item as ``prediction``; of logits the probabilities."""
        parts = [
            super(PointOperator, self).reconstruct(field, part) for part in coords.flatten(0, -2).split(self.chunk)
        ]
        return {'prediction': torch.cat([p['prediction'] for p in parts]).unflatten(0, coords.shape[:-1])}

    def solid(self, field: Field, points: Tensor, cell: float) -> Tensor:
        """Return a function of points (N, 3) that is positive inside of the shape and zero on its surface, (N,)."""
        values = at_least_float32(field(points))[..., 0]
        if self.kind == 'sdf':
            return -values
        return values if self.loss_kind == 'bce' else values - 0.5

    def extra_repr(self) -> str:
        return f'kind={self.kind!r}, loss={self.loss_kind!r}, chunk={self.chunk}'
