"""SpaRTAN: the network. Blocks and transitions stand in one list there; a transition has a convolution of its own."""

from __future__ import annotations

import re

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['spartan']

PARTS = ((r'conv\.(\w+)', r'0.\1'), (r'norm\.(\w+)', r'1.\1'))
MIXERS = {
    'smixer.proj_in': 'mixers.0.reduce',
    'smixer.gamma': 'mixers.0.sharpness',
    'smixer.h_conv.conv': 'mixers.0.near.0',
    'smixer.h_conv.norm': 'mixers.0.near.1',
    'smixer.l_conv.0.conv': 'mixers.0.far.0',
    'smixer.l_conv.1.conv': 'mixers.0.far.1',
    'smixer.l_conv.1.norm': 'mixers.0.far.2',
    'smixer.h_attn.squeeze': 'mixers.0.near_gate.reduce',
    'smixer.h_attn.expand': 'mixers.0.near_gate.expand',
    'smixer.l_attn.squeeze': 'mixers.0.far_gate.reduce',
    'smixer.l_attn.expand': 'mixers.0.far_gate.expand',
    'smixer.proj_out': 'mixers.0.fuse',
    'cmixer.theta': 'mixers.1.phase',
    'cmixer.proj': 'mixers.1.weight',
    'cmixer.complex': 'mixers.1.wave',
    'cmixer.conv.conv': 'mixers.1.local.0',
    'cmixer.conv.norm': 'mixers.1.local.1',
    'cmixer.attn.squeeze': 'mixers.1.gate.reduce',
    'cmixer.attn.expand': 'mixers.1.gate.expand',
    'cmixer.proj_out': 'mixers.1.project',
    'norm_1': 'norms.0',
    'norm_2': 'norms.1',
    'scale_1': 'scales.0',
    'scale_2': 'scales.1',
}
NAMES = tuple((rf'{theirs.replace(".", chr(92) + ".")}(\.\w+)?', rf'{ours}\1') for theirs, ours in MIXERS.items())


@system(
    'SpaRTAN',
    r'layers\.0\.cmixer\.complex',
    takes=r'(conv|layers)\.\d+\..*|linear\..*',
    signature=(r'layers\.0\.cmixer\.complex', r'layers\.0\.smixer\.gamma', r'conv\.0\.conv\.weight'),
)
def spartan(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name blocks, transitions and mixers as here; the classifier is left out."""
    ours = {f'stem.{i}.{key}': tensor for i in '01' for key, tensor in layer.part(f'conv.{i}.').renamed(*PARTS).items()}
    stage, block = 0, 0
    numbers = sorted({int(found[1]) for key in layer if (found := re.match(r'layers\.(\d+)\.', key))})
    for number in numbers:
        part = layer.part(f'layers.{number}.')
        if 'conv.weight' in part:
            stage, block = stage + 1, 0
            ours |= {f'stages.{stage}.shrink.{key}': tensor for key, tensor in part.renamed(*PARTS).items()}
            continue
        for key, tensor in part.renamed(*NAMES).items():
            if key.endswith('wave'):
                tensor = tensor.reshape(-1, 2)
            elif 'scales' in key or key.endswith('sharpness'):
                tensor = tensor.flatten()
            ours[f'stages.{stage}.blocks.{block}.{key}'] = tensor
        block += 1
    return ours
