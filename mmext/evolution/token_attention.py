"""What the attention modules for grids of tokens share: projections, dropouts, and where the tokens lie."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Annotated, Any

import torch
from mmcv.cnn.bricks.drop import build_dropout
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, DropRate, Natural, NonNegative, Repeats, at_most

__all__ = ['TokenAttention']


class TokenAttention(nn.Module):
    """Multi-head attention over the tokens of a grid, some of which may lie outside of it.

    It stands in the place of mmpretrain's ``MultiheadAttention``, and its names are those of that class. So a plain
    vision transformer's checkpoint is taken, and a rule of :class:`mmext.swap_layers` needs no argument but the type::

        rules=[dict(layer='MultiheadAttention', to=dict(type='mmext.GPSA', num_extra_tokens=1))]

    A system defines :meth:`mix`, and :meth:`attention` where dropout needs the whole matrix.

    Args:
        embed_dims: Channels of a token.
        num_heads: Attention heads, a divisor of ``embed_dims``.
        qkv_bias: Whether the projections to queries, keys and values have a bias.
        attn_drop: Share of the attention weights that is dropped in training.
        proj_drop: Share of the outputs that is dropped in training.
        dropout_layer: What is dropped at last, e.g. ``dict(type='DropPath', drop_prob=0.1)``.
        layer_scale_init_value: Start of a learned scale for each channel of the output, 0 for none.
        num_extra_tokens: Tokens before those of the grid, 1 for a class token. They have no place, so a system treats them
            as plain attention does.
        grid: (rows, columns) of the grid. By default it is square, of any size.

    Shape:
        Input and output are (B, num_extra_tokens + rows * columns, embed_dims).

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``, or the tokens do not make up the grid.
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    example: Mapping[str, Any] = dict(embed_dims=16, num_heads=4)

    def __init__(
        self,
        embed_dims: Count,
        num_heads: Repeats,
        qkv_bias: bool = True,
        attn_drop: DropRate = 0.0,
        proj_drop: DropRate = 0.0,
        dropout_layer: Cfg | None = None,
        layer_scale_init_value: NonNegative = 0.0,
        num_extra_tokens: Annotated[Natural, at_most(2**12)] = 0,
        grid: tuple[Repeats, Repeats] | None = None,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'{type(self).__name__} splits channels into heads of equal width, got {embed_dims=}, {num_heads=}; choose '
                'heads that divide the channels'
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_extra_tokens = num_extra_tokens
        self.grid = grid
        self.attn_drop = attn_drop
        self.layer_scale_init_value = layer_scale_init_value
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)
        self.out_drop = build_dropout(dropout_layer) if dropout_layer else nn.Identity()
        self.gamma1 = _Scale(embed_dims) if layer_scale_init_value else nn.Identity()

    @classmethod
    def arguments_from(cls, old: Any) -> dict[str, Any]:
        """Return the arguments that mmpretrain's ``MultiheadAttention`` says of itself."""
        scale = next(iter(old.gamma1.parameters()), None)
        known: dict[str, Any] = dict(
            embed_dims=old.embed_dims,
            num_heads=old.num_heads,
            qkv_bias=old.qkv.bias is not None,
            attn_drop=float(old.attn_drop),
            proj_drop=float(old.proj_drop.p),
            layer_scale_init_value=0.0 if scale is None else float(scale.detach().flatten()[0]),
        )
        drop = getattr(old.out_drop, 'drop_prob', getattr(old.out_drop, 'p', 0.0))
        if drop:
            known['dropout_layer'] = dict(type=type(old.out_drop).__name__, drop_prob=float(drop))
        return known

    def init_weights(self) -> None:
        """Initialize the module as its constructor does."""
        self.qkv.reset_parameters()
        self.proj.reset_parameters()
        for scale in self.gamma1.parameters():
            nn.init.constant_(scale, self.layer_scale_init_value)

    def size(self, tokens: int) -> tuple[int, int]:
        """Return (rows, columns) of the grid that so many tokens make up."""
        placed = tokens - self.num_extra_tokens
        rows, columns = self.grid or (isqrt(max(placed, 0)),) * 2
        if rows * columns != placed or placed < 1:
            law = f'a grid of {rows} x {columns}' if self.grid else 'a square grid'
            raise ValueError(
                f'{type(self).__name__} needs {self.num_extra_tokens} extra tokens and {law}, got {tokens} tokens; say '
                'num_extra_tokens=1 with a class token, and grid=(rows, columns) where the image is not square'
            )
        return rows, columns

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, heads, N, channels of a head) each."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attention(self, q: Tensor, k: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the attention weights, (B, heads, N, N); each row sums to one."""
        raise NotImplementedError(f'{type(self).__name__} must define attention()')

    def mix(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the attended values, (B, heads, N, channels of a head)."""
        return self.attention(q, k, size) @ v

    def forward(self, x: Tensor) -> Tensor:
        """Attend; (B, N, embed_dims) to the same shape."""
        size, (q, k, v) = self.size(x.shape[1]), self.heads(x)
        if self.training and self.attn_drop:
            dropped = nn.functional.dropout(self.attention(q, k, size), self.attn_drop)
            out = dropped @ v
        else:
            out = self.mix(q, k, v, size)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return self.out_drop(self.gamma1(self.proj_drop(out)))

    def dense_kernel(self, x: Tensor) -> Tensor:
        """Return the attention weights for the tokens ``x``, (B, heads, N, N)."""
        q, k, _ = self.heads(x)
        return self.attention(q, k, self.size(x.shape[1]))

    def extra_repr(self) -> str:
        grid = '' if self.grid is None else f', grid={self.grid}'
        return f'num_heads={self.num_heads}, num_extra_tokens={self.num_extra_tokens}{grid}'


class _Scale(nn.Module):
    """A learned factor for each channel, under the name that mmpretrain has for it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight
