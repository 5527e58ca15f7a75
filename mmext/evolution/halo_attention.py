"""Halo attention: the pixels of a block attend to the block and to a margin around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, Repeats
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.block_kernel import BlockKernel
from mmext.registry import MODELS

__all__ = ['HaloAttention2d']


@MODELS.register_module()
class HaloAttention2d(EvolutionOperator2d):
    r"""Blocked local self-attention with halos.

    Vaswani, Ramachandran, Srinivas, Parmar, Hechtman, Shlens, *Scaling Local Self-Attention for Parameter Efficient Visual
    Backbones*, CVPR 2021, arXiv 2103.12731.

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, \mathrm{softmax}_n \big(q(p) \cdot k(s_n) / \sqrt{d}
        + q(p) \cdot (r^y_{y_n - y_p} + r^x_{x_n - x_p})\big)_{h(c)}

    The window S is that of the block of p: the block and ``(kernel_size - 1) / 2`` pixels around it. So a pixel sees at least
    what a convolution of this ``kernel_size`` sees. E acts on the values. The paper has no code. The details are those of
    timm's layer. It also says where queries with a stride lie: as if the block were that much smaller.

    Args:
        *args: Those of ``nn.Conv2d``: an odd ``kernel_size`` and the padding that keeps the size.
        block_size: Side of a block, a multiple of the stride. The last blocks may reach beyond the image.
        num_heads: Attention heads; by default as many as have ``head_channels`` channels each, at least one.
        head_channels: Channels of a head, see there.
        query_channels: Those of queries and keys of a head; by default those of the values.
        qkv_bias: Whether queries, keys and values have a bias.
        masked: Whether pixels outside of the image get no weight. By default they count as keys and values of zero.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``query``, ``key`` and ``value`` are 1x1 convolutions; ``rel_rows`` and ``rel_columns`` are (2 * window - 1, d).

    Raises:
        ValueError: If the heads do not divide the outputs, the stride not the block, or the geometry is another.

    Example:
        >>> layer = HaloAttention2d(16, 32, 7, stride=2, padding=3, num_heads=4)
        >>> layer(torch.randn(1, 16, 21, 16)).shape
        torch.Size([1, 32, 11, 8])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    mixes_channels = True
    refuses = ('dilation', 'even kernels', 'other padding', 'padding modes')
    example = dict(padding=1, num_heads=2, block_size=4)
    typical = dict(kernel_size=7, block_size=8, head_channels=16)

    def __init__(
        self,
        *args: Any,
        block_size: Repeats = 8,
        num_heads: Repeats | None = None,
        head_channels: Count = 16,
        query_channels: Count | None = None,
        qkv_bias: bool = False,
        masked: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.halo = tuple((k - 1) // 2 for k in self.kernel_size)
        self.num_heads = num_heads or max(self.out_channels // head_channels, 1)
        self.block_size, self.masked = block_size, masked
        named = self.padding == 'same' and self.stride == (1, 1)
        fits = (named or self.padding == self.halo) and self.dilation == (1, 1) and self.padding_mode == 'zeros'
        strides = self.stride[0] == self.stride[1] and block_size % self.stride[0] == 0
        if not fits or not strides or any(k % 2 == 0 for k in self.kernel_size) or self.out_channels % self.num_heads:
            raise ValueError(
                f'HaloAttention2d needs an odd kernel_size, padding={self.halo}, dilation=1, a stride that divides block_size '
                f'and num_heads that divide out_channels, got kernel_size={self.kernel_size}, padding={self.padding}, '
                f'padding_mode={self.padding_mode!r}, dilation={self.dilation}, stride={self.stride}, {block_size=}, '
                f'num_heads={self.num_heads}, out_channels={self.out_channels}'
            )
        width = query_channels or self.out_channels // self.num_heads
        self.query, self.key, self.value = (
            self.inner_conv(self.in_channels, n, bias=qkv_bias)
            for n in (self.num_heads * width, self.num_heads * width, self.out_channels)
        )
        self.window = tuple(block_size + 2 * halo for halo in self.halo)
        self.rel_rows, self.rel_columns = (self.inner_parameter(2 * side - 1, width) for side in self.window)
        self.init_weights()

    def init_kernel(self) -> None:
        for conv in (self.query, self.key, self.value):
            nn.init.trunc_normal_(conv.weight, std=self.in_channels**-0.5)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for table in (self.rel_rows, self.rel_columns):
            nn.init.trunc_normal_(table, std=table.shape[1] ** -0.5)

    def windows(self, x: Tensor) -> Tensor:
        """Return the windows of a map (B, heads * d, H, W), (B * blocks, heads, pixels of a window, d)."""
        far = [-n % self.block_size for n in x.shape[2:]]
        x = F.pad(x, (self.halo[1], self.halo[1] + far[1], self.halo[0], self.halo[0] + far[0]))
        if torch.onnx.is_in_onnx_export():  # where nothing unfolds
            size = int(x.shape[2]), int(x.shape[3])
            rows, columns = (
                torch.arange(0, n - side + 1, self.block_size)[:, None] + torch.arange(side)
                for n, side in zip(size, self.window, strict=True)
            )
            seen = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]
        else:
            seen = x.unfold(2, self.window[0], self.block_size).unfold(3, self.window[1], self.block_size)
        return seen.unflatten(1, (self.num_heads, -1)).permute(0, 3, 4, 1, 5, 6, 2).flatten(4, 5).flatten(0, 2)

    def evolution_kernel(self, x: Tensor) -> BlockKernel:
        side = self.block_size // self.stride[0]
        query = F.conv2d(x, self.query.weight, self.query.bias, self.stride)
        size = tuple(query.shape[2:])
        query = F.pad(query, (0, -size[1] % side, 0, -size[0] % side))
        blocks = query.unflatten(3, (-1, side)).unflatten(2, (-1, side)).unflatten(1, (self.num_heads, -1))
        count = (blocks.shape[3], blocks.shape[5])
        blocks = blocks.permute(0, 3, 5, 1, 4, 6, 2).flatten(0, 2)
        place = torch.arange(side, device=x.device)[:, None]
        way = [torch.arange(w, device=x.device) - place + w - 1 for w in self.window]
        by_row = torch.einsum('bhyxd,ykd->bhyxk', blocks, self.rel_rows.to(blocks.dtype)[way[0]])
        by_column = torch.einsum('bhyxd,xkd->bhyxk', blocks, self.rel_columns.to(blocks.dtype)[way[1]])
        logits = by_row[..., None] + by_column[..., None, :]
        starts = [torch.arange(n, device=x.device)[:, None] * self.block_size for n in count]
        rows, columns = (
            start - halo + torch.arange(w, device=x.device)
            for start, halo, w in zip(starts, self.halo, self.window, strict=True)
        )
        if self.masked:
            inside = [(at >= 0) & (at < n) for at, n in zip((rows, columns), x.shape[2:], strict=True)]
            seen = (inside[0][:, None, :, None] & inside[1][None, :, None, :]).flatten(0, 1)
            hidden = ~seen.repeat(len(x), 1, 1)[:, None, None, None]
            logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
        return BlockKernel(
            query=blocks.flatten(2, 3),
            key=self.windows(self.key(x)),
            logits=logits.flatten(4, 5).flatten(2, 3),
            windows=self.windows,
            rows=rows,
            columns=columns,
            side=side,
            size=size,
        )

    def features(self, x: Tensor) -> Tensor:
        return self.value(x)

    def own_repr(self) -> str:
        return f'block_size={self.block_size}, num_heads={self.num_heads}, masked={self.masked}'
