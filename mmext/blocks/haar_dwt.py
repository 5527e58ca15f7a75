"""The Haar wavelet transform of a map, and its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import at_least, at_most
from mmext.registry import MODELS

__all__ = ['HaarDWT2d']


@MODELS.register_module()
class HaarDWT2d(nn.Module):
    r"""Haar transform: every square of 2 x 2 pixels becomes its sum and three differences, over several levels.

    Haar, *Zur Theorie der orthogonalen Funktionensysteme*, Mathematische Annalen, 1910. As a layer: Jeevan et al., *WaveMix: A
    Resource-efficient Neural Network for Image Analysis*, 2022, arXiv 2205.14375.

    With a square of pixels :math:`a\,b` above :math:`c\,d`

    .. math:: l = \frac{a + b + c + d}{2}, \quad h_0 = \frac{a + b - c - d}{2}, \quad h_1 = \frac{a - b + c - d}{2},
              \quad h_2 = \frac{a - b - c + d}{2}

    and the next level transforms :math:`l`. The transform is orthogonal: it keeps the energy, and :meth:`inverse` undoes it.
    There is nothing to learn and nothing in a checkpoint.

    Args:
        levels: How often the map is halved.

    Shape:
        (N, C, H, W) to a tuple of (N, 4 C, H / 2^k, W / 2^k), k from 1 on. The first C channels are :math:`l`, then come the
        three differences of each channel. An odd side is rounded up, with zeros behind the map.

    Example:
        >>> dwt = HaarDWT2d(levels=2)
        >>> levels = dwt(torch.randn(1, 3, 8, 8))
        >>> [tuple(y.shape) for y in levels]
        [(1, 12, 4, 4), (1, 12, 2, 2)]
        >>> dwt.inverse(levels).shape
        torch.Size([1, 3, 8, 8])
    """

    example = dict(levels=2)

    def __init__(self, levels: Annotated[int, at_least(1), at_most(16)] = 1) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Transform ``x``, (N, C, H, W)."""
        found = []
        for _ in range(self.levels):
            height, width = x.shape[-2:]
            if height % 2 or width % 2:
                x = F.pad(x, (0, width % 2, 0, height % 2))
            top, bottom = x[..., ::2, :], x[..., 1::2, :]
            (a, b), (c, d) = ((row[..., ::2], row[..., 1::2]) for row in (top, bottom))
            above, below, left, right = a + b, c + d, a - b, c - d
            x = (above + below) / 2
            details = torch.stack([above - below, left + right, left - right], 2) / 2
            found.append(torch.cat([x, details.flatten(1, 2)], 1))
        return tuple(found)

    def inverse(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the map whose transform is ``levels``; of the finer levels only the differences are read.

        Sides that were odd come back even, with the zeros behind them.

        Raises:
            ValueError: If another number of levels is given than the layer has.
        """
        if len(levels) != self.levels:
            raise ValueError(f'HaarDWT2d has {self.levels} levels, got {len(levels)}')
        low = levels[-1][:, : levels[-1].shape[1] // 4]
        for level in reversed(levels):
            details = level[:, level.shape[1] // 4 :].unflatten(1, (-1, 3))
            low = low[..., : level.shape[-2], : level.shape[-1]]
            rows, columns, both = details.unbind(2)
            top, bottom = low + rows, low - rows
            left, right = columns + both, columns - both
            upper = torch.stack([top + left, top - left], -1).flatten(-2)
            lower = torch.stack([bottom + right, bottom - right], -1).flatten(-2)
            low = torch.stack([upper, lower], -2).flatten(-3, -2) / 2
        return low

    def extra_repr(self) -> str:
        return f'levels={self.levels}'
