"""RelationNet++'s attention: every pixel takes in what a few key points know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['Geometry', 'KeyAttention', 'Relation']


class Geometry(nn.Module):
    r"""A learned function of the way from a pixel to a key point, for each head of an attention.

    .. math:: G(\Delta) = \log \max(w_x \cdot e(\Delta_x) + w_y \cdot e(\Delta_y) + b, 10^{-6})

    e is a code of sines and cosines, known at whole numbers and interpolated between. The authors interpolate in a picture
    of all ways. It is a sum of a function of x and one of y, and so is what they interpolate. Here each is interpolated by
    itself, for columns and for rows, and the picture is never made.

    Args:
        channels: Length of the code, a multiple of 4.
        heads: Number of heads.
        base_size: Width and height of the area of ways that are told apart.
        log_scale: Whether there is a logarithm.
    """

    def __init__(self, channels: int, heads: int, base_size: Sequence[int], log_scale: bool) -> None:
        super().__init__()
        self.base_size, self.log_scale = tuple(base_size), log_scale
        self.transform = nn.Linear(channels, heads)
        nn.init.normal_(self.transform.weight, std=0.01)
        nn.init.zeros_(self.transform.bias)
        period = 1000.0 ** (torch.arange(channels // 4) * 4 / channels)
        for axis, size in zip('xy', self.base_size, strict=True):
            angle = torch.arange(-(size // 2), size // 2 + 1)[:, None] / period
            self.register_buffer(f'code_{axis}', torch.cat([angle.sin(), angle.cos()], 1), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map ways along columns, (N, K, W), and along rows, (N, K, H), to (N, heads, H W, K)."""
        half = self.transform.in_features // 2
        columns = self._along(x, self.code_x, self.transform.weight[:, :half], self.base_size[0])
        rows = self._along(y, self.code_y, self.transform.weight[:, half:], self.base_size[1])
        both = rows[:, :, :, None] + columns[:, :, None] + self.transform.bias[:, None, None, None]
        if self.log_scale:
            both = both.clamp(min=1e-6).log()
        return both.flatten(2, 3)

    @staticmethod
    def _along(way: Tensor, code: Any, weight: Tensor, size: int) -> Tensor:
        table = F.linear(code.to(weight), weight)
        last = len(table) - 1
        # Where a picture of the area is sampled with its corners as the outer edges of its pixels.
        place = (((way * 2 / size + 1) * len(table) - 1) / 2).clamp(0, last)
        lower = place.detach().floor().clamp(max=last - 1)
        share = (place - lower)[..., None]
        lower = lower.long()
        return (table[lower] * (1 - share) + table[lower + 1] * share).permute(0, 3, 2, 1)


class KeyAttention(nn.Module):
    """Attention of many queries to few keys, with the layout of torch's own parameters.

    Args:
        channels: Channels of queries and keys.
        heads: Number of heads; it divides the channels.
        appearance: Whether products of queries and keys count, beside the geometry.
    """

    def __init__(self, channels: int, heads: int, appearance: bool) -> None:
        super().__init__()
        self.heads, self.appearance = heads, appearance
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: Tensor, part: int) -> Tensor:
        channels = x.shape[2]
        own = slice(part * channels, (part + 1) * channels)
        y = F.linear(x, self.in_proj_weight[own], self.in_proj_bias[own])
        return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of (N, K, C)."""
        return self._split(x, 1), self._split(x, 2)

    def forward(self, x: Tensor, keys: tuple[Tensor, Tensor], geometry: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map queries, (N, L, C), to (N, L, C) and the mean weights of the heads, (N, L, K)."""
        key, value = keys
        # Without appearance the queries do not count, and keep their part in the graph.
        query = self._split(x, 0) * (key.shape[3] ** -0.5 if self.appearance else 0.0)
        logits = query @ key.transpose(2, 3)
        weights = (logits if geometry is None else logits + geometry).softmax(-1).to(value.dtype)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return self.out_proj(mixed), weights.mean(1)


class Relation(nn.Module):
    r"""Every pixel of every level takes in what the key points know.

    .. math:: F' = \mathrm{ReLU}\Big(F + \sum_g \mathrm{Attention}_g(F, K_g, G_g(\Delta))\Big)

    Args:
        channels: Channels of the maps.
        heads: Heads of each attention.
        kinds: How many kinds of key points there are, each with its attention.
        geometry: The function of ways: one for all, one for each kind, or None.
        appearance: See :class:`KeyAttention`.
        cat_positions: Whether the mean way to what a pixel attends to is mixed in at the end.
    """

    def __init__(
        self, channels: int, heads: int, kinds: int, geometry: Any, appearance: bool, cat_positions: bool
    ) -> None:
        super().__init__()
        self.attentions: Any = nn.ModuleList(KeyAttention(channels, heads, appearance) for _ in range(kinds))
        self.geometry = geometry
        self.pos_trans: Any = None
        if cat_positions:
            last = nn.Linear(channels + 2 * kinds, channels)
            self.embed_trans = nn.Sequential(last, nn.ReLU())
            self.pos_trans = nn.Linear(2, 2, bias=False)
            nn.init.normal_(last.weight, std=0.01)

    def forward(
        self,
        maps: Sequence[Tensor],
        features: Sequence[Sequence[Tensor]],
        places: Sequence[Sequence[Tensor]],
        strides: Sequence[int],
        units: Sequence[float],
    ) -> list[Tensor]:
        """Return the maps with what they took in.

        Args:
            maps: Of each level, (N, C, H_l, W_l).
            features: Of each kind and level, (N, K, C). Levels may share one tensor.
            places: Of each kind and level, in pixels, (N, K, 2).
            strides: Stride of each level.
            units: Pixels of a unit of ways, for each level.
        """
        known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        outs = []
        for level, (x, stride, unit) in enumerate(zip(maps, strides, units, strict=True)):
            rows, columns = (torch.arange(n, device=x.device) * stride + stride // 2 for n in x.shape[2:])
            queries = x.flatten(2).transpose(1, 2)
            total, ways = queries, []
            for kind, attention in enumerate(self.attentions):
                feature, place = features[kind][level], places[kind][level]
                if (kind, id(feature)) not in known:
                    known[kind, id(feature)] = attention.keys(feature)
                dx, dy = ((place[..., i, None] - axis) / unit for i, axis in enumerate((columns, rows)))
                geometry = self.geometry[kind] if isinstance(self.geometry, nn.ModuleList) else self.geometry
                bias = None if geometry is None else geometry(dx, dy)
                taken, weights = attention(queries, known[kind, id(feature)], bias)
                total = total + taken
                if self.pos_trans is not None:
                    way = torch.stack(torch.broadcast_tensors(dx[:, :, None], dy[..., None]), -1).flatten(2, 3)
                    mean = torch.einsum('nlk,nkld->nld', weights, way.detach().to(weights.dtype))
                    ways.append(self.pos_trans(mean))
            total = F.relu(total)
            if ways:
                total = self.embed_trans(torch.cat([total, *ways], -1))
            outs.append(total.transpose(1, 2).reshape(x.shape))
        return outs
