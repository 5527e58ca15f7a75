"""Hypercomplex networks: convolutions, and linear layers, which become plain ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['phconv']


@system('PHConv2d', 'F|S|s', takes='A|a|bias', signature=('A|a', 'F|S|s'))
def phconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Rename algebra and filters, and drop the bias, which the released layer never adds; fold hypercomplex linear layers."""
    if {'A', 'F'} <= layer.keys() and layer['F'].ndim == 5:
        return dict(algebra=layer['A'], filters=layer['F'].flatten(0, 1))
    # The networks write a linear layer's tensors in capitals, the library of layers does not.
    for algebra, matrices in (('A', 'S'), ('a', 's')):
        if {algebra, matrices} <= layer.keys() and layer[matrices].ndim == 3:
            kernel = torch.einsum('spq,soi->poqi', layer[algebra], layer[matrices])
            linear = dict(weight=kernel.flatten(2).flatten(0, 1))
            return {**linear, 'bias': layer['bias']} if 'bias' in layer else linear
    return None
