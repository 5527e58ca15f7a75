"""ContMix: the dynamic convolution inside of the released plug-in block."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['contmix']

NAMES = {
    'weight_query.0.': 'mixer.query.conv.',
    'weight_query.1.': 'mixer.query.norm.',
    'weight_key.1.': 'mixer.key.conv.',
    'weight_key.2.': 'mixer.key.norm.',
    'weight_value.0.': 'value.conv.',
    'weight_value.1.': 'value.norm.',
    'weight_proj.': 'mixer.project.',
    'fusion_proj.0.': 'fuse.conv.',
    'fusion_proj.1.': 'fuse.norm.',
    'rpb1': 'mixer.small_bias',
    'rpb2': 'mixer.large_bias',
}


@system(
    'ContMixConv2d',
    'rpb1',
    takes=r'rpb2|(?:weight_(?:query|key|value)|fusion_proj)\.\d\.\w+|weight_proj\.\w+',
    signature=('rpb1', r'weight_value\.0\.weight', r'weight_proj\.weight'),
)
def contmix(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names; what surrounds the convolution in the block keeps its own."""
    return layer.renamed(NAMES)
