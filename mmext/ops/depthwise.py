"""Depthwise convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ['depthwise_conv2d']


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Convolve every channel with its own kernel, ``weight`` of shape (C, 1, kh, kw)."""
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])
