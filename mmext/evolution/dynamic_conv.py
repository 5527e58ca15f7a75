"""DynamicConv: every pixel takes a weighted mean of its neighbors, with weights of its own for each head."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import DropRate, Repeats
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TapKernel, tap_softmax
from mmext.registry import MODELS

__all__ = ['DynamicConv2d']


@MODELS.register_module()
class DynamicConv2d(EvolutionOperator2d):
    r"""Dynamic convolution with softmax kernels that are shared by the channels of a head.

    Wu, Fan, Baevski, Dauphin, Auli, *Pay Less Attention with Lightweight and Dynamic Convolutions*, ICLR 2019,
    arXiv 1901.10430.

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, \mathrm{softmax}_n (G\, x_p)_{h(c),n}

    The paper's sequences have one axis. That the taps lie in the plane is our reading: with ``kernel_size=(1, K)`` the layer
    is the paper's. With a stride, :math:`x_p` is the mean of the pixels that the window advances over.

    Args:
        *args: Those of ``nn.Conv2d``.
        heads: Kernels of a pixel; they divide the channels. By default 16, or what 16 and the channels have in common.
        head_map: Which channels share one. ``'block'``: consecutive ones. ``'interleave'``: every ``heads``-th.
        renorm_padding: Whether the softmax leaves out taps beyond a zero border. Otherwise they count as dark pixels.
        drop: Share of the weights of taps that is dropped in training, after the softmax.
        generator_bias: Whether the generator has a bias.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``generator`` (G) is a 1x1 convolution, C -> heads * kh * kw, heads first.

    Raises:
        ValueError: If ``heads`` does not divide the channels, or input and output channels differ.

    The generator starts as the released one does (Xavier uniform). If it is zero, the layer is an average pooling.

    Example:
        >>> layer = DynamicConv2d(32, 32, 3, padding=1, heads=8)
        >>> layer(torch.randn(1, 32, 9, 9)).shape
        torch.Size([1, 32, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    example = dict(heads=4)
    typical = dict(kernel_size=7, heads=16)

    def __init__(
        self,
        *args: Any,
        heads: Repeats | None = None,
        head_map: Literal['block', 'interleave'] = 'block',
        renorm_padding: bool = False,
        drop: DropRate = 0.0,
        generator_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        heads = heads or math.gcd(16, self.in_channels)
        if self.in_channels % heads:
            raise ValueError(
                f'DynamicConv2d needs heads that divide in_channels, got {heads=} and in_channels={self.in_channels}'
            )
        self.heads, self.group_map, self.renorm_padding, self.drop = heads, head_map, renorm_padding, drop
        self.generator = self.inner_conv(self.in_channels, heads * self.positions.taps, bias=generator_bias)
        self.init_weights()

    def init_kernel(self) -> None:
        nn.init.xavier_uniform_(self.generator.weight)
        if self.generator.bias is not None:
            nn.init.zeros_(self.generator.bias)

    def evolution_kernel(self, x: Tensor) -> TapKernel:
        logits = self.generator(self.positions.centers(x)).unflatten(1, (self.heads, -1))
        weight = tap_softmax(logits, self.positions, x.shape[2:], mask=self.renorm_padding)
        return self.tap_kernel(F.dropout(weight, self.drop, self.training))

    def own_repr(self) -> str:
        return f'heads={self.heads}, head_map={self.group_map}, renorm_padding={self.renorm_padding}'
