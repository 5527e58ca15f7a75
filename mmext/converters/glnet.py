"""GLNet: the network. The 16G classifier of the authors is the averaged model of its file."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['glnet']

BLOCK, OURS = r'stages\.(\d+)\.blocks\.(\d+)\.', r'stages.\1.blocks.\2.'
NAMES = (
    (r'downsample_layers\.([1-9])\.(\d)\.(\w+)', r'stages.\1.shrink.\2.\3'),
    (r'norm\.(\w+)', r'out_norms.0.\1'),
    (rf'{BLOCK}slot_scale', rf'{OURS}token.temperature'),
    (rf'{BLOCK}init_slots', rf'{OURS}token.slots'),
    (rf'{BLOCK}pos_conv\.(\w+)', rf'{OURS}position.\3'),
    (rf'{BLOCK}relation_mha\.in_proj_(\w+)', rf'{OURS}token.attention.qkv.\3'),
    (rf'{BLOCK}relation_mha\.out_proj\.(\w+)', rf'{OURS}token.attention.project.\3'),
    (rf'{BLOCK}mha_op\.in_proj_(\w+)', rf'{OURS}token.qkv.\3'),
    (rf'{BLOCK}mha_op\.out_proj\.(\w+)', rf'{OURS}token.project.\3'),
    (rf'{BLOCK}feature_conv\.(\d)\.(\w+)', rf'{OURS}token.local.\3.\4'),
    (rf'{BLOCK}norm1\.(\w+)', rf'{OURS}norms.0.\3'),
    (rf'{BLOCK}norm2\.(\w+)', rf'{OURS}norms.1.\3'),
    (rf'{BLOCK}mlp\.0\.(\w+)', rf'{OURS}channel.expand.\3'),
    (rf'{BLOCK}mlp\.1\.(\w+)', rf'{OURS}channel.local.\3'),
    (rf'{BLOCK}mlp\.[23]\.(\w+)', rf'{OURS}channel.project.\3'),
    (rf'{BLOCK}ls1\.gamma', rf'{OURS}scales.0'),
    (rf'{BLOCK}ls2\.gamma', rf'{OURS}scales.1'),
)


@system(
    'GLNet',
    r'stages\.0\.blocks\.0\.slot_scale',
    takes=r'(stages|downsample_layers)\.\d+\..*|(norm|head)\..*',
    signature=(r'stages\.0\.blocks\.0\.slot_scale', r'downsample_layers\.0\.[01]\.weight'),
)
def glnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name blocks and mixers as here; the classifier is left out."""
    # The overlapping stem has an empty layer in front.
    first = 0 if 'downsample_layers.0.0.weight' in layer else 1
    stem = ((rf'downsample_layers\.0\.{i}\.(\w+)', rf'stem.{i - first}.\1') for i in range(first, 6))
    ours = {}
    for key, tensor in layer.renamed(*stem, *NAMES).items():
        if '.scales.' in key:
            tensor = tensor.flatten()
        elif '.channel.' in key and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        ours[key] = tensor
    return ours
