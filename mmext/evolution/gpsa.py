"""Gated positional self-attention: attention that starts as a convolution and may leave it."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Positive
from mmext.evolution.token_attention import TokenAttention
from mmext.numerics import at_least_float32, attend, full_precision
from mmext.registry import MODELS

__all__ = ['GPSA']


@MODELS.register_module()
class GPSA(TokenAttention):
    r"""ConViT's gated positional self-attention.

    d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun, *ConViT: Improving Vision Transformers with Soft Convolutional
    Inductive Biases*, ICML 2021, arXiv 2103.10697.

    Each head weighs what tokens contain against where they lie, by a learned gate:

    .. math:: A = (1 - \sigma(\lambda))\, \mathrm{softmax}(q k^\top / \sqrt{d})
        + \sigma(\lambda)\, \mathrm{softmax}(w \cdot (\delta_x, \delta_y, \delta_x^2 + \delta_y^2))

    :math:`\delta` is the way from the query to the key. The second softmax is a product of one over rows and one over
    columns, so the layer applies it axis by axis. This is exact and needs no matrix over all pairs of tokens.

    At the start head :math:`h_1 + n h_2` looks at the neighbor :math:`(h_1 - c, h_2 - c)`, with n the root of the number of
    heads and c the center: the heads are the taps of an n x n kernel. Values start as the tokens themselves.

    Extra tokens (ours): they have no place. They attend by content alone, and no token attends to them by place.

    Args:
        *args: Those of :class:`mmext.evolution.token_attention.TokenAttention`.
        locality_strength: How sharply a head looks at its neighbor at the start.
        local_init: Whether to start as a convolution. A square number of heads makes a whole kernel; further heads
            start near a uniform average.
        **kwargs: Those of the base.

    Shape:
        Input and output are (B, N, embed_dims). ``pos_proj`` has no bias: it would cancel in the softmax.

    Raises:
        ValueError: As the base does.

    Example:
        >>> GPSA(16, 4)(torch.randn(2, 25, 16)).shape
        torch.Size([2, 25, 16])
    """

    def __init__(self, *args: Any, locality_strength: Positive = 1.0, local_init: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.locality_strength = locality_strength
        self.local_init = local_init
        self.pos_proj = nn.Linear(3, self.num_heads, bias=False)
        self.gating_param = nn.Parameter(torch.ones(self.num_heads))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        super().init_weights()
        for linear in (self.qkv, self.proj, self.pos_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.ones_(self.gating_param)
        if not self.local_init:
            return
        nn.init.eye_(self.qkv.weight[-self.embed_dims :])
        side = isqrt(self.num_heads)
        for head in range(side**2):
            rows, columns = head % side - (side - 1) / 2, head // side - (side - 1) / 2
            values = self.pos_proj.weight.new_tensor([2 * columns, 2 * rows, -1])
            self.pos_proj.weight[head] = self.locality_strength * values

    def axes(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the positional weights of rows and of columns, (heads, n, n) each, which sum to one over the keys."""
        with full_precision(self.pos_proj.weight):
            right, down, square = at_least_float32(self.pos_proj.weight).unbind(1)
            axes = []
            for n, linear in zip(size, (down, right), strict=True):
                place = torch.arange(n, device=linear.device, dtype=linear.dtype)
                way = place - place[:, None]
                axes.append((linear[:, None, None] * way + square[:, None, None] * way**2).softmax(-1))
        return axes[0], axes[1]

    def gate(self) -> Tensor:
        """Return the share of the places, (heads, 1, 1)."""
        return self.gating_param.sigmoid()[:, None, None]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        content = attend(q, k, v)
        rows, columns = (axis.to(v.dtype) for axis in self.axes(size))
        extra, placed = v.split([self.num_extra_tokens, v.shape[2] - self.num_extra_tokens], 2)
        by_column = columns[:, None] @ placed.unflatten(2, size)
        by_place = (rows @ by_column.flatten(3)).unflatten(3, by_column.shape[3:]).flatten(2, 3)
        first = content[:, :, : extra.shape[2]]
        return torch.cat((first, torch.lerp(content[:, :, extra.shape[2] :], by_place, self.gate().to(v.dtype))), 2)

    def attention(self, q: Tensor, k: Tensor, size: tuple[int, int]) -> Tensor:
        with full_precision(q):
            content = (at_least_float32(q) @ at_least_float32(k).mT * q.shape[-1] ** -0.5).softmax(-1)
            rows, columns = self.axes(size)
            by_place = torch.einsum('hyi,hxj->hyxij', rows, columns).flatten(3).flatten(1, 2)
            extra = self.num_extra_tokens
            by_place = F.pad(by_place, (extra, 0)).expand(len(content), -1, -1, -1)
            gated = torch.lerp(content[:, :, extra:], by_place.to(content.dtype), self.gate().to(content.dtype))
            return torch.cat((content[:, :, :extra], gated), 2).to(q.dtype)
