"""Involution: every pixel makes its own kernel, and the channels of a group share it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmext.arguments import Cfg, Count
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import TapKernel
from mmext.registry import MODELS

__all__ = ['Involution2d']


@MODELS.register_module()
class Involution2d(EvolutionOperator2d):
    r"""Involution: a kernel for every pixel, generated from that pixel, shared by the channels of a group.

    Li et al., *Involution: Inverting the Inherence of Convolution for Visual Recognition*, CVPR 2021, arXiv 2103.06255.

    .. math::
        E(p)_{n,o,c} = \delta_{oc}\, H(p)_{g(c),n}, \qquad H(p) = W_1\, \mathrm{relu}(\mathrm{BN}(W_0\, x_p)) + b_1

    With a stride, x_p is the mean of the pixels that the window advances over.

    Args:
        *args: Those of ``nn.Conv2d``. The paper's layers have ``kernel_size=7``, ``padding=3`` and ``bias=False``.
        reduction: How many times narrower the hidden features are.
        group_channels: Channels that share a kernel.
        norm_cfg: The norm of the hidden features, None for none.
        act_cfg: Their activation, None for none.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``reduce`` (W0) is C -> C/reduction, ``span`` (W1, b1) from there to C/group_channels * kh * kw, groups first.

    Raises:
        ValueError: If ``group_channels`` does not divide the channels, or input and output channels differ.

    The released layer fails for an odd size with stride 2, where its pooling rounds down. Here the last window is averaged
    over the pixels that it has. Convolutions start as mmcv's ``ConvModule`` draws them (Kaiming normal, fan out).

    Example:
        >>> layer = Involution2d(32, 32, 7, stride=2, padding=3)
        >>> layer(torch.randn(1, 32, 9, 9)).shape
        torch.Size([1, 32, 5, 5])
    """

    spatial_specific, channel_specific, dynamic = True, False, True
    example = dict(group_channels=4)
    typical = dict(kernel_size=7, group_channels=16)

    def __init__(
        self,
        *args: Any,
        reduction: Count = 4,
        group_channels: Count = 16,
        norm_cfg: Cfg | None = dict(type='BN'),  # noqa: B006
        act_cfg: Cfg | None = dict(type='ReLU'),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.in_channels % group_channels:
            raise ValueError(
                f'Involution2d needs group_channels that divide in_channels, got group_channels={group_channels} and '
                f'in_channels={self.in_channels}'
            )
        self.reduction, self.group_channels = reduction, group_channels
        hidden = max(self.in_channels // reduction, 1)
        self.reduce = self.inner_block(self.in_channels, hidden, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.span = self.inner_conv(hidden, self.in_channels // group_channels * self.positions.taps)
        self.init_weights()

    def init_kernel(self) -> None:
        for conv in (self.reduce.conv, self.span):
            nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def evolution_kernel(self, x: Tensor) -> TapKernel:
        return self.tap_kernel(self.span(self.reduce(self.positions.centers(x))))

    def own_repr(self) -> str:
        return f'reduction={self.reduction}, group_channels={self.group_channels}'
