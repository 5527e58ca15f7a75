"""Self-attention on maps: over all pixels, or over a window around each."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from mmext.arguments import Count
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import AttentionKernel, TapKernel, tap_softmax
from mmext.ops.neighborhood import neighborhood_correlate
from mmext.registry import MODELS

__all__ = ['SelfAttention2d']


@MODELS.register_module()
class SelfAttention2d(EvolutionOperator2d):
    r"""Multi-head self-attention between pixels, without a code of positions.

    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, arXiv 1706.03762, in the form of Cai, *Evolution*, 2023,
    arXiv 2305.14409.

    .. math::
        y_p = W_o \sum_n A_{m(c)}(p, n)\, W_v\, x_n, \qquad
        A_m(p, n) = \mathrm{softmax}_n\big(q_m(p)^T k_m(n) / \sqrt d\big), \quad q = W_q x, \quad k = W_k x

    The kernel is A: spatial-specific, shared by the channels of a head. With the projections it is
    :math:`E(p)_n = \sum_m A_m(p, n)\, W_o^m W_v^m`.

    Args:
        *args: Those of ``nn.Conv2d``. With ``scope='global'`` the window only tells the size of the output.
        heads: Number of heads, a divisor of the output channels.
        scope: ``'window'``: the softmax runs over the taps of the window that lie inside of the image. ``'global'``: over all
            pixels; then the layer is ``nn.MultiheadAttention`` without biases.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``query``, ``key`` and ``value`` are Ci -> Co, ``out`` Co -> Co, none with a bias but ``out``, whose it is ``bias``.

    Raises:
        ValueError: If ``heads`` does not divide the output channels.

    With a stride, the queries are those of the centers of the windows. That is ours.

    Example:
        >>> layer = SelfAttention2d(8, 16, 7, padding=3, heads=2)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    mixes_channels = True
    example = dict(heads=2)
    typical = dict(kernel_size=7, heads=4)

    def __init__(
        self, *args: Any, heads: Count = 4, scope: Literal['window', 'global'] = 'window', **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.out_channels % heads:
            raise ValueError(
                f'SelfAttention2d needs heads that divide out_channels, got heads={heads} and '
                f'out_channels={self.out_channels}'
            )
        self.heads, self.scope = heads, scope
        self.query, self.key, self.value = (
            self.inner_conv(self.in_channels, self.out_channels, bias=False) for _ in range(3)
        )
        self.out = self.inner_conv(self.out_channels, self.out_channels, bias=False)
        self.init_weights()

    def init_kernel(self) -> None:
        for conv in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(conv.weight)

    def evolution_kernel(self, x: Tensor) -> TapKernel | AttentionKernel:
        here = self.positions
        query, key = self.query(here.centers(x, pool=False)), self.key(x)
        if self.scope == 'global':
            q, k = (t.flatten(2).unflatten(1, (self.heads, -1)).transpose(-1, -2) for t in (query, key))
            return AttentionKernel(query=q, key=k, size=tuple(query.shape[-2:]))
        scaled = query * (self.out_channels / self.heads) ** -0.5
        logits = neighborhood_correlate(scaled, here.pad(key), self.heads, **here.options)
        return self.tap_kernel(tap_softmax(logits, here, x.shape[-2:]))

    def features(self, x: Tensor) -> Tensor:
        return self.value(x)

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        return self.out(y)

    def own_repr(self) -> str:
        return f'heads={self.heads}, scope={self.scope!r}'
