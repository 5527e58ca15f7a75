"""LightConv, as fairseq has it: a layer of sequences, between two linear ones."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['light_conv', 'linear_layers']

#: What stands around the convolution, and nowhere else.
AROUND = r'linear[12]\.(?:weight|bias)'


@system(
    'LightConvSO',
    r'conv\.weight',
    takes=rf'conv\.bias|{AROUND}',
    signature=(r'conv\.weight', r'linear1\.weight', r'linear2\.weight'),
)
def light_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Give the kernels of the heads a second axis: the layer is one of ``kernel_size=(1, K)``."""
    if layer['conv.weight'].ndim != 3:
        return None
    ours = {'conv.head_weight': layer['conv.weight'].unsqueeze(2), **linear_layers(layer)}
    if 'conv.bias' in layer:
        ours['conv.bias'] = layer['conv.bias']
    return ours


def linear_layers(layer: Layer) -> dict[str, Tensor]:
    """Return the linear layers around a convolution of fairseq as 1x1 convolutions.

    They have the names of ``mmext.LightConvSO`` where a gate follows the first. Without one they keep theirs.
    """
    first, last = layer['linear1.weight'], layer['linear2.weight']
    gated = len(first) == 2 * last.shape[1]
    names = {'linear1': 'gated', 'linear2': 'mix.conv'} if gated else {'linear1': 'linear1', 'linear2': 'linear2'}
    ours = {f'{ours}.weight': layer[f'{theirs}.weight'][:, :, None, None] for theirs, ours in names.items()}
    biases = {f'{ours}.bias': f'{theirs}.bias' for theirs, ours in names.items()}
    return {**ours, **{ours: layer[theirs] for ours, theirs in biases.items() if theirs in layer}}
