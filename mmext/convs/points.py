"""Convolutions whose kernel is drawn by weighted points that lie anywhere inside its window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmext.convs.generated import GeneratedConv2d

__all__ = ['PointConv2d']


class PointConv2d(GeneratedConv2d):
    """What such systems share: the window is ``kernel_size``, and the points stand in the place of ``weight``.

    A 1 x 1 window leaves a point no room: such a layer stays a plain convolution.

    A plain kernel that is taken, from a checkpoint or by surgery, may be smaller than the window. It then lies in the center,
    which is the same function if the padding has grown alike.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain = self.kernel_size == (1, 1)

    def can_load_kernel(self, shape: Sequence[int]) -> bool:
        """Whether the kernel has the layer's channels and fits into its window."""
        channels = (self.out_channels, self.in_channels // self.groups)
        return tuple(shape[:2]) == channels and all(k <= n for k, n in zip(shape[2:], self.kernel_size, strict=True))

    def fill_window(self, kernel: Tensor) -> Tensor:
        """Return ``kernel`` with zeros around it, as large as the window and with the same center."""
        pads = []
        for k, window in reversed(list(zip(kernel.shape[2:], self.kernel_size, strict=True))):
            before = window // 2 - k // 2
            pads += [before, window - k - before]
        return F.pad(kernel, pads)
