"""SMPConv: points that all channels share, or points of each output."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['smpconv']


@system(
    'SMPConv2d', 'weight_coord', takes='radius|weights|kernel_coord', signature=('weight_coord', 'radius', 'weights')
)
def smpconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Drop the grid; the weights of points that all channels share get the layout of a depthwise kernel."""
    weights = layer['weights']
    if len(layer['weight_coord']) == len(weights) == 1:
        weights = weights.transpose(0, 1)
    return dict(weight_coord=layer['weight_coord'], radius=layer['radius'], weights=weights)
