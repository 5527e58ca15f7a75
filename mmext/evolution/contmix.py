"""ContMix: what every pixel has in common with the regions of the image makes its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mmext.arguments import Cfg, Count, OddSize
from mmext.evolution.base import EvolutionOperator2d, InnerBlock
from mmext.evolution.kernels import SplitKernel, TapKernel, relative_bias, tap_softmax
from mmext.evolution.positions import Positions
from mmext.numerics import adaptive_mean
from mmext.registry import MODELS

__all__ = ['ContMixConv2d', 'ContextMixer']


class ContextMixer(nn.Module):
    r"""The part of ContMix that makes two kernels for every pixel, and mixes a map with them.

    With the query q of a pixel and the keys k_l of the regions that the context is pooled to, head by head:

    .. math:: w(p) = \mathrm{softmax}_n\big(P\, [\,q(p)^T k_l\,]_l + r\big)

    P is a linear map from regions to taps, shared by the heads, and r a table of relative positions. P is applied to the keys,
    which is the same, and what a pixel has in common with each region is never held. Half of the channels are mixed by the
    small kernels, half by the large ones. Windows slide inside of the image.

    Args:
        query: Makes q of a map, (B, C, H, W) -> (B, D, H, W).
        key: Makes k of the pooled context, (B, Cc, r, r) -> (B, D, r, r).
        project: P, a convolution from regions * regions channels to the taps of both kernels, the small ones first.
        channels: C, of the map that is mixed.
        kernel_size: Taps per axis of the large kernels.
        small_kernel: Of the small ones.
        heads: Kernels of each size. Twice the number that the released networks are built with.
        dilation: Distance of the taps.

    Shape:
        ``small_bias`` and ``large_bias`` (r) are (heads, 2 kh - 1, 2 kw - 1).
    """

    def __init__(
        self,
        query: nn.Module,
        key: nn.Module,
        project: _ConvNd,
        channels: int,
        kernel_size: tuple[int, int],
        small_kernel: tuple[int, int],
        heads: int,
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.query: Any = query
        self.key: Any = key
        self.project: Any = project
        self.channels, self.heads = channels, heads
        self.positions = [Positions(k, dilation=dilation, border='shift') for k in (small_kernel, kernel_size)]
        weight = project.weight
        self.regions = round(weight.shape[1] ** 0.5)
        tables = [weight.new_empty(heads, 2 * k[0] - 1, 2 * k[1] - 1) for k in (small_kernel, kernel_size)]
        self.small_bias, self.large_bias = map(nn.Parameter, tables)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the tables of relative positions."""
        for table in (self.small_bias, self.large_bias):
            nn.init.trunc_normal_(table, std=0.02)

    def grown_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size that a map of (H, W) is resized to: the short side as long as a window, if it is shorter."""
        need = [k * d for k, d in zip(self.positions[1].kernel_size, self.positions[1].dilation, strict=True)]
        scale = max(n / s for n, s in zip(need, size, strict=True))
        return tuple(max(int(scale * s), n) for n, s in zip(need, size, strict=True)) if scale > 1 else tuple(size)

    def grown(self, x: Tensor) -> Tensor:
        """Return ``x``, large enough for a window."""
        size = self.grown_size(x.shape[-2:])
        return x if size == tuple(x.shape[-2:]) else F.interpolate(x, size, mode='bilinear', align_corners=False)

    def kernel(self, query: Tensor, context: Tensor) -> SplitKernel:
        """Return the kernels of maps that are large enough, (B, C, H, W) and (B, Cc, H, W)."""
        size = query.shape[-2:]
        q = self.query(query).flatten(2).unflatten(1, (self.heads, -1)) * (self.channels / self.heads) ** -0.5
        k = self.key(adaptive_mean(context, (self.regions, self.regions))).flatten(2).unflatten(1, (self.heads, -1))
        counts = [here.taps for here in self.positions]
        weights = self.project.weight.flatten(1).split(counts)
        biases = self.project.bias.split(counts)
        parts = []
        for here, weight, bias, table in zip(
            self.positions, weights, biases, (self.small_bias, self.large_bias), strict=True
        ):
            logits = ((k @ weight.T.to(k.dtype)).transpose(-1, -2) @ q).unflatten(3, size)
            logits = logits + relative_bias(table, here, size, bias)
            parts.append(TapKernel(weight=tap_softmax(logits, here, size), positions=here))
        half = self.channels // 2
        return SplitKernel(parts=parts, channels=(half, self.channels - half))

    def forward(self, x: Tensor, query: Tensor, context: Tensor) -> Tensor:
        """Mix ``x``, (B, C, H, W), by the kernels of two maps of the same size."""
        y = self.kernel(self.grown(query), self.grown(context)).aggregate(self.grown(x))
        return self.shrunk(y, x.shape[-2:])

    def shrunk(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """Return what was computed on a grown map in the size of the map."""
        return y if y.shape[-2:] == torch.Size(size) else adaptive_mean(y, size)


@MODELS.register_module()
class ContMixConv2d(EvolutionOperator2d):
    r"""Context-mixing dynamic convolution: kernels from the affinity of every pixel to the regions of the image.

    Lou and Yu, *OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels*, CVPR 2025,
    arXiv 2502.20087.

    .. math::
        E(p)_{n,o,c} = \delta_{oc}\, w(p)_{g(c),n}, \qquad
        w(p) = \mathrm{softmax}_n\big(P\, [\,q(p)^T k_l\,]_l + r\big)

    The pixel's query meets the keys of 7 x 7 regions (:class:`mmext.evolution.ContextMixer`). The first half of the channels
    has kernels of ``small_kernel``, the second half those of ``kernel_size``. A 1x1 convolution makes the values, and another
    mixes what was aggregated. Windows slide inside of the image instead of reaching over its border. An image smaller than a
    window is enlarged, and the result is averaged back.

    Args:
        *args: Those of ``nn.Conv2d``, with stride 1 and a padding that keeps the size.
        small_kernel: Side of the kernels of the first half; by default 5, or as large as ``kernel_size``.
        heads: Kernels of each size. The released block calls half of it ``num_heads``.
        regions: Regions per axis.
        norm_cfg: The norm behind query, key, value and the last convolution, None for none.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``mixer.query`` and ``mixer.key`` are C -> C/2, ``mixer.project`` is (taps, regions * regions, 1, 1), ``value`` and
        ``fuse`` are C -> C.

    Raises:
        ValueError: If the window cannot slide (a stride, an even kernel, another padding), or if twice ``heads`` does not
            divide the channels.

    The layer is the dynamic convolution of the released plug-in block: its own surroundings (gate, re-parameterized branch,
    channel attention, feed-forward part) belong to the backbone.

    Example:
        >>> layer = ContMixConv2d(16, 16, 7, padding=3)
        >>> layer(torch.randn(1, 16, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    border = 'shift'
    example = dict(padding=1, heads=2)
    typical = dict(kernel_size=13, padding=6, heads=8)

    def __init__(
        self,
        *args: Any,
        small_kernel: OddSize | None = None,
        heads: Count = 4,
        regions: Count = 7,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        channels = self.in_channels
        if channels % (2 * heads):
            raise ValueError(
                f'ContMixConv2d has two kernels in each head and needs twice heads to divide in_channels, got heads={heads} '
                f'and in_channels={channels}'
            )
        rows, columns = (min(small_kernel or 5, k) for k in self.kernel_size)
        small = (rows, columns)
        self.heads, self.small_kernel = heads, small
        taps = small[0] * small[1] + self.positions.taps
        self.mixer = ContextMixer(
            self.inner_block(channels, channels // 2, norm_cfg=norm_cfg),
            self.inner_block(channels, channels // 2, norm_cfg=norm_cfg),
            self.inner_conv(regions * regions, taps),
            channels,
            self.kernel_size,
            small,
            heads,
            self.dilation,
        )
        self.value: InnerBlock = self.inner_block(channels, channels, norm_cfg=norm_cfg)
        self.fuse: InnerBlock = self.inner_block(channels, channels, norm_cfg=norm_cfg)
        self.init_weights()

    def check_size(self, size: Sequence[int]) -> None:
        """Accept any size."""

    def evolution_kernel(self, x: Tensor) -> SplitKernel:
        x = self.mixer.grown(x)
        return self.mixer.kernel(x, x)

    def features(self, x: Tensor) -> Tensor:
        return self.value(self.mixer.grown(x))

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        return self.fuse(self.mixer.shrunk(y, x.shape[-2:]))

    def own_repr(self) -> str:
        return f'small_kernel={self.small_kernel}, heads={self.heads}, regions={self.mixer.regions}'
