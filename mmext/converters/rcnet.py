"""RCNet: the neck, whose five levels are called p3 to p7 there."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['rcnet']

NAMES = (
    (r'(lateral_convs\..*)', r'\1'),
    (r'extra_downsamples\.(\d+)\.0\.(.*)', r'extra_convs.\1.\2'),
    (r'CSN\.msm\.aggregation\.(.*)', r'shift.mixes.\1'),
    (r'CSN\.spatialContext\.channel_agg\.(.*)', r'shift.pixels.logits.\1'),
    (r'CSN\.spatialContext\.trans\.(.*)', r'shift.pixels.project.\1'),
    (r'CSN\.scaleContext\.channel_agg\.(.*)', r'shift.levels.logits.\1'),
    (r'CSN\.scaleContext\.trans\.(.*)', r'shift.levels.project.\1'),
)
PARTS = {'weight': 'gates', 'spatial_weight': 'spatial', 'temp': 'temperature'}


@system(
    'RCFPN',
    r'RevFP\.p3\.temp',
    takes=r'(lateral_convs|extra_downsamples|RevFP|CSN)\..*',
    signature=(r'RevFP\.p3\.temp', r'CSN\.msm\.aggregation\.0\.0\.conv\.weight'),
)
def rcnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names; levels count from 0."""
    ours = layer.renamed(*NAMES)
    for key in layer:
        if found := re.fullmatch(r'RevFP\.p(\d+)\.(\w+)(.*)', key):
            level, part, rest = found.groups()
            ours[f'nodes.{int(level) - 3}.{PARTS.get(part, part)}{rest}'] = layer[key]
    return ours
