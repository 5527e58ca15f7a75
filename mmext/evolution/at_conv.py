"""ATConv: every image makes a kernel for each channel, and takes a part of the kernel's mean off it."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from mmext.arguments import Cfg
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import ImageKernel
from mmext.numerics import adaptive_mean
from mmext.registry import MODELS

__all__ = ['ATConv2d']


@MODELS.register_module()
class ATConv2d(EvolutionOperator2d):
    r"""Attentive convolution: a depthwise kernel for every image, with lateral inhibition.

    *Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional Efficiency*, 2025,
    arXiv 2510.20092.

    .. math::
        E(p)_{n,o,c} = \delta_{oc} \big( w_{c,n} - \mathrm{sigmoid}(\alpha_c)\, \tfrac1N \textstyle\sum_m w_{c,m} \big),
        \qquad w_c = L\, \sigma\big(\mathrm{pool}_N(W_k x)_c\big) + l

    pool takes the means of N runs of pixels, row after row: strips of the image, as many as the kernel has taps. A 1x1
    convolution makes the values, another mixes what was aggregated.

    Args:
        *args: Those of ``nn.Conv2d``. The paper's layers have ``kernel_size=3`` and ``padding=1``.
        act_cfg: The activation sigma.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``kernel_values`` (W_k) and ``value`` are Ci -> Ci, ``generate`` (L, l) is a 1x1 convolution from taps to taps, ``out``
        is Ci -> Co and its bias is ``bias``, ``inhibition`` (alpha) is (Ci,).

    Raises:
        ValueError: If ``nn.Conv2d`` refuses the arguments.

    ``inhibition`` starts as zeros, half of the mean, and does not decay (``mmext.LayerOptionsConstructor``).

    Example:
        >>> layer = ATConv2d(8, 16, 3, padding=1)
        >>> layer(torch.randn(2, 8, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = False, True, True
    mixes_channels = True
    typical = dict(kernel_size=3)

    def __init__(self, *args: Any, act_cfg: Cfg = dict(type='GELU'), **kwargs: Any) -> None:  # noqa: B006
        super().__init__(*args, **kwargs)
        channels, taps = self.in_channels, self.positions.taps
        self.kernel_values = self.inner_conv(channels, channels)
        self.act = build_activation_layer(act_cfg)
        self.generate = self.inner_conv(taps, taps)
        self.inhibition = self.inner_parameter(channels)
        self.value = self.inner_conv(channels, channels)
        self.out = self.inner_conv(channels, self.out_channels, bias=False)
        self.init_weights()

    def init_kernel(self) -> None:
        nn.init.zeros_(self.inhibition)

    def optim_options(self) -> dict[str, dict[str, float]]:
        """Return what the inhibition learns with, relative to the other parameters."""
        return dict(inhibition=dict(decay_mult=0.0))

    def evolution_kernel(self, x: Tensor) -> ImageKernel:
        strips = adaptive_mean(self.kernel_values(x).flatten(2).unsqueeze(2), (1, self.positions.taps))
        taps = self.generate(self.act(strips).transpose(1, 3)).transpose(1, 3).squeeze(2)
        taps = taps - self.inhibition.sigmoid()[:, None] * taps.mean(2, keepdim=True)
        weight = taps.unflatten(2, (1, *self.kernel_size))
        return ImageKernel(weight=weight, positions=self.positions, groups=self.in_channels)

    def features(self, x: Tensor) -> Tensor:
        return self.value(x)

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        return self.out(y)
