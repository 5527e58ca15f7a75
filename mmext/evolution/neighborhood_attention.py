"""Neighborhood attention: every pixel attends to the window around it, which slides inside of the image at its border."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, DropRate, Repeats
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TapKernel, relative_bias, tap_softmax
from mmext.ops import neighborhood_correlate
from mmext.registry import MODELS

__all__ = ['NeighborhoodAttention2d']


@MODELS.register_module()
class NeighborhoodAttention2d(EvolutionOperator2d):
    r"""Neighborhood attention, dilated or not, with a bias for every relative position.

    Hassani, Walton, Li, Li, Shi, *Neighborhood Attention Transformer*, CVPR 2023, arXiv 2204.07143. Dilation: Hassani and
    Shi, *Dilated Neighborhood Attention Transformer*, 2022, arXiv 2209.15001.

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, \mathrm{softmax}_n \big(q(p) \cdot k(s_n(p)) / \sqrt{d} + B_{s_n(p) - p}\big)_{h(c)}

    E acts on the values, and a projection follows. At the border a window slides inside, so that every pixel attends to
    equally many. A map smaller than a window is padded with zeros at its far sides, and the result is cut, as in the
    released layer.

    Args:
        *args: Those of ``nn.Conv2d``: an odd ``kernel_size``, ``stride=1`` and the padding that keeps the size. ``bias`` is
            that of the last projection.
        num_heads: Attention heads; by default as many as have ``head_channels`` channels each, at least one.
        head_channels: See there; the paper's networks have 32.
        qkv_bias: Whether queries, keys and values have a bias.
        relative_bias: Whether there is a table B of relative positions.
        attn_drop: Share of the attention weights that is dropped in training.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``qkv`` is a 1x1 convolution, C -> 3 C, ``proj`` one of C -> C. ``relative`` (B) is (heads, 2 kh - 1, 2 kw - 1).

    Raises:
        ValueError: If the heads do not divide the channels, or the geometry is another.

    Example:
        >>> layer = NeighborhoodAttention2d(32, 32, 7, padding=6, dilation=2, num_heads=4)
        >>> layer(torch.randn(1, 32, 14, 20)).shape
        torch.Size([1, 32, 14, 20])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    border = 'shift'
    example = dict(padding=1, num_heads=2)
    typical = dict(kernel_size=7, head_channels=32)
    relative: nn.Parameter | None

    def __init__(
        self,
        *args: Any,
        num_heads: Repeats | None = None,
        head_channels: Count = 32,
        qkv_bias: bool = True,
        relative_bias: bool = True,
        attn_drop: DropRate = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.num_heads = num_heads or max(self.in_channels // head_channels, 1)
        if self.in_channels % self.num_heads:
            raise ValueError(
                f'NeighborhoodAttention2d needs num_heads that divide in_channels, got num_heads={self.num_heads} and '
                f'in_channels={self.in_channels}'
            )
        self.attn_drop = attn_drop
        self.qkv = self.inner_conv(self.in_channels, 3 * self.in_channels, bias=qkv_bias)
        self.proj = self.inner_conv(self.in_channels, self.out_channels, bias=self.bias is not None)
        self.bias = None
        table = [2 * k - 1 for k in self.kernel_size]
        self.register_parameter('relative', self.inner_parameter(self.num_heads, *table) if relative_bias else None)
        self.init_weights()

    def init_kernel(self) -> None:
        for conv in (self.qkv, self.proj):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if self.relative is not None:
            nn.init.trunc_normal_(self.relative, std=0.02)

    def check_size(self, size: Sequence[int]) -> None:
        """Take any size: a small map is padded."""

    def fitted(self, x: Tensor) -> Tensor:
        """Return ``x``, padded with zeros at its far sides to the size of a window."""
        self.check_input(x)
        need = (k * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
        rows, columns = (max(n - int(size), 0) for n, size in zip(need, x.shape[2:], strict=True))
        return F.pad(x, (0, columns, 0, rows)) if rows or columns else x

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.fitted(x))[..., : x.shape[2], : x.shape[3]]

    def by_definition(self, x: Tensor) -> Tensor:
        return super().by_definition(self.fitted(x))[..., : x.shape[2], : x.shape[3]]

    def projected(self, x: Tensor, first: int, count: int) -> Tensor:
        """Return a part of queries, keys and values, (B, count * C, H, W), from the ``first`` of the three on."""
        part = slice(first * self.in_channels, (first + count) * self.in_channels)
        return F.conv2d(x, self.qkv.weight[part], None if self.qkv.bias is None else self.qkv.bias[part])

    def evolution_kernel(self, x: Tensor) -> TapKernel:
        query, key = self.projected(x, 0, 2).chunk(2, 1)
        query = query * (self.in_channels // self.num_heads) ** -0.5
        logits = neighborhood_correlate(query, key, self.num_heads, **self.positions.options)
        if self.relative is not None:
            logits = logits + relative_bias(self.relative, self.positions, x.shape[2:]).to(logits.dtype)
        weight = tap_softmax(logits, self.positions, x.shape[2:])
        return self.tap_kernel(F.dropout(weight, self.attn_drop, self.training))

    def features(self, x: Tensor) -> Tensor:
        return self.projected(x, 2, 1)

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        return self.proj(y)

    def own_repr(self) -> str:
        return f'num_heads={self.num_heads}, relative_bias={self.relative is not None}'
