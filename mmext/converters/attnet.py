"""AttNet: the network."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.at_conv import at_conv
from mmext.converters.engine import Layer, system

__all__ = ['attnet']

BLOCK, OURS = r'stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'
STEM = {'0': 0, '2': 3}
NAMES = (
    (r'downsample_layers\.([1-9])\.(\d)\.(\w+)', r'stages.\1.shrink.\2.\3'),
    (rf'{BLOCK}norm_1\.(\w+)', rf'{OURS}norms.0.\3'),
    (rf'{BLOCK}norm_2\.(\w+)', rf'{OURS}norms.1.\3'),
    (rf'{BLOCK}layer_scale_1\.gamma', rf'{OURS}scales.0'),
    (rf'{BLOCK}layer_scale_2\.gamma', rf'{OURS}scales.1'),
    *(
        (rf'{BLOCK}channel_mixer\.{theirs}\.(\w+)', rf'{OURS}mixers.1.{ours}.\3')
        for theirs, ours in (('fc1', 'expand'), ('dwconv', 'depthwise'), ('norm_layer', 'norm'), ('fc2', 'project'))
    ),
    (r'norm\.(\w+)', r'pooled_norm.\1'),
)


@system(
    'AttNet',
    r'downsample_layers\.0\.0\.0\.weight',
    takes=r'(downsample_layers|stages|head)\..*|norm\..*',
    signature=(r'downsample_layers\.0\.0\.0\.weight', r'stages\.\d+\.\d+\.token_mixer\.difference_control'),
)
def attnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the stem, transitions, norms and mixers as here; the classifier is left out."""
    ours = {}
    for key, tensor in layer.renamed(*NAMES).items():
        ours[key] = tensor.flatten() if re.search(r'\.(scales\.\d|norm\.weight)$', key) else tensor
    for key in layer:
        if found := re.fullmatch(r'downsample_layers\.0\.([02])\.(\d)\.(\w+)', key):
            ours[f'stem.{STEM[found[1]] + int(found[2])}.{found[3]}'] = layer[key]
    for prefix in dict.fromkeys(m[0] for k in layer if (m := re.match(rf'{BLOCK}token_mixer\.', k))):
        stage, block = re.findall(r'\d+', prefix)
        mixer = at_conv(layer.part(prefix), options)
        ours |= {f'stages.{stage}.blocks.{block}.mixers.0.{name}': tensor for name, tensor in (mixer or {}).items()}
    return ours
