"""What pyramids share: which of the maps they use, and how a map is pooled to the size of another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['check_maps', 'max_pool_half', 'max_pool_to', 'upsample_to', 'used_levels']


def used_levels(
    owner: str, in_channels: Sequence[int], num_outs: int, start_level: int = 0, end_level: int = -1
) -> range:
    """Return the numbers of the maps that a pyramid uses, counted as mmdet's FPN counts them.

    Args:
        owner: Class of the pyramid, for messages.
        in_channels: Channels of all maps.
        num_outs: Levels that come out.
        start_level: The first map that is used.
        end_level: The last one, -1 for the last of all.

    Raises:
        ValueError: If there are no such maps, or fewer levels come out than are used.
    """
    count = len(in_channels)
    last = count - 1 if end_level == -1 else end_level
    if not 0 <= start_level <= last < count:
        raise ValueError(
            f'{owner} needs 0 <= start_level <= end_level < {count}, as in_channels names {count} maps, got {start_level=} '
            f'and {end_level=}'
        )
    used = range(start_level, last + 1)
    if num_outs < len(used):
        raise ValueError(
            f'{owner} needs num_outs of at least {len(used)}, the maps that it uses, got {num_outs=}; raise it, or start_level'
        )
    return used


def check_maps(owner: str, in_channels: Sequence[int], inputs: Sequence[Tensor]) -> None:
    """Compare the maps that come in with what a neck was built for.

    Raises:
        ValueError: If their number or channels differ.
    """
    widths = [int(x.shape[1]) for x in inputs]
    if widths != list(in_channels):
        raise ValueError(
            f'{owner} was built for {len(in_channels)} maps with the channels {list(in_channels)}, got {len(widths)} maps '
            f'with {widths}; set in_channels to them'
        )


def upsample_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``x``, (N, C, H, W), with so many rows and columns, by bilinear interpolation between the pixels' centers."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=False)


def _pixels_apart(x: Tensor) -> Tensor:
    """Return ``x`` with its channels last in memory on a CPU, where torch then pools ten times as fast."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == 'cpu' else x


def max_pool_half(x: Tensor) -> Tensor:
    """Return the maxima of windows of 2 x 2, of half the size rounded up."""
    return F.max_pool2d(_pixels_apart(x), 2, ceil_mode=True).contiguous()


def max_pool_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the maxima of ``size`` overlapping windows, as ``F.adaptive_max_pool2d``, in a form that ONNX has too.

    Args:
        x: (N, C, H, W).
        size: Rows and columns of the result.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_max_pool2d(_pixels_apart(x), tuple(size)).contiguous()
    for axis, windows in zip((2, 3), size, strict=True):
        length, count = int(x.shape[axis]), int(windows)
        ranges = [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        taps = [[window[min(tap, len(window) - 1)] for window in ranges] for tap in range(max(map(len, ranges)))]
        x = reduce(torch.maximum, (x.index_select(axis, torch.tensor(tap, device=x.device)) for tap in taps))
    return x
