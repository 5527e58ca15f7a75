"""Spatial operators that are no conv layers of their own. A depthwise one is any conv layer, e.g. ``Conv2d``."""

from __future__ import annotations

import torch
from mmcv.cnn import ConvModule, build_conv_layer
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, OddSize
from mmext.blocks.build import with_num_channels
from mmext.ops.arguments import pair
from mmext.registry import MODELS

__all__ = ['LightConvSO', 'PartialSO']


@MODELS.register_module()
class PartialSO(nn.Module):
    """Spatial operator of FasterNet (Chen et al., 2023, arXiv 2303.03667): convolve a part of the channels, keep the rest.

    Args:
        in_channels: Channels of the input.
        out_channels: The same number.
        ratio: One of how many channels is convolved, densely among themselves.
        kernel_size: Of the convolution.
        conv_cfg: Its conv layer.
        norm_cfg: Norm of the convolved channels; FasterNet has none.
        act_cfg: Activation of the convolved channels; FasterNet has none.

    Raises:
        ValueError: If ``out_channels`` differs from ``in_channels`` or ``ratio`` does not divide them.

    Example:
        >>> PartialSO(8, 8)(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    example = dict(in_channels=8, out_channels=8)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        ratio: Count = 4,
        kernel_size: OddSize = 3,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
    ) -> None:
        super().__init__()
        if in_channels != out_channels or in_channels % ratio:
            raise ValueError(
                f'PartialSO keeps its channels, a multiple of ratio, got {in_channels=}, {out_channels=}, {ratio=}'
            )
        self.part = in_channels // ratio
        self.conv = ConvModule(
            self.part,
            self.part,
            kernel_size,
            padding=kernel_size // 2,
            bias=False,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=with_num_channels(act_cfg, self.part),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to the same shape."""
        return torch.cat((self.conv(x[:, : self.part]), x[:, self.part :]), dim=1)


@MODELS.register_module()
class LightConvSO(nn.Module):
    """Spatial operator around a lightweight or dynamic convolution, with a gated linear unit before it.

    Wu, Fan, Baevski, Dauphin, Auli, *Pay Less Attention with Lightweight and Dynamic Convolutions*, ICLR 2019,
    arXiv 1901.10430.

    A linear layer makes two maps, one gates the other, the convolution mixes pixels, and a linear layer mixes channels::

        x -> 1x1 (C -> 2C) -> a * sigmoid(b) -> convolution -> 1x1 (C -> C) -> norm -> activation

    In two dimensions it is our reading. The paper has neither norm nor activation.

    Args:
        in_channels: Channels of the input, C.
        out_channels: The same number.
        kernel_size: Of the convolution. ``(1, K)`` is the paper's layer of sequences.
        conv_cfg: The convolution, e.g. ``dict(type='mmext.DynamicConv2d', heads=8)``. It is built depthwise.
        norm_cfg: Norm at the end, None for none.
        act_cfg: Activation at the end, None for none.

    Raises:
        ValueError: If ``out_channels`` differs from ``in_channels``.

    Example:
        >>> LightConvSO(16, 16)(torch.randn(2, 16, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    example = dict(in_channels=16, out_channels=16)

    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        kernel_size: OddSize | tuple[OddSize, OddSize] = 3,
        conv_cfg: Cfg | None = dict(type='mmext.LightConv2d'),  # noqa: B006
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f'LightConvSO keeps its channels, got {in_channels=}, {out_channels=}')
        self.gated = nn.Conv2d(in_channels, 2 * in_channels, 1)
        rows, columns = pair('kernel_size', kernel_size)
        place = dict(padding=(rows // 2, columns // 2), groups=in_channels, bias=False)
        self.conv = build_conv_layer(conv_cfg, in_channels, in_channels, (rows, columns), **place)
        self.mix = ConvModule(
            in_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=with_num_channels(act_cfg, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to the same shape."""
        return self.mix(self.conv(nn.functional.glu(self.gated(x), 1)))
