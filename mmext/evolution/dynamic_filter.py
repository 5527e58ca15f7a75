"""Dynamic filters: a small network looks at the input and predicts a filter, for every pixel or for every image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, above, at_most
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import FactoredKernel, ImageKernel
from mmext.numerics import at_least_float32, full_precision
from mmext.ops import neighborhood_correlate
from mmext.registry import MODELS

__all__ = ['DynamicFilter2d']

# Keeps divisions by what may be zero finite, as in the released code.
EPSILON = 1e-4


@MODELS.register_module()
class DynamicFilter2d(EvolutionOperator2d):
    r"""Predicted filters of a denoiser and of a dehazer, as layers.

    ``filters='pixel'`` is the step of Kim and others, *IDF: Iterative Dynamic Filtering Networks for Generalizable Image
    Denoising*, 2025, arXiv 2508.19649. Every pixel has one filter for all channels. It is predicted from features of the image
    and from how much the channels of each neighbor correlate with those of the pixel. Its taps are powers, divided by their
    sum:

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, |l_n(p)|^a / (\textstyle\sum_m |l_m(p)|^a + \epsilon)

    ``filters='image'`` is the filter of Wang and others, *CasDyF-Net: Image Dehazing via Cascaded Dynamic Filters*, 2024,
    arXiv 2409.08510. Every image has a filter for each channel, predicted from the mean of the image:

    .. math:: E(p)_{n,o,c} = \delta_{oc}\, \mathrm{softmax}_n \mathrm{BN}(P\, \mathrm{mean}_p(x_p))_{c,n}

    The sum of its outputs with ``passes='low'`` and ``'high'`` is the input: the cascade's split in two.

    Args:
        *args: Those of ``nn.Conv2d``. IDF's steps are ``padding_mode='reflect', padding=2, dilation=2`` and ``padding=1`` by
            turns, CasDyF's layers have ``padding_mode='reflect', padding=1``; both have ``bias=False``.
        filters: See above.
        hidden_channels: Width of the features (``'pixel'``).
        power: a, how sharp the filters are (``'pixel'``).
        correlation: Whether correlations are looked at (``'pixel'``). They are constants of the gradient, as in the paper.
        norm_cfg: The norm of the predicted filter, None for none (``'image'``).
        passes: ``'low'``: what is filtered. ``'high'``: what the filter takes away from each pixel.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``first``, ``second`` and ``predict`` are 3x3 convolutions to the taps (``'pixel'``), or ``predict`` is 1x1 and goes to
        the taps of all channels, channels first.

    Raises:
        ValueError: If input and output channels differ, or a single channel shall correlate.

    What the IDF network hands from step to step, and when it stops, are the network's and not the layer's.

    Example:
        >>> layer = DynamicFilter2d(8, 8, 3, padding=1, filters='image')
        >>> layer(torch.randn(2, 8, 9, 9)).shape
        torch.Size([2, 8, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    example = dict(hidden_channels=8)
    typical = dict(hidden_channels=64, padding_mode='reflect', bias=False)

    def __init__(
        self,
        *args: Any,
        filters: Literal['pixel', 'image'] = 'pixel',
        hidden_channels: Count = 64,
        power: Annotated[float, above(0), at_most(16)] = 3.0,
        correlation: bool = True,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        passes: Literal['low', 'high'] = 'low',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.filters, self.power, self.passes = filters, power, passes
        self.correlation = correlation and filters == 'pixel'
        if self.correlation and self.in_channels == 1:
            raise ValueError(
                'DynamicFilter2d correlates the channels of pixels and needs two of them, got in_channels=1; pass '
                'correlation=False'
            )
        self.spatial_specific, self.channel_specific = filters == 'pixel', filters == 'image'
        taps, options = self.positions.taps, dict(padding=1, bias=False)
        if filters == 'pixel':
            self.first = self.inner_conv(self.in_channels, hidden_channels, 3, **options)
            self.second = self.inner_conv(hidden_channels, hidden_channels, 3, **options)
            self.predict: Any = self.inner_conv(hidden_channels + self.correlation * taps, taps, 3, **options)
        else:
            self.predict = self.inner_block(self.in_channels, self.in_channels * taps, norm_cfg=norm_cfg)
        self.init_weights()

    def init_kernel(self) -> None:
        if self.filters == 'image':
            nn.init.kaiming_normal_(self.predict.conv.weight, mode='fan_out', nonlinearity='relu')

    def correlations(self, x: Tensor) -> Tensor:
        """Return how much the channels of every tap correlate with those of the center, (B, N, Ho, Wo)."""
        with torch.no_grad(), full_precision(x):
            wide = at_least_float32(x)
            apart = wide - wide.mean(1, keepdim=True)
            spread = (apart.square().sum(1, keepdim=True) / (self.in_channels - 1)).sqrt()
            standard = apart / (spread + EPSILON)
            center = self.positions.centers(standard, pool=False)
            image = self.positions.pad(standard)
            return neighborhood_correlate(center, image, 1, **self.positions.options)[:, 0].to(x.dtype)

    def evolution_kernel(self, x: Tensor) -> FactoredKernel:
        if self.filters == 'image':
            logits = self.predict(x.mean((2, 3), keepdim=True)).flatten(1)
            weight = logits.unflatten(1, (self.in_channels, -1)).softmax(2)
            weight = weight.unflatten(2, (1, *self.kernel_size))
            return ImageKernel(weight=weight, positions=self.positions, groups=self.in_channels)
        features = F.relu(self.second(F.relu(self.first(_normalized(x)))))
        features = self.positions.centers(features, pool=False)
        if self.correlation:
            features = torch.cat((features, self.correlations(x).to(features.dtype)), 1)
        logits = self.predict(_normalized(features))
        with full_precision(logits):
            powers = at_least_float32(logits).abs() ** self.power
            return self.tap_kernel((powers / (powers.sum(1, keepdim=True) + EPSILON)).to(logits.dtype))

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        return y if self.passes == 'low' else self.positions.centers(x, pool=False).to(y.dtype) - y

    def own_repr(self) -> str:
        own = f'power={self.power}, correlation={self.correlation}, ' if self.filters == 'pixel' else ''
        return f'filters={self.filters}, {own}passes={self.passes}'


def _normalized(x: Tensor) -> Tensor:
    """Return every image over the root of the mean of its squares."""
    with full_precision(x):
        size = at_least_float32(x).square().mean((1, 2, 3), keepdim=True).sqrt()
        return x / (EPSILON + size).to(x.dtype)
