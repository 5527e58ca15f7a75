"""InceptionNeXt: three branches under the names of their shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['inception_dwconv']


@system(
    'InceptionDWConv2d',
    r'dwconv_hw\.weight',
    takes=r'dwconv_[hw]\.(weight|bias)|dwconv_hw\.bias',
    signature=(r'dwconv_hw\.weight', r'dwconv_h\.weight', r'dwconv_w\.weight'),
)
def inception_dwconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the branches by their shapes and join their biases."""
    branches = dict(square='dwconv_hw', row='dwconv_w', column='dwconv_h')
    ours = {name: layer[f'{official}.weight'] for name, official in branches.items()}
    if 'dwconv_hw.bias' in layer:
        ours['branch_bias'] = torch.cat([layer[f'{official}.bias'] for official in branches.values()])
    return ours
