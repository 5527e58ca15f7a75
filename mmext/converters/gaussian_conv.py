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
    # The standard deviations of rows and columns; those of a full covariance are of its Cholesky factor's columns.
    largest = sigma.abs().max()
    if sigma.numel() == 3:
        a, b, c = sigma[0]
        largest = torch.maximum(a.exp(), torch.hypot(b, c.exp()))
    reach = max(1, math.ceil(2 * float(largest)))
    layer.notes.append(
        f'{layer.name} has a largest sigma of {largest:.4g}, for which the released window reaches {reach} pixels; '
        f'max_sigma={reach / 2:g} gives that window'
    )
    return dict(weight=source(layer['weight']), log_sigma=numbers)
