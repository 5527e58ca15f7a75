"""FDConv: other names. Where frequencies are equal, the released code leaves their order to the sort of its torch."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['fd_conv']

GLOBAL, LOCAL, BANDS = 'KSM_Global', 'KSM_Local', r'FBM\.freq_weight_conv_list'
HEADS = dict(channel_fc='inputs', filter_fc='outputs', spatial_fc='taps', kernel_fc='kernels')


@system(
    'FDConv2d',
    'dft_weight',
    takes=rf'bias|{GLOBAL}\..*|{LOCAL}\..*|{BANDS}\..*',
    signature=('dft_weight', rf'{GLOBAL}\.fc\.weight'),
)
def fd_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Rename, and put scale and shift of the activation into one tensor."""
    ours = {key: layer[key] for key in ('dft_weight', 'bias') if key in layer}
    ours['reduce.conv.weight'] = layer[f'{GLOBAL}.fc.weight']
    ours['star'] = torch.cat((layer[f'{GLOBAL}.relu.scale'], layer[f'{GLOBAL}.relu.bias']))
    for key in layer:
        if norm := re.fullmatch(rf'{GLOBAL}\.bn\.(\w+)', key):
            ours[f'reduce.norm.{norm[1]}'] = layer[key]
        elif (head := re.fullmatch(rf'{GLOBAL}\.(\w+)\.(weight|bias)', key)) and head[1] in HEADS:
            ours[f'heads.{HEADS[head[1]]}.{head[2]}'] = layer[key]
        elif band := re.fullmatch(rf'{BANDS}\.(\d+\.\w+)', key):
            ours[f'bands.weights.{band[1]}'] = layer[key]
        elif norm := re.fullmatch(rf'{LOCAL}\.norm\.(\w+)', key):
            ours[f'local_norm.{norm[1]}'] = layer[key]
    if f'{LOCAL}.conv.weight' in layer:
        ours['local_weight'] = layer[f'{LOCAL}.conv.weight']
    return ours
