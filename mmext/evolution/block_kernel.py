"""The kernel of attention in blocks: all pixels of a block see one window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmext.evolution.kernels import DenseKernel, FactoredKernel
from mmext.numerics import attend

__all__ = ['BlockKernel']


@dataclass
class BlockKernel(FactoredKernel):
    """Attention of the pixels of each block to a window, the same for all of them, channels in heads.

    Args:
        query: (B * blocks, heads, queries of a block, d).
        key: (B * blocks, heads, pixels of a window, d).
        logits: What is added to the logits, (B * blocks, heads, queries, pixels).
        windows: Makes (B * blocks, heads, pixels of a window, d) of a map (B, heads * d, H, W).
        rows: Which row of the map each row of each window is, (blocks, kh), and so for columns.
        columns: See there.
        side: Queries on a side of a block.
        size: (Ho, Wo); the blocks may reach beyond.
    """

    query: Tensor = None  # type: ignore[assignment]
    key: Tensor = None  # type: ignore[assignment]
    logits: Tensor = None  # type: ignore[assignment]
    windows: Any = None
    rows: Tensor = None  # type: ignore[assignment]
    columns: Tensor = None  # type: ignore[assignment]
    side: int = 1
    size: tuple[int, ...] = ()

    def placed(self, blocks: Tensor) -> Tensor:
        """Return what belongs to the queries, (B * blocks, heads, queries, n), as (B, heads, n, Ho, Wo)."""
        blocks = blocks.unflatten(2, (self.side, self.side)).unflatten(0, (-1, len(self.rows), len(self.columns)))
        grid = blocks.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4)
        return grid[..., : self.size[0], : self.size[1]]

    def aggregate(self, x: Tensor) -> Tensor:
        value = self.windows(x)
        query, key, logits = (part.to(value.dtype) for part in (self.query, self.key, self.logits))
        out = attend(query, key, value, logits)
        return self.placed(out).flatten(1, 2)

    def dense(self, x: Tensor) -> DenseKernel:
        logits = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5 + self.logits
        weight = self.placed(logits.softmax(-1))
        diagonal = weight.repeat_interleave(x.shape[1] // weight.shape[1], 1).flatten(3).permute(0, 3, 2, 1)
        height, width = x.shape[2:]
        rows, columns = (t.repeat_interleave(self.side, 0) for t in (self.rows, self.columns))
        rows, columns = rows[: self.size[0], None, :, None], columns[None, : self.size[1], None, :]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        table = torch.where(inside, rows * width + columns, -1).flatten(2).flatten(0, 1)
        return DenseKernel(torch.diag_embed(diagonal), table, self.size)
