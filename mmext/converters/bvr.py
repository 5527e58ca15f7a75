"""RelationNet++: a detector whose head has the bridge. The code of ways is made anew."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['bvr']

WAYS = r'relative_positional_encoding\.((?:\d+\.)?)embedding_transform\.0\.conv\.(\w+)'
NAMES = (
    (r'bbox_head\.(.*)', r'\1'),
    (r'(keypoint_head\..*)', r'\1'),
    (r'(cls|reg)_transformer\.decoder\.(.*)', r'\1_relation.attentions.\2'),
    (rf'(cls|reg)_transformer\.{WAYS}', r'\1_relation.geometry.\2transform.\3'),
    (r'(cls|reg)_transformer\.((?:embed|pos)_trans\..*)', r'\1_relation.\2'),
)


@system(
    'BVRHead',
    r'keypoint_head\.keypoint_cls_heads\.center\.0\.(?:conv\.)?weight',
    takes=r'(bbox_head|keypoint_head|cls_transformer|reg_transformer)\..*',
    signature=(
        r'keypoint_head\.keypoint_cls_heads\.center\.0\.(?:conv\.)?weight',
        r'(cls|reg)_transformer\.decoder\.0\.in_proj_weight',
    ),
)
def bvr(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Put the wrapped head in the place of the wrapper, and name the bridge as here."""
    ours = layer.renamed(*NAMES)
    return {k: v.flatten(1) if k.endswith('transform.weight') and v.ndim == 4 else v for k, v in ours.items()}
