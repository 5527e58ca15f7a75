"""BTS: the decoder of the released depth estimators, whose stages count from the coarse end."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['local_planar_guidance']

_UP = {'5': 'up16', '4': 'up8', '3': 'up4', '2': 'up2'}
_NAMES = [
    (r'upconv1\.conv\.', lambda m: 'up1.'),
    (r'conv1\.0\.', lambda m: 'join1.'),
    (r'get_depth\.0\.', lambda m: 'predict_depth.'),
    (r'bn4_2\.', lambda m: 'norm8.'),
    (r'upconv([2-5])\.conv\.', lambda m: f'{_UP[m[1]]}.up.'),
    (r'bn([2-5])\.', lambda m: f'{_UP[m[1]]}.up_norm.'),
    (r'conv([2-5])\.0\.', lambda m: f'{_UP[m[1]]}.join.'),
    (r'daspp_conv\.0\.', lambda m: 'atrous_join.'),
    (r'reduc([248])x\1\.reduc\.plane_params\.', lambda m: f'planes{m[1]}.last.'),
    (r'reduc1x1\.reduc\.final\.0\.', lambda m: 'plain.last.'),
]
_ATROUS = {'first_bn': 'first_norm', 'aconv_sequence.1': 'reduce', 'aconv_sequence.2': 'middle_norm'}


@system(
    'LocalPlanarGuidanceHead',
    r'upconv5\.conv\.weight',
    takes='.*',
    signature=(r'upconv5\.conv\.weight', r'reduc8x8\.reduc\.plane_params\.weight'),
    hint='The whole file also holds the encoder; this is the decoder alone.',
)
def local_planar_guidance(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the stages by their strides, and count the atrous and the 1x1 convolutions."""
    dilations = sorted({int(m[1]) for key in layer if (m := re.match(r'daspp_(\d+)\.', key))})
    widths: dict[str, list[int]] = {}
    for key in layer:
        if m := re.match(r'reduc(\d)x\1\.reduc\.inter_\d+_(\d+)\.', key):
            widths.setdefault(m[1], []).append(int(m[2]))
    ours = {}
    for key in layer:
        name = key
        for pattern, new in _NAMES:
            if re.match(pattern, key):
                name = re.sub(f'^{pattern}', new, key)
                break
        if m := re.match(r'daspp_(\d+)\.atrous_conv\.(first_bn|aconv_sequence\.\d)\.(.*)', key):
            name = f'atrous.{dilations.index(int(m[1]))}.{_ATROUS.get(m[2], "dilated")}.{m[3]}'
        elif m := re.match(r'reduc(\d)x\1\.reduc\.inter_\d+_(\d+)\.0\.(.*)', key):
            place = sorted(widths[m[1]], reverse=True).index(int(m[2]))
            name = f'{"plain" if m[1] == "1" else "planes" + m[1]}.steps.{2 * place}.{m[3]}'
        ours[name] = layer[key]
    return ours
