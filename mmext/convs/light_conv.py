"""LightConv: depthwise kernels that are weighted means, shared by the channels of a head."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import DropRate, Repeats
from mmext.convs.generated import GeneratedConv2d
from mmext.numerics import is_depthwise
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['LightConv2d']


@MODELS.register_module()
class LightConv2d(GeneratedConv2d):
    r"""Lightweight convolution: a depthwise kernel for each head, made a weighted mean by a softmax over its taps.

    Wu, Fan, Baevski, Dauphin, Auli, *Pay Less Attention with Lightweight and Dynamic Convolutions*, ICLR 2019,
    arXiv 1901.10430.

    .. math:: W_{c,u,v} = \mathrm{softmax}_{u,v}\, \theta_{h(c),u,v}

    A layer has heads * kh * kw parameters. One that is not depthwise stays plain. The paper's sequences have one axis. That
    the softmax is over the plane is our reading: with ``kernel_size=(1, K)`` the layer is the paper's.

    Args:
        *args: Those of ``nn.Conv2d``.
        heads: Number of kernels; they divide the channels. By default 16, or what 16 and the channels have in common.
        head_map: Which channels share one. ``'block'``: consecutive ones. ``'interleave'``: every ``heads``-th.
        softmax: Whether the taps of a kernel sum to one.
        renorm_padding: Whether taps beyond a zero border are left out of the mean. Otherwise the border gets darker. The
            released code does this for dynamic convolutions alone. Such a layer has no plain form unless it has no padding.
        drop: Share of the taps that is dropped in training, after the softmax. The kernel is another one in each forward.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``head_weight`` is (heads, 1, kh, kw).

    Raises:
        ValueError: If ``heads`` does not divide the channels.

    Weights start as the released ones do (Xavier uniform). Without the softmax a plain kernel is taken as the mean over the
    channels of a head. A softmax has positive taps alone, so a layer with one starts anew.

    Example:
        >>> layer = LightConv2d(32, 32, 3, padding=1, groups=32, heads=8)
        >>> layer(torch.randn(1, 32, 9, 9)).shape
        torch.Size([1, 32, 9, 9])
    """

    serves = ('depthwise',)
    example = dict(groups=8, heads=4)
    typical = dict(depthwise=True, kernel_size=7, heads=16)
    loads_kernel_exactly = False
    head_weight: nn.Parameter

    def __init__(
        self,
        *args: Any,
        heads: Repeats | None = None,
        head_map: Literal['block', 'interleave'] = 'block',
        softmax: bool = True,
        renorm_padding: bool = False,
        drop: DropRate = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plain = not is_depthwise(self)
        if self.plain:
            return
        heads = heads or math.gcd(16, self.in_channels)
        if self.in_channels % heads:
            raise ValueError(
                f'LightConv2d needs heads that divide the channels, got {heads=} and in_channels={self.in_channels}'
            )
        self.heads, self.head_map, self.softmax, self.drop = heads, head_map, softmax, drop
        self.renorm_padding = renorm_padding and softmax and self.padding_mode == 'zeros' and self.padding != (0, 0)
        self.fold_in_deploy = not self.renorm_padding
        self.head_weight = nn.Parameter(self.drop_weight().new_empty(heads, 1, *self.kernel_size))
        self.init_weights()

    def init_weights(self) -> None:
        if self.plain:
            return super().init_weights()
        nn.init.xavier_uniform_(self.head_weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def loads_kernel(self) -> bool:
        """Whether the kernel is linear in the parameters."""
        return not self.plain and not self.softmax

    def load_kernel(self, kernel: Tensor) -> None:
        dim, shape = (0, (-1, self.heads)) if self.head_map == 'interleave' else (1, (self.heads, -1))
        self.head_weight.copy_(kernel.unflatten(0, shape).mean(dim))

    def head_kernel(self) -> Tensor:
        """Return the taps of every head, (heads, 1, kh, kw)."""
        weight = self.head_weight
        return weight.flatten(1).softmax(1).view_as(weight) if self.softmax else weight

    def of_channels(self, weight: Tensor) -> Tensor:
        """Return the taps of every channel, (C, 1, kh, kw), given those of the heads."""
        each = self.in_channels // self.heads
        return weight.repeat(each, 1, 1, 1) if self.head_map == 'interleave' else weight.repeat_interleave(each, 0)

    def generate_kernel(self) -> Tensor:
        return self.of_channels(self.head_kernel())

    def kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        if self.plain or not (self.training and self.drop):
            return super().kernel_and_bias()
        with self.full_precision():
            return self.of_channels(F.dropout(self.head_kernel(), self.drop)), self.bias

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        if self.plain or not self.renorm_padding:
            return super().convolve(x, kernel, bias)
        # How much of a window's weight lies inside of the image: the same for every image.
        inside = x.new_ones(1, x.shape[1], *x.shape[2:])
        geometry = {k: v for k, v in self.plain_geometry().items() if k != 'groups'}
        share = depthwise_conv2d(inside, kernel, None, **geometry).clamp_min(torch.finfo(x.dtype).tiny)
        out = super().convolve(x, kernel, None) / share
        return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)

    def fold(self) -> nn.Conv2d:
        if not self.plain and self.renorm_padding:
            raise ValueError(
                'LightConv2d with renorm_padding=True divides by what lies inside of the image, which no plain convolution '
                'does; deploy the layer as it is'
            )
        return super().fold()

    def own_repr(self) -> str:
        return f'heads={self.heads}, head_map={self.head_map}, softmax={self.softmax}, renorm_padding={self.renorm_padding}'
