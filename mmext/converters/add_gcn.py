"""ADD-GCN: the released classifiers, whose backbone is a numbered sequence and whose scores are masked."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['add_gcn']

_NAMES = {
    r'features\.0\.': 'backbone.conv1.',
    r'features\.1\.': 'backbone.bn1.',
    r'features\.4\.': 'backbone.layer1.',
    r'features\.5\.': 'backbone.layer2.',
    r'features\.6\.': 'backbone.layer3.',
    r'features\.7\.': 'backbone.layer4.',
    r'fc\.': 'head.class_maps.',
    r'conv_transform\.': 'head.transform.',
    r'gcn\.static_adj\.0\.': 'head.static_adjacency.',
    r'gcn\.static_weight\.0\.': 'head.static_weight.',
    r'gcn\.conv_global\.': 'head.whole.',
    r'gcn\.bn_global\.': 'head.whole_norm.',
    r'gcn\.conv_create_co_mat\.': 'head.dynamic_adjacency.',
    r'gcn\.dynamic_weight\.': 'head.dynamic_weight.',
    r'last_linear\.': 'head.score.',
}


@system(
    'MultiLabelADDGCNHead',
    r'gcn\.static_adj\.0\.weight',
    takes='.*',
    signature=(r'gcn\.static_adj\.0\.weight', r'last_linear\.weight'),
)
def add_gcn(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name backbone and head as mmpretrain's classifier does; the mask, which is the identity, is left."""
    ours = {}
    for key in layer:
        for pattern, new in _NAMES.items():
            if re.match(pattern, key):
                ours[re.sub(f'^{pattern}', new, key)] = layer[key]
                break
    ours['head.score.weight'] = layer['last_linear.weight'].squeeze(2)
    return ours
