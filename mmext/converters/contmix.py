"""ContMix: the dynamic convolution inside of the released plug-in block."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['contmix']

NAMES = (
    (r'weight_query\.0\.(\w+)', r'mixer.query.conv.\1'),
    (r'weight_query\.1\.(\w+)', r'mixer.query.norm.\1'),
    (r'weight_key\.1\.(\w+)', r'mixer.key.conv.\1'),
    (r'weight_key\.2\.(\w+)', r'mixer.key.norm.\1'),
    (r'weight_value\.0\.(\w+)', r'value.conv.\1'),
    (r'weight_value\.1\.(\w+)', r'value.norm.\1'),
    (r'weight_proj\.(\w+)', r'mixer.project.\1'),
    (r'fusion_proj\.0\.(\w+)', r'fuse.conv.\1'),
    (r'fusion_proj\.1\.(\w+)', r'fuse.norm.\1'),
    ('rpb1', 'mixer.small_bias'),
    ('rpb2', 'mixer.large_bias'),
)


@system(
    'ContMixConv2d',
    'rpb1',
    takes=r'rpb2|(?:weight_(?:query|key|value)|fusion_proj)\.\d\.\w+|weight_proj\.\w+',
    signature=('rpb1', r'weight_value\.0\.weight', r'weight_proj\.weight'),
)
def contmix(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names; what surrounds the convolution in the block keeps its own."""
    return layer.renamed(*NAMES)
