"""UniRepLKNet: the network. Its blocks hold linear layers there and 1 x 1 convolutions here."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from mmext.converters.dilated_reparam import dilated_reparam
from mmext.converters.engine import Layer, system

__all__ = ['unireplknet', 'unireplknet_names']

LINEAR = {'pwconv1.1': 'expand', 'pwconv2.0': 'project', 'pwconv2.2': 'project_norm', 'act.1': 'response'}
LINEAR |= {'se.down': 'se.reduce', 'se.up': 'se.expand'}
OUTER = (
    (r'downsample_layers\.0\.(\d)\.(\w+)', r'stem.\1.\2'),
    (r'downsample_layers\.(\d)\.(\d)\.(\w+)', r'stages.\1.shrink.\2.\3'),
    (r'norm\.(\w+)', r'pooled_norm.\1'),
    (r'norm(\d)\.(\w+)', r'out_norms.\1.\2'),
)


@system(
    'UniRepLKNet',
    r'downsample_layers\.0\.0\.weight',
    takes=r'(downsample_layers|stages|head)\..*|norm\d?\..*',
    signature=(
        r'downsample_layers\.0\.0\.weight',
        r'stages\.\d+\.\d+\.dwconv\..*',
        r'stages\.\d+\.\d+\.pwconv2\.2\.weight',
    ),
)
def unireplknet(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the layers as here, and number the branches of large kernels; the classifier is left out."""

    def mixer(block: Layer) -> dict[str, Tensor]:
        if 'dwconv.weight' in block:
            return {'mixer.weight': block['dwconv.weight']}
        return {f'mixer.{k}': v for k, v in (dilated_reparam(block.part('dwconv.'), options) or {}).items()}

    return unireplknet_names(layer, mixer)


def unireplknet_names(layer: Layer, mixer: Callable[[Layer], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors under the names of here; ``mixer`` converts the first layer of a block, and may change others."""
    ours = layer.renamed(*OUTER)
    for prefix in dict.fromkeys(m[0] for k in layer if (m := re.match(r'stages\.\d+\.\d+\.', k))):
        block = layer.part(prefix)
        stage, number = re.findall(r'\d+', prefix)
        found = mixer(block)
        for key in block:
            if not re.match(r'dwconv\.|large_kernel\.', key):
                tensor = found.pop(key, block[key])
                module, _, entry = key.rpartition('.')
                if entry == 'weight' and tensor.ndim == 2:
                    tensor = tensor[..., None, None]
                found[f'{LINEAR.get(module, module)}.{entry}'.lstrip('.')] = (
                    tensor.flatten() if module == 'act.1' else tensor
                )
        ours |= {f'stages.{stage}.blocks.{number}.{key}': tensor for key, tensor in found.items()}
    return ours
