"""PfNet: the networks. A file of a ViT says nothing of stages, which are four of equal depth here.

The names in it are those of any ViT, so that it is converted where its name is given, and not recognized.
"""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.errors import UsageError

__all__ = ['pfnet']

RESNET = (
    (r'conv1\.([01])\.(\w+)', r'stem.\1.\2'),
    *(
        (rf'layer([1-9])\.(\d+)\.{theirs}\.(\d)\.(\w+)', rf'\1.blocks.\2.{ours}.\3.\4')
        for theirs, ours in {
            'reduction_block': 'reduce',
            r'conv_block\.1': 'spatial.1',
            'expansion_block': 'expand',
            'downsample': 'shortcut',
        }.items()
    ),
)
TRANSFORMER = (
    (r'pos_embed', 'stem.position'),
    (r'patch_embed\.(?:conv|proj)\.(\w+)', r'stem.patches.\1'),
    (r'norm\.(\w+)', r'out_norms.0.\1'),
)
MIXERS = ((r'mlp\.fc1\.(\w+)', r'channel.0.\1'), (r'mlp\.fc2\.(\w+)', r'channel.2.\1'))
NORMS = tuple((rf'norm{i + 1}\.(\w+)', rf'norms.{i}.\1') for i in range(2))
ATTENTION = ((r'attn\.qkv\.(\w+)', r'token.qkv.\1'), (r'attn\.proj\.(\w+)', r'token.project.\1'))
POOLS = ((r'attn\.qkv\.(\w+)', r'token.0.\1'), (r'attn\.proj\.(\w+)', r'token.4.\1'))


@system(
    'PfNet',
    r'layer1\.0\.reduction_block\.0\.weight|(transformers\.\d+\.)?blocks\.0\.norm1\.weight',
    takes=r'(conv1|fc|norm|head|patch_embed|layer\d|blocks|transformers|pools)\..*|pos_embed',
    signature=(r'layer1\.0\.reduction_block\.0\.weight|transformers\.0\.blocks\.1\.attn\.qkv\.weight',),
)
def pfnet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Name blocks and pools as here; the classifier is left out."""
    if 'pos_embed' not in layer:
        ours = layer.renamed(*RESNET)
        return {f'stages.{int(k[0]) - 1}{k[1:]}' if k[0].isdigit() else k: v for k, v in ours.items()}
    if 'transformers.0.blocks.0.norm1.weight' in layer:
        stages = [_blocks(layer.part(f'transformers.{i}.')) for i in range(_count(layer, 'transformers'))]
    else:
        blocks = _blocks(layer)
        if len(blocks) % 4:
            raise UsageError(f'{layer.name} has {len(blocks)} blocks, and a ViT of PfNet has four equal stages of them')
        stages = [blocks[i : i + len(blocks) // 4] for i in range(0, len(blocks), len(blocks) // 4)]
    if not any('token.4.weight' in block for stage in stages for block in stage):
        return None
    ours = layer.renamed(*TRANSFORMER)
    position = ours['stem.position']
    if position.ndim == 3:
        side = isqrt(position.shape[1])
        ours['stem.position'] = position.transpose(1, 2).unflatten(2, (side, side)).contiguous()
    for number in range(_count(layer, 'pools')):
        pool = layer.part(f'pools.{number}.conv.')
        ours |= {f'stages.{number + 1}.shrink.{key}': pool[key] for key in pool}
    for number, stage in enumerate(stages):
        for index, block in enumerate(stage):
            ours |= {f'stages.{number}.blocks.{index}.{key}': tensor for key, tensor in block.items()}
    return ours


def _count(layer: Layer, name: str) -> int:
    """Return how many modules are listed under a name."""
    return 1 + max((int(key.split('.')[1]) for key in layer if key.startswith(f'{name}.')), default=-1)


def _blocks(layer: Layer) -> list[dict[str, Tensor]]:
    """Return the tensors of each block under our names; what was linear, and is not in attention, becomes 1 x 1."""
    found = []
    for number in range(_count(layer, 'blocks')):
        block = layer.part(f'blocks.{number}.')
        wide = block['attn.proj.weight'].shape[1] == 3 * block['attn.proj.weight'].shape[0]
        mixers = block.renamed(*MIXERS, *(POOLS if wide else ()))
        kernels = {key: tensor[..., None, None] if tensor.ndim == 2 else tensor for key, tensor in mixers.items()}
        found.append({**block.renamed(*NORMS, *(() if wide else ATTENTION)), **kernels})
    return found
