"""TVConv: a kernel for every pixel that depends on where it is, and not on what is there."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Count, Repeats, Sides
from mmext.convs.cache import CachingLayer
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TapKernel
from mmext.numerics import full_precision
from mmext.ops.arguments import pair
from mmext.registry import MODELS

__all__ = ['TVConv2d']


@MODELS.register_module()
class TVConv2d(EvolutionOperator2d, CachingLayer):
    r"""Translation-variant convolution: a depthwise kernel for every position, drawn by a small network from a learned map.

    Chen et al., *TVConv: Efficient Translation Variant Convolution for Layout-aware Visual Processing*, CVPR 2022,
    arXiv 2203.10489.

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, F(A)_{c,n,p}

    A is a map of positions and F are 3x3 convolutions with layer norms and ReLUs. In eval mode F(A) is computed once.

    Args:
        *args: Those of ``nn.Conv2d``.
        size: Rows and columns of the output that A is made for.
        position_channels: Channels of A.
        hidden_channels: Channels inside of F.
        layers: Hidden layers of F beyond the first.
        position_bias: Whether a second F makes a bias for every position.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``position`` (A) is (1, position_channels, rows, columns).

    Raises:
        ValueError: If input and output channels differ.

    An output of another size has the kernels of F(A), resized bilinearly tap by tap. The paper does not say what to do there,
    so that this is ours. A starts as ones, so that the kernels start equal but for a rim.

    Example:
        >>> layer = TVConv2d(8, 8, 3, padding=1, size=(9, 7))
        >>> layer(torch.randn(1, 8, 9, 7)).shape, layer(torch.randn(1, 8, 20, 12)).shape
        (torch.Size([1, 8, 9, 7]), torch.Size([1, 8, 20, 12]))
    """

    spatial_specific, channel_specific, dynamic = True, True, False
    typical = dict(kernel_size=3, size=(14, 14))

    def __init__(
        self,
        *args: Any,
        size: Sides = (16, 16),
        position_channels: Count = 4,
        hidden_channels: Count = 16,
        layers: Repeats = 1,
        position_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.size = tuple(pair('size', size))
        widths = (position_channels, *[hidden_channels] * (layers + 1))
        self.position = self.inner_parameter(1, position_channels, *self.size)
        self.draw = self._network(*widths, self.in_channels * self.positions.taps)
        self.draw_bias = self._network(*widths, self.in_channels) if position_bias else None
        self.init_weights()

    def _network(self, *widths: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            norm = nn.LayerNorm([after, *self.size], **self._factory)
            parts += [self.inner_conv(before, after, 3, padding=1, bias=False), norm, nn.ReLU()]
        return nn.Sequential(*parts, self.inner_conv(widths[-2], widths[-1], 3, padding=1, bias=False))

    def init_kernel(self) -> None:
        nn.init.ones_(self.position)

    def maps(self, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return F(A) for an output of this size, (1, C * N, Ho, Wo), and the bias, (1, C, Ho, Wo), if there is one."""
        return self.cached(partial(self._draw, size), size)

    def _draw(self, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        networks = [self.draw] if self.draw_bias is None else [self.draw, self.draw_bias]
        with full_precision(self.position):
            maps = [network(self.position) for network in networks]
            if size != self.size:
                maps = [F.interpolate(m, size, mode='bilinear', align_corners=False) for m in maps]
        return tuple(maps)

    def evolution_kernel(self, x: Tensor) -> TapKernel:
        weight, *rest = self.maps(tuple(self.positions.output_size(x.shape[-2:])))
        bias = rest[0] if rest else None
        if bias is not None and self.bias is not None:
            bias = bias + self.bias.view(-1, 1, 1)
        return TapKernel(weight=weight, positions=self.positions, bias=bias)

    def own_repr(self) -> str:
        return f'size={self.size}'
