"""Self-attention over tokens, and over the positions of a map."""

from __future__ import annotations

from torch import Tensor, nn

from mmext.numerics import attend

__all__ = ['MapAttention', 'SelfAttention']


class SelfAttention(nn.Module):
    r"""Multi-head self-attention, (N, L, C) to the same.

    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, arXiv 1706.03762.

    .. math:: y = W_o\, \mathrm{softmax}(q^T k / \sqrt{d})\, v, \qquad (q, k, v) = W x

    Args:
        channels: C.
        heads: A divisor of C.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens ``x``."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(attend(query, key, value).transpose(1, 2).flatten(2))


class MapAttention(SelfAttention):
    """The same over all positions of a map, (N, C, H, W) to the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of ``x``."""
        return super().forward(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
