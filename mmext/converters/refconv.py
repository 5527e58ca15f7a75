"""RefConv: the frozen basis and the map over it."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, source, system
from mmext.errors import UsageError

__all__ = ['refconv']


@system('RefConv2d', r'convmap\.weight', signature=(r'convmap\.weight', 'weight'))
def refconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Keep the frozen basis and the map over it."""
    basis, weight = layer['weight'], layer['convmap.weight']
    if len(weight) != basis.shape[0] * basis.shape[1]:
        raise UsageError(
            f'{layer.name} has a map over {len(weight)} slices and a basis of {basis.shape[0]} x {basis.shape[1]} of them'
        )
    return dict(weight=source(basis), map_weight=weight)
