"""ShiftwiseConv: tables that no file holds, and channels in another order."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmext.converters.engine import Layer, number, system
from mmext.convs.shiftwise import ShiftwiseConv2d
from mmext.errors import UsageError

__all__ = ['shiftwise']

RATIO = 0.23
#: The v1 networks cut the channels that pass and not those that are convolved to an integer; this ratio gives the same counts.
RATIO_V1 = 0.228


@system(
    'ShiftwiseConv2d',
    r'(?:[^.]+\.)?LoRA(?:s\.0)?\.weight',
    takes=r'(?:[^.]+\.)?(?:LoRAs\.\d+\.weight|bn_(?:lora1|lora2|small)\..*)|norm\..*|se\.(?:down|up)\..*|pwconv1\..*',
    signature=(r'(?:[^.]+\.)?LoRA(?:s\.0)?\.weight', r'(?:[^.]+\.)?bn_lora1\.weight'),
    ghost_ratio=f'part of the channels that pass, {RATIO} by default, {RATIO_V1} for the v1 networks',
    n_rep='number of orders, 4 by default',
    channels="number of channels, where a layer's block does not show it",
)
def shiftwise(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Draw the tables that no file holds, and put the channels behind the layer back into their order."""
    inner = next(k for k in layer if 'LoRA' in k).rpartition('LoRA')[0]
    paths = [layer[k] for k in sorted(layer) if k.startswith(f'{inner}LoRA')]
    count = len(layer[f'{inner}bn_small.weight'])
    small, n = paths[0].shape[-1], len(paths[0]) // count
    drawn = _shiftwise_tables(layer, options, count, n, small)
    ours = {f'{inner}paths': torch.cat([path.view(count, n, small, small) for path in paths])}
    for i, norm in enumerate((f'{inner}bn_lora1.', f'{inner}bn_lora2.', f'{inner}bn_small.')):
        ours |= {f'{inner}norms.{i}.{k.removeprefix(norm)}': layer[k] for k in layer if k.startswith(norm)}
    ours |= {f'{inner}{k}': table for k, table in drawn.items()}
    return ours | _reordered(layer, drawn['channels'], inner)


def _shiftwise_tables(layer: Layer, options: dict[str, str], count: int, n: int, small: int) -> dict[str, Tensor]:
    """Return the tables that a layer of ours draws, which are those of the released code."""
    ratio = number(options, 'ghost_ratio', RATIO, 0, 0.99)
    if 'channels' in options:
        channels = int(number(options, 'channels', 0, 1))
    elif 'norm.weight' in layer:
        channels = len(layer['norm.weight'])
    else:
        fitting = [c for c in range(count, int((count + 2) / (1 - ratio)) + 1) if _convolved(c, ratio) == count]
        raise UsageError(
            f'{layer.name} convolves {count} of its channels, which could be {fitting} in all; --options channels=NUMBER'
        )
    if _convolved(channels, ratio) != count:
        raise UsageError(
            f'{layer.name} convolves {count} of {channels} channels, not {_convolved(channels, ratio)}; '
            + _advice(count, channels)
        )
    size = n * small - (n * small + 1) % 2  # odd, and n small kernels long
    made = ShiftwiseConv2d(
        channels,
        channels,
        size,
        groups=channels,
        small_kernel=small,
        ghost_ratio=ratio,
        n_path=1,
        n_rep=int(number(options, 'n_rep', 4, 1)),
    )
    return {k: getattr(made, k) for k in ('channels', 'slots_h', 'slots_v', 'slots_s')}


def _convolved(channels: int, ratio: float) -> int:
    """Return how many channels a layer of ours convolves."""
    return int(channels * (1 - ratio)) // 2 * 2


def _advice(count: int, channels: int) -> str:
    """Return the ratio with which a layer of ours convolves ``count`` channels."""
    if count > channels:
        return '--options channels=NUMBER is that of all channels'
    if count % 2:
        return 'layers of ours convolve an even number of them'
    near = max(0.0, round(1 - (count + 1) / channels, 4))
    ratio = RATIO_V1 if _convolved(channels, RATIO_V1) == count else near
    which = ", the v1 networks' number" if ratio == RATIO_V1 else ''
    return f'--options ghost_ratio={ratio:g}{which}, and build the layers with the same'


def _reordered(layer: Layer, convolved: Tensor, inner: str) -> dict[str, Tensor]:
    """Return what stands behind the layer in its block, for channels in their own order.

    The released layer returns the convolved channels first, and its block has learned with that.
    """
    behind = [k for k in layer if not k.startswith((f'{inner}LoRA', f'{inner}bn_'))]
    if not behind:
        layer.notes.append(
            f'{layer.name} stands alone; the released layer returns the convolved channels before the others, ours keeps '
            'their order'
        )
        return {}
    channels = len(layer['norm.weight'])
    passing = [c for c in range(channels) if c not in set(convolved.tolist())]
    place = torch.cat([convolved, torch.tensor(passing, dtype=torch.long)]).argsort()
    ours = {}
    for key in behind:
        reads = key == 'se.down.weight' or re.fullmatch(r'pwconv1\.(\d+\.)?weight', key)
        writes = key.startswith(('norm.', 'se.up.')) and layer[key].ndim > 0
        ours[key] = layer[key][:, place] if reads else layer[key][place] if writes else layer[key]
    return ours
