"""ConViT: queries and keys in one projection, values in another, and a bias that cancels in the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['gpsa']


@system(
    'GPSA',
    'gating_param',
    takes=r'(?:qk|v|proj|pos_proj)\.(?:weight|bias)',
    signature=('gating_param', r'pos_proj\.weight', r'qk\.weight'),
)
def gpsa(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Put queries, keys and values into one projection, and leave the bias of the places out."""
    ours = {key: layer[key] for key in ('gating_param', 'pos_proj.weight', 'proj.weight', 'proj.bias')}
    ours['qkv.weight'] = torch.cat((layer['qk.weight'], layer['v.weight']))
    if 'qk.bias' in layer:
        ours['qkv.bias'] = torch.cat((layer['qk.bias'], layer['v.bias']))
    return ours
