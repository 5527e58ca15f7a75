"""SMPConv: points that all channels share, or points of each output."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['smpconv']


@system(
    'SMPConv2d',
    r'(?:Kernel\.)?weight_coord',
    takes=r'(?:Kernel\.)?(?:radius|weights)|kernel_coord|train_length',
    signature=(r'(?:Kernel\.)?weight_coord', r'(?:Kernel\.)?radius', r'(?:Kernel\.)?weights'),
)
def smpconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Drop the grid and its size; the weights of points that all channels share get the layout of a depthwise kernel."""
    # The general form keeps its points in a module, and no grid.
    inner = 'Kernel.' if 'Kernel.weight_coord' in layer else ''
    ours = {name: layer[f'{inner}{name}'] for name in ('weight_coord', 'radius', 'weights')}
    if 'kernel_coord' in layer:
        ours['weights'] = ours['weights'].transpose(0, 1)
    return ours
