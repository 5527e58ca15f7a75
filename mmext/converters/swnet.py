"""SWNet: the network, with tables that no file holds."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.converters.shiftwise import RATIO, shiftwise
from mmext.converters.unireplknet import unireplknet_names

__all__ = ['swnet']


@system(
    'SWNet',
    r'downsample_layers\.0\.0\.weight',
    takes=r'(downsample_layers|stages|head)\..*|norm\d?\..*',
    signature=(r'downsample_layers\.0\.0\.weight', r'stages\.\d+\.\d+\.large_kernel\.LoRA.*'),
    ghost_ratio=f'part of the channels that pass, {RATIO} by default',
    n_rep='number of orders, 4 by default',
)
def swnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Draw the tables, put channels back into their order, name the layers as here; the classifier is left out."""

    def mixer(block: Layer) -> dict[str, Tensor]:
        found = shiftwise(block, options) or {}
        return {k.replace('large_kernel.', 'mixer.', 1): v for k, v in found.items()}

    return unireplknet_names(layer, mixer)
