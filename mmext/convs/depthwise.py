"""A depthwise ``nn.Conv2d`` that runs through the routed depthwise function."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmext.convs.base import ExtConv2d
from mmext.numerics import is_depthwise
from mmext.ops.depthwise import depthwise_conv2d
from mmext.registry import MODELS

__all__ = ['DepthwiseConv2d']


@MODELS.register_module()
class DepthwiseConv2d(ExtConv2d):
    """``nn.Conv2d`` with one kernel per channel, routed around the slow paths of CPU libraries (ours).

    The same parameters, state dict and result (up to rounding) as the ``nn.Conv2d`` it replaces; only the route differs,
    see :func:`mmext.ops.depthwise_conv2d`. On a GPU it is ``nn.Conv2d``. A surgery rule that matches depthwise layers puts
    it into any model::

        rules=[dict(depthwise=True, to=dict(type='mmext.DepthwiseConv2d'))]

    Args:
        *args: Those of ``nn.Conv2d``.
        **kwargs: Those of ``nn.Conv2d``.

    Raises:
        ValueError: Unless groups, in_channels and out_channels are equal.

    Example:
        >>> layer = DepthwiseConv2d(8, 8, 31, padding=15, groups=8)
        >>> layer(torch.randn(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    example = dict(groups=8)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_depthwise(self):
            raise ValueError(
                'DepthwiseConv2d needs groups = in_channels = out_channels, got '
                f'{self.groups=}, {self.in_channels=}, {self.out_channels=}; use Conv2d otherwise'
            )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``, (N, C, H, W)."""
        if self.padding_mode != 'zeros':
            return super().forward(x)
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def fold(self) -> nn.Conv2d:
        """Return the plain layer, with the same parameters."""
        return self.as_plain(self.weight, self.bias)
