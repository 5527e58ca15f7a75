"""Convolution with a kernel for every image of the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.ops.depthwise import depthwise_conv2d

__all__ = ['sample_conv2d']


def sample_conv2d(
    x: Tensor,
    kernels: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolve every image with its own kernel.

    .. math:: y_b = K_b * x_b

    The images stand side by side as the groups of one convolution. A single image takes the plain path. While an ONNX file is
    written, the images are unfolded instead, so that the batch of the file stays free.

    Args:
        x: (B, Ci, H, W).
        kernels: (B, Co, Ci / groups, kh, kw).
        stride: As in ``F.conv2d``.
        padding: As in ``F.conv2d``, in numbers.
        dilation: As in ``F.conv2d``.
        groups: As in ``F.conv2d``, of every image.

    Returns:
        (B, Co, Ho, Wo).

    Raises:
        ValueError: If there is not one kernel for each image.

    Example:
        >>> sample_conv2d(torch.randn(2, 4, 9, 9), torch.randn(2, 8, 4, 3, 3), padding=1).shape
        torch.Size([2, 8, 9, 9])
    """
    if x.ndim != 4 or kernels.ndim != 5 or kernels.shape[0] != x.shape[0]:
        raise ValueError(
            'sample_conv2d needs images (B, Ci, H, W) and one kernel (Co, Ci/groups, kh, kw) for each, got '
            f'{list(x.shape)} and {list(kernels.shape)}'
        )
    if torch.onnx.is_in_onnx_export():
        return _unfolded(x, kernels, stride, padding, dilation, groups)
    batch, channels = x.shape[:2]
    if batch == 0:  # the sum of no kernels is zero, and keeps them in the graph
        return _conv2d(x, kernels.sum(0), stride, padding, dilation, groups)
    if batch == 1:
        return _conv2d(x, kernels[0], stride, padding, dilation, groups)
    images = x.reshape(1, batch * channels, *x.shape[2:])
    out = _conv2d(images, kernels.flatten(0, 1), stride, padding, dilation, batch * groups)
    return out.view(batch, -1, *out.shape[2:])


def _conv2d(x: Tensor, kernel: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    if groups == x.shape[1] == kernel.shape[0]:
        return depthwise_conv2d(x, kernel, None, stride, padding, dilation)
    return F.conv2d(x, kernel, None, stride, padding, dilation, groups)


def _unfolded(x: Tensor, kernels: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """Convolve by a matrix product, whose graph holds no number of images."""
    size = kernels.shape[-2:]
    # What one row and one column of windows look like tells the size of the result.
    probe = F.conv2d(x[:1, :1], x.new_ones(1, 1, *size), None, stride, padding, dilation)
    seen = F.unfold(x, size, dilation, padding, stride)
    seen = seen.unflatten(1, (groups, seen.shape[1] // groups))
    flat = kernels.unflatten(1, (groups, kernels.shape[1] // groups)).flatten(3)
    return (flat @ seen).flatten(1, 2).unflatten(2, probe.shape[-2:])
