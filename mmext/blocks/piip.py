"""PIIP's exchange: two branches take features from each other by attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmext.blocks.recomputed import Recomputed
from mmext.blocks.stepwise import Size, draw_layers
from mmext.numerics import at_least_float32, attend, full_precision

__all__ = ['DeformableAttention', 'DenseAttention', 'Exchange', 'Injector']


class DeformableAttention(nn.Module):
    """Attention of tokens to a few places of another map, near their own; mmcv's operator.

    Args:
        channels: Channels of the tokens.
        feat_channels: Channels of the other map.
        num_heads: Heads, a divisor of the tokens' channels and of the values'.
        num_points: Places of each head.
        value_ratio: Channels of the values, relative to the tokens'.

    Raises:
        ImportError: If mmcv has no operators.
    """

    def __init__(self, channels: int, feat_channels: int, num_heads: int, num_points: int, value_ratio: float) -> None:
        super().__init__()
        inside = int(channels * value_ratio)
        if inside < 1 or channels % num_heads or inside % num_heads:
            raise ValueError(
                f'PIIP needs num_heads that divide the channels of each branch and of its values, got {num_heads=}, '
                f'value_ratio={value_ratio} for {channels} channels'
            )
        self.num_heads, self.num_points = num_heads, num_points
        self.sampling_offsets = nn.Linear(channels, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(channels, num_heads * num_points)
        self.value_proj, self.output_proj = nn.Linear(feat_channels, inside), nn.Linear(inside, channels)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Let each head look in a direction of its own, at 1, 2, ... pixels, with equal weights."""
        turns = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ways = torch.stack((turns.cos(), turns.sin()), 1)
        ways = ways / ways.abs().amax(1, keepdim=True)
        reach = torch.arange(1, self.num_points + 1)[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_((ways[:, None] * reach).flatten())
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, x: Tensor, size: Size, feat: Tensor, feat_size: Size) -> Tensor:
        """Return what the tokens find, (N, L, C)."""
        with full_precision(x):
            query, feat = at_least_float32(x), at_least_float32(feat)
            value = self.value_proj(feat).unflatten(2, (self.num_heads, -1))
            offsets = self.sampling_offsets(query).unflatten(2, (self.num_heads, 1, self.num_points, 2))
            weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(3).unsqueeze(3)
            places = centers(size).to(query)[:, None, None, None] + offsets / offsets.new_tensor(feat_size[::-1])
            return self.output_proj(_sample(value, feat_size, places, weights)).to(x.dtype)


def centers(size: Size) -> Tensor:
    """Return the centers (x, y) of the cells of a grid that spans one, (rows * columns, 2)."""
    y, x = (((torch.arange(side) + 0.5) / side) for side in size)
    return torch.stack((x.repeat(size[0]), y.repeat_interleave(size[1])), 1)


def _sample(value: Tensor, size: Size, places: Tensor, weights: Tensor) -> Tensor:
    try:
        from mmcv.ops.multi_scale_deform_attn import (
            MultiScaleDeformableAttnFunction,
            multi_scale_deformable_attn_pytorch,
        )
    except ImportError as error:
        raise ImportError(
            "PIIP's deformable attention needs mmcv.ops, which this mmcv was built without; install an mmcv with ops "
            "(MMCV_WITH_OPS=1; mmcv-lite has none), or set attention='dense'"
        ) from error
    if not value.is_cuda:
        return multi_scale_deformable_attn_pytorch(value, [size], places, weights)
    shapes = torch.tensor([size], device=value.device)
    step = math.gcd(value.shape[0], 64)  # the kernel takes batches of this size
    return MultiScaleDeformableAttnFunction.apply(
        value.contiguous(), shapes, shapes.new_zeros(1), places.contiguous(), weights.contiguous(), step
    )


class DenseAttention(nn.Module):
    """Attention of tokens to all places of another map.

    Args:
        channels: Channels of the tokens.
        feat_channels: Channels of the other map.
        num_heads: Heads, a divisor of the tokens' channels.
    """

    def __init__(self, channels: int, feat_channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(
                f'PIIP needs num_heads that divide the channels of each branch, got {num_heads=}, {channels}'
            )
        self.num_heads = num_heads
        self.wq = nn.Linear(channels, channels, bias=False)
        self.wk, self.wv = (nn.Linear(feat_channels, channels, bias=False) for _ in range(2))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: Size, feat: Tensor, feat_size: Size) -> Tensor:
        """Return what the tokens find, (N, L, C)."""
        q, k, v = (
            layer(t).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, t in ((self.wq, x), (self.wk, feat), (self.wv, feat))
        )
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class ConvFFN(nn.Module):
    """Two linear layers with a depthwise 3 x 3 convolution between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        y = self.local(self.fc1(x).transpose(1, 2).unflatten(2, size))
        return self.fc2(F.gelu(y).flatten(2).transpose(1, 2))


class Injector(Recomputed):
    r"""What tokens take from another map: :math:`x + \gamma\, A(n(x), n(f))`, then a feed-forward layer of the same kind.

    Args:
        channels: Channels of the tokens.
        feat_channels: Channels of the other map.
        kind: ``'deform'`` or ``'dense'``.
        num_heads: Attention heads.
        num_points: Places of each head.
        value_ratio: Channels of the values, relative to the tokens'.
        ffn_ratio: Channels inside of the feed-forward layer, relative to the tokens'; 0 leaves it out.
        drop_path: Drop probability of the feed-forward layer.
        with_cp: Whether activations are computed again in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        feat_channels: int,
        kind: str,
        num_heads: int,
        num_points: int,
        value_ratio: float,
        ffn_ratio: float,
        drop_path: float,
        with_cp: bool,
    ) -> None:
        super().__init__(with_cp)
        self.query_norm, self.feat_norm = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(feat_channels, eps=1e-6)
        self.attend: nn.Module = (
            DeformableAttention(channels, feat_channels, num_heads, num_points, value_ratio)
            if kind == 'deform'
            else DenseAttention(channels, feat_channels, num_heads)
        )
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.ffn = ConvFFN(channels, max(int(channels * ffn_ratio), 1)) if ffn_ratio else None
        if self.ffn is not None:
            self.ffn_norm = nn.LayerNorm(channels, eps=1e-6)
            self.ffn_gamma = nn.Parameter(torch.zeros(channels))
            self.drop_path = DropPath(drop_path)

    def draw(self) -> None:
        """Start as the identity."""
        draw_layers(self)
        nn.init.zeros_(self.gamma)
        if isinstance(self.attend, DeformableAttention):
            self.attend.draw()
        if self.ffn is not None:
            nn.init.zeros_(self.ffn_gamma)

    def compute(self, x: Tensor, feat: Tensor, size: Size, feat_size: Size) -> Tensor:
        """Return the tokens with what they took."""
        x = x + self.gamma * self.attend(self.query_norm(x), size, self.feat_norm(feat), feat_size)
        if self.ffn is None:
            return x
        return x + self.ffn_gamma * self.drop_path(self.ffn(self.ffn_norm(x), size))


class Exchange(nn.Module):
    """Two branches take from each other, both from what the other was before.

    Args:
        first: Channels of the larger network.
        second: Channels of the smaller one.
        project: Whether features are mapped to the channels of the branch that takes them.
        **how: Those of :class:`Injector`.
    """

    def __init__(self, first: int, second: int, project: bool, **how: Any) -> None:
        super().__init__()
        self.to_first = nn.Linear(second, first) if project else nn.Identity()
        self.to_second = nn.Linear(first, second) if project else nn.Identity()
        self.into_first = Injector(first, first if project else second, **how)
        self.into_second = Injector(second, second if project else first, **how)

    def draw(self) -> None:
        """Start as the identity."""
        draw_layers(self)
        self.into_first.draw()
        self.into_second.draw()

    def forward(self, first: Tensor, size1: Size, second: Tensor, size2: Size) -> tuple[Tensor, Tensor]:
        """Return both after the exchange."""
        for_first, for_second = self.to_first(second), self.to_second(first)
        return (
            self.into_first(first, for_first, size1, size2),
            self.into_second(second, for_second, size2, size1),
        )
