"""CondConv: every image mixes its own kernel from a few experts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmext.arguments import Repeats
from mmext.evolution.base import EvolutionOperator2d
from mmext.evolution.kernels import ImageKernel
from mmext.registry import MODELS

__all__ = ['CondConv2d']

# How far the experts lie from a kernel that they all start from, as a part of its spread.
DEVIATION = 0.1


@MODELS.register_module()
class CondConv2d(EvolutionOperator2d):
    r"""Conditionally parameterized convolution: a kernel for every image, mixed from experts by what the image looks like.

    Yang et al., *CondConv: Conditionally Parameterized Convolutions for Efficient Inference*, NeurIPS 2019, arXiv 1904.04971.

    .. math:: E(p)_{n,o,c} = \sum_i \pi_i\, W_{i,o,c,n}, \qquad \pi = \mathrm{sigmoid}(R\, \mathrm{mean}_p(x_p) + r)

    Args:
        *args: Those of ``nn.Conv2d``.
        num_experts: Number of kernels.
        **kwargs: Those of ``nn.Conv2d``.

    Shape:
        ``experts`` (W) is (num_experts * Co, Ci/groups, kh, kw), one after the other; ``expert_bias`` (num_experts, Co), mixed
        the same way; ``routing`` (R, r) is Ci -> num_experts.

    Raises:
        ValueError: If ``nn.Conv2d`` refuses the arguments.

    Example:
        >>> layer = CondConv2d(8, 16, 3, padding=1, num_experts=4)
        >>> layer(torch.randn(2, 8, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    spatial_specific, channel_specific, dynamic = False, True, True
    mixes_channels = True

    def __init__(self, *args: Any, num_experts: Repeats = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_experts = num_experts
        inputs = self.in_channels // self.groups
        self.experts = self.inner_parameter(num_experts * self.out_channels, inputs, *self.kernel_size)
        self.register_parameter('expert_bias', None)
        if self.bias is not None:
            self.bias = None
            self.expert_bias = self.inner_parameter(num_experts, self.out_channels)
        self.routing = self.inner_conv(self.in_channels, num_experts)
        self.init_weights()

    def init_kernel(self) -> None:
        # Kaiming's bound hangs on the fan in alone, which all experts share.
        nn.init.kaiming_uniform_(self.experts, a=5**0.5)
        if self.expert_bias is not None:
            bound = self.experts[0].numel() ** -0.5
            nn.init.uniform_(self.expert_bias, -bound, bound)

    def load_kernel(self, kernel: Tensor) -> None:
        share = 1 / self.num_experts if self.num_experts > 1 else 0.9
        nn.init.zeros_(self.routing.weight)
        self.routing.get_parameter('bias').fill_(math.log(share / (1 - share)))
        # Every process must draw the same, wherever its own numbers stand.
        noise = torch.randn((self.num_experts, *kernel.shape), generator=torch.Generator().manual_seed(0)).to(kernel)
        apart = DEVIATION * kernel.std(correction=0) * (noise - noise.mean(0))
        self.experts.copy_((kernel / (share * self.num_experts) + apart).flatten(0, 1))

    @property
    def loads_bias(self) -> bool:  # type: ignore[override]
        """Whether the experts have biases."""
        return self.expert_bias is not None

    def load_bias(self, bias: Tensor) -> None:
        shares = self.num_experts * self.routing.get_parameter('bias').sigmoid()[:, None]
        self.get_parameter('expert_bias').copy_(bias / shares)

    def evolution_kernel(self, x: Tensor) -> ImageKernel:
        share = self.routing(x.mean((2, 3), keepdim=True)).flatten(1).sigmoid()
        experts = self.experts.unflatten(0, (self.num_experts, self.out_channels))
        weight = (share.to(experts.dtype) @ experts.flatten(1)).unflatten(1, experts.shape[1:])
        bias = None if self.expert_bias is None else (share.to(experts.dtype) @ self.expert_bias)[:, :, None, None]
        return ImageKernel(bias=bias, weight=weight, positions=self.positions, groups=self.groups)

    def own_repr(self) -> str:
        return f'num_experts={self.num_experts}'
