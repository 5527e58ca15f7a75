"""LSConv: the prediction of its kernels is a module there."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['ls_conv']

NAMES = {
    **{f'lkp.cv{i}.c.': f'{part}.conv.' for i, part in enumerate(('enter', 'view', 'leave'), 1)},
    **{f'lkp.cv{i}.bn.': f'{part}.norm.' for i, part in enumerate(('enter', 'view', 'leave'), 1)},
    'lkp.cv4.': 'span.',
    'lkp.norm.': 'span_norm.',
    'bn.': 'norm.',
}


@system(
    'LSConv2d',
    r'lkp\.cv4\.weight',
    takes=r'lkp\.cv\d\.(?:c|bn)\.\w+|lkp\.(?:cv4|norm)\.\w+|bn\.\w+',
    signature=(r'lkp\.cv1\.c\.weight', r'lkp\.cv4\.weight', r'lkp\.norm\.weight'),
)
def ls_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names."""
    return layer.renamed(NAMES)
