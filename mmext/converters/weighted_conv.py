"""Weighted convolutions: the mask over the kernel, or the numbers that it is made of."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, source, system

__all__ = ['weighted_conv']


@system('WeightedConv2d', 'Phi|den', takes='weight|alfa', signature=('Phi|den', 'weight'))
def weighted_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Keep the density's free numbers, the outermost first, be they fixed or trained."""
    weight = layer['weight']
    if weight.ndim != 4:
        return None
    taps = weight.shape[-1] // 2
    if taps == 0:
        return dict(weight=weight)
    # The middle row of the mask is the profile, which is 1 in its center.
    density = layer['den'] if 'den' in layer else layer['Phi'][taps, :taps]
    return dict(weight=source(weight), density=density)
