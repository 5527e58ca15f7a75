"""Neighborhood attention, as NAT and DiNAT have it: linear layers, which are 1x1 convolutions here."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['neighborhood_attention']


@system(
    'NeighborhoodAttention2d',
    'rpb',
    takes=r'(?:qkv|proj)\.(?:weight|bias)',
    signature=('rpb', r'qkv\.weight', r'proj\.weight'),
)
def neighborhood_attention(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Make the linear layers convolutions of one tap."""
    ours = {key: layer[key] for key in ('qkv.bias', 'proj.bias') if key in layer} | {'relative': layer['rpb']}
    return ours | {key: layer[key][..., None, None] for key in ('qkv.weight', 'proj.weight')}
