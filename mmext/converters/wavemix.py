"""WaveMix: the network. A file says nothing of the transform."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['wavemix']

LAYERS = {'0': 'expand', '3': 'project', '4': 'enlarge', '5': 'norm'}
BLOCK = r'layers\.(\d+)\.'


@system(
    'WaveMix',
    r'layers\.0\.reduction\.weight',
    takes=r'(conv|layers|pool)\..*',
    signature=(r'layers\.0\.reduction\.weight', r'layers\.0\.feedforward1?\.4\.weight'),
)
def wavemix(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name blocks and levels as here; the classifier is left out."""
    ours = layer.renamed(
        (r'conv\.(\d)\.(\w+)', r'stem.\1.\2'), (rf'{BLOCK}reduction\.(\w+)', r'stages.\1.blocks.0.reduce.\2')
    )
    for number, name in LAYERS.items():
        ours |= layer.renamed(
            (rf'{BLOCK}feedforward\.{number}\.(\w+)', rf'stages.\1.blocks.0.levels.0.{name}.\2'),
            *(
                (rf'{BLOCK}feedforward{k}\.{number}\.(\w+)', rf'stages.\1.blocks.0.levels.{k - 1}.{name}.\2')
                for k in range(1, 5)
            ),
        )
    return ours
