"""Networks with binary weights: in their files the latent weights look like kernels."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import WHICH, Layer, source, system

__all__ = ['binary_weight']


@system('BinaryWeightConv2d', 'weight', layers=f'the binary layers{WHICH}')
def binary_weight(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Mark latent weights as such: in the file they look like kernels."""
    return dict(weight=source(layer['weight']))
