"""CATNet: the neck, whose tensors have the authors' names here."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['catnet']


@system(
    'DenseFPN',
    r'top_down_atts\.0',
    takes=r'(lateral_convs|extra_convs|stages|bottom_up_atts|top_down_atts)\..*',
    signature=(r'top_down_atts\.0', r'bottom_up_atts\.0', r'stages\.0\.0\.0\.conv\.weight'),
)
def catnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Keep every name; those of the context pyramid and of the RoI extractors are the authors' too."""
    return {key: layer[key] for key in layer}
