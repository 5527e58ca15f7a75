"""Partial convolutions: their keys are those of plain ones."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['partial_conv']


@system('PartialConv2d', 'weight')
def partial_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Keep the kernel: the keys are those of a plain convolution, and ours."""
    return dict(weight=layer['weight'])
