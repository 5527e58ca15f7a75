"""Halo attention, as timm has it: keys and values of each head in one projection."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.errors import UsageError

__all__ = ['halo_attention']


@system(
    'HaloAttention2d',
    r'pos_embed\.height_rel',
    takes=r'pos_embed\.width_rel|(?:q|kv)\.(?:weight|bias)',
    signature=(r'pos_embed\.height_rel', r'kv\.weight', r'q\.weight'),
)
def halo_attention(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Split keys and values; the tables tell how wide a head is."""
    rows = layer['pos_embed.height_rel']
    ours = dict(rel_rows=rows, rel_columns=layer['pos_embed.width_rel'])
    for part in ('weight', 'bias'):
        if f'q.{part}' not in layer:
            continue
        query, both, width = layer[f'q.{part}'], layer[f'kv.{part}'], rows.shape[-1]
        if (
            query.ndim == 0
            or both.ndim == 0
            or not width
            or len(query) % width
            or len(both) % (len(query) // width or 1)
        ):
            raise UsageError(f'{layer.name} has queries {list(query.shape)}, which are no heads of {width} channels')
        heads = both.unflatten(0, (len(query) // width, -1))
        ours[f'query.{part}'] = query
        ours[f'key.{part}'] = heads[:, :width].flatten(0, 1)
        ours[f'value.{part}'] = heads[:, width:].flatten(0, 1)
    return ours
