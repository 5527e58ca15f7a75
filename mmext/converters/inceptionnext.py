"""InceptionNeXt: the network, whose blocks and transitions stand in its stages there."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.converters.inception_dwconv import inception_dwconv

__all__ = ['inceptionnext']

BLOCK = r'stages\.(\d+)\.blocks\.(\d+)\.'
NAMES = (
    (r'stem\.(\d)\.(\w+)', r'stem.\1.\2'),
    (r'stages\.(\d+)\.downsample\.(\d)\.(\w+)', r'stages.\1.shrink.\2.\3'),
    (rf'{BLOCK}(norm\.\w+|gamma)', r'stages.\1.blocks.\2.\3'),
    (rf'{BLOCK}mlp\.fc1\.(\w+)', r'stages.\1.blocks.\2.expand.\3'),
    (rf'{BLOCK}mlp\.fc2\.(\w+)', r'stages.\1.blocks.\2.project.\3'),
)


@system(
    'InceptionNeXt',
    r'stages\.0\.blocks\.0\.token_mixer\.dwconv_hw\.weight',
    takes=r'(stem|stages|head)\..*',
    signature=(r'stem\.0\.weight', r'stages\.0\.blocks\.0\.token_mixer\.dwconv_hw\.weight'),
)
def inceptionnext(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the blocks and transitions as here; the classifier is left out."""
    ours = layer.renamed(*NAMES)
    for prefix in dict.fromkeys(m[0] for k in layer if (m := re.match(rf'{BLOCK}token_mixer\.', k))):
        stage, block = re.findall(r'\d+', prefix)
        mixer = inception_dwconv(layer.part(prefix), options)
        ours |= {f'stages.{stage}.blocks.{block}.mixer.{name}': tensor for name, tensor in (mixer or {}).items()}
    return ours
