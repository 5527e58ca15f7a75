"""RDNet: the network, of its authors' repository, of timm, or out of one of their detectors."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['rdnet']

OWN = r'(?:timm_model\.)?'
STAGE = rf'{OWN}dense_stages[._](\d+)\.'
BLOCK = rf'{STAGE}\d\.dense_block(\d+)\.'
NAMES = (
    (rf'{OWN}stem[._](?:stem[._])?(\d)\.(\w+)', r'stem.\1.\2'),
    (rf'{STAGE}(\d)\.(weight|bias)', r'transitions.\1.\2.\3'),
    (rf'{BLOCK}gamma', r'stages.\1.\2.gamma'),
    *(
        (rf'{BLOCK}layers\.layers\.{number}\.(\w+)', rf'stages.\1.\2.{name}.\3')
        for number, name in ((0, 'depthwise'), (1, 'norm'), (2, 'expand'), (4, 'project'))
    ),
    (rf'{BLOCK}layers\.layers\.5\.fc\.(\w+)', r'stages.\1.\2.gate.\3'),
    (r'head\.norm\.(\w+)', r'pooled_norm.\1'),
    (r'norm_modules\.(\d)\.(\w+)', r'out_norms.\1.\2'),
)


@system(
    'RDNet',
    r'(timm_model\.)?dense_stages[._]0\.0\.dense_block0\.gamma',
    takes=rf'{OWN}(stem[._]|dense_stages[._]).*|head\..*|norm_modules\..*',
    signature=(r'(timm_model\.)?dense_stages[._]0\.0\.dense_block0\.gamma', rf'{OWN}stem[._].*'),
)
def rdnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name blocks, transitions and norms as here; the classifier is left out."""
    return layer.renamed(*NAMES)
