"""CondConv, as the port of the released networks has it: one routing for the three convolutions of a block."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['cond_conv']


@system(
    'CondConv2d',
    r'routing_fn\.weight',
    takes=r'routing_fn\.bias|conv_pw\.(?:weight|bias)',
    signature=(r'routing_fn\.weight', r'conv_pw\.weight'),
)
def cond_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Give the block's first convolution its experts and the routing.

    It is 1x1 and sees what the routing sees, so it is a layer of ours. The two behind it are routed by an input that they
    do not see, and stay as they are.
    """
    routing = layer['routing_fn.weight']
    experts = layer['conv_pw.weight'].reshape(-1, routing.shape[1], 1, 1)
    if len(experts) % len(routing):
        raise ValueError
    ours = {'conv_pw.experts': experts, 'conv_pw.routing.weight': routing[:, :, None, None]}
    ours['conv_pw.routing.bias'] = layer['routing_fn.bias']
    if 'conv_pw.bias' in layer:
        ours['conv_pw.expert_bias'] = layer['conv_pw.bias']
    layer.notes.append(f'{layer.name}: conv_dw and conv_pwl are left, for the routing sees the input of conv_pw alone')
    return ours
