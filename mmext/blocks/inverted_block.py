"""The inverted bottleneck: a wide depthwise convolution between two 1 x 1 convolutions, the last without activation."""

from __future__ import annotations

from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from torch import Tensor, nn

from mmext.blocks.build import with_num_channels

__all__ = ['InvertedBlock', 'conv_norm_act']


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    *,
    bias: bool = True,
    conv_cfg: dict | None = None,
    norm_cfg: dict,
    act_cfg: dict | None,
) -> nn.Sequential:
    """Return a convolution with its norm and its activation; the padding keeps the size.

    Unlike mmcv's ``ConvModule`` it lets the convolution keep a bias in front of a norm, as some published networks do.
    """
    padding = kernel_size // 2
    conv = build_conv_layer(
        conv_cfg, in_channels, out_channels, kernel_size, stride, padding=padding, groups=groups, bias=bias
    )
    layers = [conv, build_norm_layer(norm_cfg, out_channels)[1]]
    if act_cfg is not None:
        layers.append(build_activation_layer(with_num_channels(act_cfg, out_channels)))
    return nn.Sequential(*layers)


class InvertedBlock(nn.Module):
    """1 x 1 to ``hidden`` channels, depthwise k x k, 1 x 1 back without activation; plus the input where shapes agree.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels of the depthwise convolution. With None there is no expansion, and they are those of the input.
        kernel_size: Side of the depthwise kernel, odd.
        stride: Its stride.
        conv_cfg: Conv layer of all convolutions; they have a bias.
        norm_cfg: Norm behind each convolution.
        act_cfg: Activation behind the first two.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int | None,
        kernel_size: int,
        stride: int = 1,
        *,
        conv_cfg: dict | None = None,
        norm_cfg: dict,
        act_cfg: dict,
    ) -> None:
        super().__init__()
        wide = in_channels if hidden is None else hidden
        both: dict = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.expand = nn.Identity() if hidden is None else conv_norm_act(in_channels, wide, 1, act_cfg=act_cfg, **both)
        self.depthwise = conv_norm_act(wide, wide, kernel_size, stride, wide, act_cfg=act_cfg, **both)
        self.project = conv_norm_act(wide, out_channels, 1, act_cfg=None, **both)
        self.residual = in_channels == out_channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y
