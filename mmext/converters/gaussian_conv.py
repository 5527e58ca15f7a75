"""Gaussian composition: the released layer keeps standard deviations, ours their logarithms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmext.converters.engine import Layer, source, system
from mmext.errors import UsageError

__all__ = ['gaussian_conv']


@system('GaussianConv2d', 'sigma', signature=('sigma', 'weight'))
def gaussian_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Learn logarithms: of sigma, or of sigma per axis; the three numbers of a full covariance stay as they are."""
    sigma = layer['sigma'].reshape(1, -1)
    if sigma.numel() > 3:
        raise UsageError(
            f'{layer.name} has {sigma.numel()} values of sigma, which are 1, 2 or 3 in the released layers'
        )
    numbers = sigma if sigma.numel() == 3 else sigma.abs().log()
    # The standard deviations of rows and columns. Those of a full covariance are of its Cholesky factor's columns.
    rows, cols = sigma[0, 0].abs(), sigma[0, -1].abs()
    if sigma.numel() == 3:
        a, b, c = sigma[0]
        rows, cols = a.exp(), torch.hypot(b, c.exp())
    down, right = (max(1, math.ceil(2 * float(s))) for s in (rows, cols))
    window = f'{down / 2:g}' if down == right else f'({down / 2:g}, {right / 2:g})'
    layer.notes.append(
        f'{layer.name} has a sigma of {rows:.4g} along rows and {cols:.4g} along columns; its released window reaches {down} '
        f'rows and {right} columns, which max_sigma={window} gives'
    )
    return dict(weight=source(layer['weight']), log_sigma=numbers)
