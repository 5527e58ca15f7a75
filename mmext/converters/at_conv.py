"""ATConv: the layer over the taps is a linear one there."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['at_conv']

NAMES = (
    (r'kernel_proj\.(\w+)', r'kernel_values.\1'),
    (r'kernel_gen\.(\w+)', r'generate.\1'),
    (r'x_proj\.(\w+)', r'value.\1'),
    (r'proj\.weight', 'out.weight'),
    (r'proj\.bias', 'bias'),
    ('difference_control', 'inhibition'),
)


@system(
    'ATConv2d',
    'difference_control',
    takes=r'(?:kernel_proj|kernel_gen|x_proj|proj)\.\w+',
    signature=('difference_control', r'kernel_gen\.weight', r'kernel_proj\.weight'),
)
def at_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors our names, and the linear layer the shape of a convolution."""
    ours = layer.renamed(*NAMES)
    ours['generate.weight'] = ours['generate.weight'][:, :, None, None]
    return ours
