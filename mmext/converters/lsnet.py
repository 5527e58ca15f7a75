"""LSNet: the released classifiers, with or without a head for distillation, and detectors."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['lsnet']

#: Of a layer of convolution and norm.
_PARTS = {'c': 'conv', 'bn': 'norm'}
_MIXER = {
    r'mixer\.conv\.c\.': 'mixer.0.branches.0.',
    r'mixer\.conv\.bn\.': 'mixer.0.branches.0.norm.',
    r'mixer\.conv1\.c\.': 'mixer.0.branches.1.',
    r'mixer\.conv1\.bn\.': 'mixer.0.branches.1.norm.',
    r'se\.(?:fc1|conv_reduce)\.': 'mixer.1.reduce.',
    r'se\.(?:fc2|conv_expand)\.': 'mixer.1.expand.',
    r'mixer\.lkp\.cv1\.(c|bn)\.': 'mixer.enter.{0}.',
    r'mixer\.lkp\.cv2\.(c|bn)\.': 'mixer.view.{0}.',
    r'mixer\.lkp\.cv3\.(c|bn)\.': 'mixer.leave.{0}.',
    r'mixer\.lkp\.cv4\.': 'mixer.span.',
    r'mixer\.lkp\.norm\.': 'mixer.span_norm.',
    r'mixer\.bn\.': 'mixer.norm.',
    r'mixer\.m\.qkv\.(c|bn)\.': 'mixer.qkv.{0}.',
    r'mixer\.m\.dw\.(c|bn)\.': 'mixer.spread.{0}.',
    r'mixer\.m\.proj\.1\.(c|bn)\.': 'mixer.project.{0}.',
    r'mixer\.m\.attention_biases': 'mixer.biases',
    r'ffn\.m\.pw1\.(c|bn)\.': 'expand.{0}.',
    r'ffn\.m\.pw2\.(c|bn)\.': 'project.{0}.',
}


@system(
    'LSNet',
    r'patch_embed\.0\.c\.weight',
    takes=r'(patch_embed|blocks\d|head|head_dist)\..*',
    signature=(r'patch_embed\.4\.c\.weight', r'blocks\d\.\d+\.mixer\.lkp\.cv1\.c\.weight'),
)
def lsnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name stages and the parts of the blocks as ours are; classifiers and tables of indices are left out."""
    kept = [name for name in layer if not name.startswith('head') and not name.endswith('attention_bias_idxs')]
    return {_ours(name): layer[name] for name in kept}


def _ours(name: str) -> str:
    if found := re.fullmatch(r'patch_embed\.(\d)\.(c|bn)\.(.*)', name):
        return f'stem.{int(found[1]) // 2}.{_PARTS[found[2]]}.{found[3]}'
    if found := re.fullmatch(r'blocks(\d)\.([01])\.(c|bn)\.(.*)', name):
        return f'stages.{int(found[1]) - 1}.shrink.{found[2]}.{_PARTS[found[3]]}.{found[4]}'
    if not (found := re.fullmatch(r'blocks(\d)\.(\d+)\.(.*)', name)):
        return name
    stage, block, rest = found.groups()
    # Two layers that shrink the map stand before the blocks of all stages but the first.
    place = int(block) - (2 if stage != '1' else 0)
    for pattern, ours in _MIXER.items():
        if found := re.match(pattern, rest):
            return f'stages.{int(stage) - 1}.blocks.{place}.' + (
                ours.format(*(_PARTS[part] for part in found.groups())) + rest[found.end() :]
            )
    return name
