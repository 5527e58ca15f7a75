"""MONet: the network. Its linear layers are 1 x 1 convolutions here."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['monet']

LAYERS = {'U1': 'first', 'U2': 'narrow', 'U3': 'second', 'C': 'project', 'norm1': 'norms.0', 'norm3': 'norms.1'}
BLOCK = r'model\.(\d+)\.0\.'
NAMES = (
    (rf'{BLOCK}norm\.(\w+)', r'blocks.\1.norm.\2'),
    *(
        (rf'{BLOCK}mlp{number + 1}\.{theirs}\.(\w+)', rf'blocks.\1.layers.{number}.{ours}.\2')
        for number in (0, 1)
        for theirs, ours in LAYERS.items()
    ),
    *((rf'{BLOCK}mlp{number + 1}\.alpha', rf'blocks.\1.layers.{number}.alpha') for number in (0, 1)),
    (r'proj\.(\w+)', r'shrink.\1'),
)


@system(
    'MONet',
    r'network\.0\.model\.0\.0\.mlp1\.alpha',
    takes=r'(fs|fs2|network|head)\..*',
    signature=(r'network\.0\.model\.0\.0\.mlp1\.alpha', r'fs2\.weight'),
)
def monet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name blocks, transitions and layers as here; the classifier is left out."""
    ours = layer.renamed((r'fs\.(\w+)', r'stem.0.\1'), (r'fs2\.(\w+)', r'stem.1.\1'))
    for number in range(1 + max(int(key.split('.')[1]) for key in layer if key.startswith('network.'))):
        # Stages and transitions take turns.
        stage = (number + 1) // 2
        for key, tensor in layer.part(f'network.{number}.').renamed(*NAMES).items():
            linear = tensor.ndim == 2
            ours[f'stages.{stage}.{key}'] = tensor[..., None, None] if linear else tensor
    return ours
