"""A gate for each channel from the means of all."""

from __future__ import annotations

from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.blocks.build import with_num_channels

__all__ = ['SqueezeExcite']


class SqueezeExcite(BaseModule):
    r"""Squeeze and excitation: every channel is scaled by a number that the means of all channels say.

    Hu et al., *Squeeze-and-Excitation Networks*, CVPR 2018, arXiv 1709.01507.

    .. math:: y = x\, \mathrm{sigmoid}(W_2\, \sigma(W_1 \bar{x} + b_1) + b_2)

    Args:
        channels: C.
        hidden: Width between the two layers.
        act_cfg: The activation.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, channels: int, hidden: int, act_cfg: dict) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.act = build_activation_layer(with_num_channels(act_cfg, hidden))
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        return x * self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
