"""TVConv: the released layer saves its geometry as tensors."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['tv_conv']


@system(
    'TVConv2d',
    'posi_map',
    takes=r'(?:weight|bias)_layers\.\d+\.(?:\d\.)?\w+|TVConv_k(?:_square)?|stride|channels|h|w',
    signature=('posi_map', r'weight_layers\.0\.0\.weight'),
)
def tv_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Number the layers of each network through, and drop the geometry."""
    ours = dict(position=layer['posi_map'])
    for theirs, name in (('weight_layers.', 'draw.'), ('bias_layers.', 'draw_bias.')):
        for key in [k for k in layer if k.startswith(theirs)]:
            # A block of convolution, norm and activation is three layers in a row of ours.
            block, *part, tensor = key.removeprefix(theirs).split('.')
            ours[f'{name}{3 * int(block) + int(part[0] if part else 0)}.{tensor}'] = layer[key]
    return ours
