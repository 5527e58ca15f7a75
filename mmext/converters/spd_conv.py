"""SPD-Conv: the convolution right behind space-to-depth, whose key is that of a plain one."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import WHICH, Layer, system

__all__ = ['spd_conv']


@system('SPDConv2d', 'weight', layers=f'the convolutions of the phases{WHICH}')
def spd_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Rename the kernel of a convolution right behind space-to-depth; the phases are in the same order."""
    return dict(phase_weight=layer['weight'])
