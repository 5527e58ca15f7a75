"""UniRepLKNet: branches under the names that tell their kernel size and dilation."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.convs.dilated_reparam import BRANCHES

__all__ = ['dilated_reparam']


@system(
    'DilatedReparamConv2d',
    r'lk_origin\.weight',
    takes=r'lk_origin\.bias|origin_bn\..*|dil_conv_k\d+_\d+\.weight|dil_bn_k\d+_\d+\..*',
    signature=(r'lk_origin\.weight',),
)
def dilated_reparam(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Number the branches; a merged block becomes a plain kernel with its bias."""
    size = layer['lk_origin.weight'].shape[-1]
    found = [match.groups() for k in layer if (match := re.fullmatch(r'dil_conv_k(\d+)_(\d+)\.weight', k))]
    if not found:
        return {k.removeprefix('lk_origin.'): layer[k] for k in layer if k.startswith('lk_origin.')}
    official = {f'{k}x{k}' + f'@{r}' * (r != '1'): (f'dil_conv_k{k}_{r}', f'dil_bn_k{k}_{r}') for k, r in found}
    order = [kind for kind in BRANCHES.get(size, ()) if kind in official]
    if len(order) < max(len(official), len(BRANCHES.get(size, ()))):
        order = list(official)
        layer.notes.append(f'{layer.name} has other branches than the table: build it with branches={order}')
    ours = {}
    for i, (conv, norm) in enumerate([('lk_origin', 'origin_bn'), *(official[kind] for kind in order)]):
        ours[f'branches.{i}.weight'] = layer[f'{conv}.weight']
        ours |= {f'branches.{i}.norm.{k.rpartition(".")[2]}': layer[k] for k in layer if k.startswith(f'{norm}.')}
    return ours
