"""LSConv: the prediction of its kernels is a module there."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['ls_conv']

NAMES = (
    *((rf'lkp\.cv{i}\.c\.(\w+)', rf'{part}.conv.\1') for i, part in enumerate(('enter', 'view', 'leave'), 1)),
    *((rf'lkp\.cv{i}\.bn\.(\w+)', rf'{part}.norm.\1') for i, part in enumerate(('enter', 'view', 'leave'), 1)),
    (r'lkp\.cv4\.(\w+)', r'span.\1'),
    (r'lkp\.norm\.(\w+)', r'span_norm.\1'),
    (r'bn\.(\w+)', r'norm.\1'),
)


@system(
    'LSConv2d',
    r'lkp\.cv4\.weight',
    takes=r'lkp\.cv\d\.(?:c|bn)\.\w+|lkp\.(?:cv4|norm)\.\w+|bn\.\w+',
    signature=(r'lkp\.cv1\.c\.weight', r'lkp\.cv4\.weight', r'lkp\.norm\.weight'),
)
def ls_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names."""
    return layer.renamed(*NAMES)
