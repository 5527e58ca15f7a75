"""DynamicConv, as fairseq has it: the layer that makes the kernels is a linear one there."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.converters.light_conv import AROUND, linear_layers

__all__ = ['dynamic_conv']


@system(
    'LightConvSO',
    r'conv\.weight_linear\.weight',
    takes=rf'conv\.(?:weight_linear\.bias|conv_bias)|{AROUND}',
    signature=(r'conv\.weight_linear\.weight', r'linear1\.weight', r'linear2\.weight'),
)
def dynamic_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the generator the shape of a convolution: the layer is one of ``kernel_size=(1, K)``."""
    ours = {'conv.generator.weight': layer['conv.weight_linear.weight'][:, :, None, None], **linear_layers(layer)}
    for theirs, name in (('conv.weight_linear.bias', 'conv.generator.bias'), ('conv.conv_bias', 'conv.bias')):
        if theirs in layer:
            ours[name] = layer[theirs]
    return ours
