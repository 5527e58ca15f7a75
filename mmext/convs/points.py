"""Convolutions whose kernel is drawn by weighted points that lie anywhere inside its window."""

from __future__ import annotations

from typing import Any

from mmext.convs.generated import GeneratedConv2d

__all__ = ['PointConv2d']


class PointConv2d(GeneratedConv2d):
    """What such systems share: the window is ``kernel_size``, and the points stand in the place of ``weight``.

    A 1 x 1 window leaves a point no room: such a layer stays a plain convolution.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plain = self.kernel_size == (1, 1)
