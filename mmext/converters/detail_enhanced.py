"""DEA-Net: five branches under the names of the training code, or the released, simplified form, whose kernels are plain."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.converters.engine import Layer, choice, source, system
from mmext.errors import UsageError

__all__ = ['detail_enhanced']


@system(
    'DEConv2d',
    r'conv1_5\.weight|weight',
    takes=r'conv1_[1-4]\.conv\.(weight|bias)|conv1_5\.bias',
    signature=(r'conv1_1\.conv\.weight', r'conv1_5\.weight'),
    hint='A file in the released, simplified form has plain kernels; --options form=simplified keeps them.',
    form='branches (the default), or simplified, where each layer is one plain 3x3 kernel, which is kept',
)
def detail_enhanced(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Name the branches by what they do, and add up their five biases."""
    simplified = choice(options, 'form', ('branches', 'simplified'), 'branches') == 'simplified'
    if 'conv1_5.weight' not in layer:
        kernel = layer['weight']
        return dict(weight=kernel) if simplified and kernel.shape[2:] == (3, 3) else None
    if simplified:
        raise UsageError(f'{layer.name} has five branches; leave --options form=simplified out')
    branches = ('conv1_1.conv', 'conv1_2.conv', 'conv1_3.conv', 'conv1_4.conv', 'conv1_5')
    central, horizontal, vertical, angular, plain = (layer[f'{b}.weight'] for b in branches)
    ours = dict(weight=source(plain), central=central, horizontal=horizontal, vertical=vertical, angular=angular)
    if 'conv1_5.bias' in layer:
        ours['bias'] = torch.stack([layer[f'{b}.bias'] for b in branches]).sum(0)
    return ours
