"""IDF's denoising block: other names. What the network does with the block's residual belongs to the network."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['dynamic_filter']

NAMES = {'feature_extractor.0': 'first', 'feature_extractor.2': 'second', 'kernel_predictor': 'predict'}


@system(
    'DynamicFilter2d',
    r'kernel_predictor\.weight',
    takes=r'feature_extractor\.\d\.weight|gca\..*',
    signature=(r'kernel_predictor\.weight', r'feature_extractor\.0\.weight'),
)
def dynamic_filter(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Rename the three convolutions."""
    return {f'{ours}.weight': layer[f'{official}.weight'] for official, ours in NAMES.items()}
