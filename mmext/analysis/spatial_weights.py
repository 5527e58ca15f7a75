"""Pictures of how the pixels of a network exchange information, where one matrix says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmext.contracts import HasSpatialWeights
from mmext.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_spatial_weights']

#: Pixels of the longest side of a drawn matrix; a larger one is averaged.
_SIDE = 392


def draw_spatial_weights(network: HasSpatialWeights, stage: int, channel: int = 0, points: int = 3) -> Figure:
    """Draw the weights between all pixels of one channel of a stage (ours).

    Above stand the matrix along the columns, the one along the rows, and their Kronecker product. Below are rows of the
    product as maps: what the output at a marked pixel takes of each input pixel. The identity, which the shortcuts add, is
    left out of the maps' scale.

    Args:
        network: Answers :class:`mmext.contracts.HasSpatialWeights`.
        stage: From 0 on.
        channel: From 0 on.
        points: How many pixels are marked, along the diagonal of the map.

    Raises:
        ImportError: If matplotlib is missing.
    """
    rows, columns = (factor.float().cpu() for factor in network.spatial_factors(stage, channel))
    height, width = len(rows), len(columns)
    weights = torch.kron(rows, columns)
    figure = new_figure(3.2 * max(3, points), 6.6)
    figure.suptitle(f'stage {stage}, channel {channel}: {height} x {width} pixels')
    panels: Any = figure.subfigures(2)
    above, below = panels[0].subplots(1, 3), panels[1].subplots(1, points, squeeze=False)[0]
    titles = (f'along columns ({height}, {height})', f'along rows ({width}, {width})')
    for axes, matrix, title in zip(
        above, (rows, columns, weights), (*titles, f'all pixels {tuple(weights.shape)}'), strict=True
    ):
        drawn = _shrunk(matrix)
        _show(figure, axes, drawn, _scale(drawn), title)
    for k, axes in enumerate(below):
        y, x = (int((k + 0.5) * side / points) for side in (height, width))
        field = weights[y * width + x].view(height, width)
        others = field.clone()
        others[y, x] = 0
        _show(figure, axes, field, _scale(others), f'output at ({y}, {x})')
        axes.plot(x, y, marker='+', color='black')
    return figure


def _scale(matrix: Tensor) -> float:
    """Return the largest magnitude beside the diagonal, on which the shortcuts stand."""
    square = matrix.shape[0] == matrix.shape[1] > 1
    others = matrix - torch.diag(matrix.diagonal()) if square else matrix
    return max(float(others.abs().max()), 1e-12)


def _shrunk(matrix: Tensor) -> Tensor:
    if len(matrix) <= _SIDE:
        return matrix
    return interpolate(matrix[None, None], (_SIDE, _SIDE), mode='area')[0, 0]


def _show(figure: Figure, axes: Any, matrix: Tensor, limit: float, title: str) -> None:
    drawn = axes.imshow(matrix.numpy(), cmap='RdBu_r', vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=axes, shrink=0.7)
