"""Involution: its two convolutions are blocks of mmcv there."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['involution']

NAMES = (
    (r'conv1\.conv\.(\w+)', r'reduce.conv.\1'),
    (r'conv1\.bn\.(\w+)', r'reduce.norm.\1'),
    (r'conv2\.conv\.(\w+)', r'span.\1'),
)


@system(
    'Involution2d',
    r'conv2\.conv\.bias',
    takes=r'conv1\.(?:conv|bn)\.\w+|conv2\.conv\.weight',
    signature=(r'conv1\.conv\.weight', r'conv1\.bn\.weight', r'conv2\.conv\.weight', r'conv2\.conv\.bias'),
)
def involution(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names."""
    return layer.renamed(*NAMES)
