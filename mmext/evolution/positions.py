"""Which pixels every output pixel aggregates: the sampling positions S(p) of an operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.ops.neighborhood.geometry import axis_table, output_size, resolve

__all__ = ['Positions']


@dataclass(frozen=True)
class Positions:
    """The grid of taps around every output pixel, and what lies beyond the border.

    Args:
        kernel_size: Taps per axis.
        stride: Distance of the windows.
        dilation: Distance of the taps.
        padding: Pixels beyond the border that windows reach over, or ``'same'``.
        border: ``'zero'``, ``'shift'``, ``'replicate'``, ``'reflect'`` as in :func:`mmext.ops.neighborhood_aggregate`, or
            ``'circular'``.
        group_map: Which channels share a kernel: ``'block'`` or ``'interleave'``.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = 'same'
    border: str = 'zero'
    group_map: str = 'block'

    @property
    def taps(self) -> int:
        """The number N of positions of each window."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """The padding (left, right, top, bottom), as ``F.pad`` takes it."""
        if isinstance(self.padding, str):
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2)
        rows, columns = self.padding
        return (columns, columns, rows, rows)

    @property
    def options(self) -> dict[str, Any]:
        """What the operators of :mod:`mmext.ops.neighborhood` take, for an image that :meth:`pad` returns."""
        circular = self.border == 'circular'
        return dict(
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            padding=0 if circular else self.padding,
            border='zero' if circular else self.border,
        )

    def pad(self, x: Tensor) -> Tensor:
        """Return ``x`` with the part of the border that the operators do not know, a circular one."""
        return F.pad(x, self.sides, mode='circular') if self.border == 'circular' else x

    def padded(self, x: Tensor) -> Tensor:
        """Return ``x`` with all of its border, so that no window reaches over it."""
        mode = 'constant' if self.border == 'zero' else self.border
        return F.pad(x, self.sides, mode=mode) if any(self.sides) else x

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return (Ho, Wo), the number of windows in an image of (H, W).

        Raises:
            ValueError: If no window fits.
        """
        border = 'shift' if self.border == 'shift' else 'zero'
        window = resolve(self.kernel_size, self.stride, self.dilation, self.padding, border, self.group_map)
        return output_size(size, window)

    def centers(self, x: Tensor, pool: bool = True) -> Tensor:
        """Return ``x``, (B, C, H, W), where the windows have their centers, (B, C, Ho, Wo).

        The image is zero outside. With a stride, ``pool`` takes the mean of the pixels that a window advances over (fewer at
        the far border), otherwise the center itself is taken.
        """
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        same = (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2)
        excess = [side - middle for side, middle in zip(self.sides, same, strict=True)]
        x = F.pad(x, excess) if any(excess) else x
        if self.stride == (1, 1):
            return x
        if pool:
            return F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return x[:, :, :: self.stride[0], :: self.stride[1]]

    def table(self, size: Sequence[int], device: torch.device | str = 'cpu') -> Tensor:
        """Return S as (P, N): the index of the pixel that tap n of output pixel p sees, -1 outside of the image."""
        height, width = size
        if self.border == 'shift':
            window = resolve(self.kernel_size, 1, self.dilation, 'same', 'shift', self.group_map)
            rows, columns = (axis_table(window, axis, size[axis], device) for axis in (0, 1))
            return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)
        index = torch.arange(height * width, device=device, dtype=torch.float64).view(1, 1, height, width) + 1
        seen = F.unfold(self.padded(index), self.kernel_size, self.dilation, 0, self.stride)
        return seen[0].T.long() - 1

    def offsets(self, size: Sequence[int], device: torch.device | str = 'cpu') -> tuple[Tensor, Tensor]:
        """Return how far every tap lies from the center of its window, in taps, as (Ho, kh) and (Wo, kw).

        The count starts with 0 for the farthest tap above that a window can have. Where all windows are alike, the shapes are
        (1, kh) and (1, kw).
        """
        taps = [torch.arange(k, device=device)[None] + k - 1 for k in self.kernel_size]
        if self.border != 'shift':
            return taps[0] - (self.kernel_size[0] - 1) // 2, taps[1] - (self.kernel_size[1] - 1) // 2
        window = resolve(self.kernel_size, 1, self.dilation, 'same', 'shift', self.group_map)
        first = [axis_table(window, axis, size[axis], device)[:, :1] for axis in (0, 1)]
        steps = [
            torch.div(f - torch.arange(n, device=device)[:, None], d, rounding_mode='floor')
            for f, n, d in zip(first, size, self.dilation, strict=True)
        ]
        return taps[0] + steps[0], taps[1] + steps[1]

    def groups_of(self, channels: int, groups: int, device: torch.device | str = 'cpu') -> Tensor:
        """Return g(c), the group of every channel."""
        channel = torch.arange(channels, device=device)
        return channel % groups if self.group_map == 'interleave' else channel // (channels // groups)
