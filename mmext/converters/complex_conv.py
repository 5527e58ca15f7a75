"""Complex convolutions of two frameworks: two layers for the two parts, or one kernel with both on its last axis."""

from __future__ import annotations

import torch
from torch import Tensor

from mmext.converters.engine import Layer, choice, system

__all__ = ['complex_conv']


@system(
    'ComplexConv2d',
    r'conv_r\.weight|kernel',
    takes=r'conv_i\.weight|conv_[ri]\.bias|bias',
    signature=(r'conv_r\.weight', r'conv_i\.weight'),
    backend="theano or tensorflow, of Keras's files, which do not tell; the authors' own are Theano's",
)
def complex_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Take two convolutions, whose biases mix, or Keras's kernel with both parts on the last axis, which Theano turns over."""
    if 'conv_r.weight' in layer:
        ours = dict(real=layer['conv_r.weight'], imag=layer['conv_i.weight'])
        if 'conv_r.bias' in layer:
            real, imag = layer['conv_r.bias'], layer['conv_i.bias']
            ours['bias'] = torch.cat([real - imag, real + imag])
        return ours
    if layer['kernel'].ndim != 4:
        return None
    # A convolution is a correlation in torch and TensorFlow, and a true convolution in Theano.
    kernel = layer['kernel'].permute(3, 2, 0, 1)
    if choice(options, 'backend', ('theano', 'tensorflow')) == 'theano':
        kernel = kernel.flip(2, 3)
    real, imag = kernel.chunk(2)
    return {'real': real, 'imag': imag, **({'bias': layer['bias']} if 'bias' in layer else {})}
