"""PIIP: the released backbones of two to four branches, vision transformers and ConvNeXts."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['piip']

SIDES = {'2to1': 'first', '1to2': 'second'}
#: Of a ConvNeXt, in the words of its library and in those of mmpretrain.
CONVNEXT = (
    (r'embeddings\.patch_embeddings\.', 'downsample_layers.0.0.'),
    (r'embeddings\.layernorm\.', 'downsample_layers.0.1.'),
    (r'encoder\.stages\.(\d+)\.downsampling_layer\.', r'downsample_layers.\1.'),
    (r'encoder\.stages\.(\d+)\.layers\.', r'stages.\1.'),
    (r'\.dwconv\.', '.depthwise_conv.'),
    (r'\.layernorm\.', '.norm.'),
    (r'\.pwconv(\d)\.', r'.pointwise_conv\1.'),
    (r'\.layer_scale_parameter$', '.gamma'),
)


@system(
    'PIIP',
    r'interactions\.0\.interaction_units_12\.branch2to1_injector\.ca_gamma',
    takes=r'(branch\d|interactions|merge_branch\d|fpn\d|intermediate_merging_\d+_branch\d)\..*|(intermediate_merging_\d+_)?w\d',
    signature=(
        r'interactions\.0\.interaction_units_12\.branch2to1_injector\.ca_gamma',
        r'branch1\..*',
        r'merge_branch1\.0\.weight',
        r'w1',
    ),
)
def piip(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name exchanges, sums and scales as here, and put the weights of a sum into one vector."""
    last = max(int(key.split('.')[1]) for key in layer if key.startswith('interactions.'))
    ours, weights = {}, {}
    for key in layer:
        if found := re.fullmatch(r'(?:intermediate_merging_(\d+)_)?w(\d)', key):
            weights[int(found[1] or last), int(found[2])] = layer[key].reshape(())
        elif (name := _name(key, last, layer)) is not None:
            ours[name] = layer[key]
    for group in sorted({group for group, _ in weights}):
        ours[f'merges.{group}.weights'] = torch.stack([w for (g, _), w in sorted(weights.items()) if g == group])
    return ours


def _name(key: str, last: int, layer: Layer) -> str | None:
    """Return the name of a tensor here; None for one that is there twice, or in no use."""
    start, _, rest = key.partition('.')
    if found := re.fullmatch(r'branch(\d)', start):
        if rest.startswith('convnext_model.encoder.') or rest.startswith('convnext_model.embeddings.'):
            rest = rest.removeprefix('convnext_model.')
            for pattern, replacement in CONVNEXT:
                rest = re.sub(pattern, replacement, rest)
            rest = f'net.{rest}'
        elif re.match(r'convnext_model|cls_token|norm\.|head', rest) or 'convnext_layer' in rest:
            return None
        return f'branches.{int(found[1]) - 1}.{rest}'
    if found := re.fullmatch(
        r'interactions\.(\d+)\.interaction_units_(\d)\d\.branch(2to1|1to2)_(proj|injector)\.(.*)', key
    ):
        group, pair, way, part, inner = found.groups()
        inner = re.sub(r'^attn\.', 'attend.', inner)
        inner = {'ca_gamma': 'gamma', 'cffn_gamma': 'ffn_gamma'}.get(
            inner, inner.replace('ffn.dwconv.dwconv.', 'ffn.local.')
        )
        place = f'{"to" if part == "proj" else "into"}_{SIDES[way]}'
        return f'exchanges.{group}.{int(pair) - 1}.{place}.{inner}'
    if found := re.fullmatch(r'(?:merge|intermediate_merging_(\d+))_branch(\d)\.(\d)\.(\w+)', key):
        prefix = key[: key.rindex('.', 0, key.rindex('.')) + 1]
        starts_with_conv = layer[f'{prefix}0.weight'].ndim == 4
        number = int(found[3])
        part = f'{number // 3}.{"gn" if number % 3 else "conv"}' if starts_with_conv else found[3]
        return f'merges.{found[1] or last}.branches.{int(found[2]) - 1}.{part}.{found[4]}'
    if found := re.fullmatch(r'fpn(\d)\.(\d)\.(\w+)', key):
        return f'scales.{int(found[1]) - 1}.{found[2]}.{found[3]}'
    return key
