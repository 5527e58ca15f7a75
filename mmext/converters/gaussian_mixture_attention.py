"""Gaussian mixture mask attention: other names. The mask of the released code is a constant of the whole network."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['gaussian_mixture_attention']


@system(
    'GaussianMixtureAttention',
    r'mask\.sigma',
    takes=r'mask\.(?:alpha|mask)|to_qkv\.weight|to_out\.0\.(?:weight|bias)',
    signature=(r'mask\.sigma', r'mask\.alpha', r'to_qkv\.weight'),
)
def gaussian_mixture_attention(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Rename; the distances are computed here and not saved."""
    return {
        'sigma': layer['mask.sigma'],
        'alpha': layer['mask.alpha'],
        'qkv.weight': layer['to_qkv.weight'],
        'proj.weight': layer['to_out.0.weight'],
        'proj.bias': layer['to_out.0.bias'],
    }
