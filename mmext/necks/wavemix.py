"""The decoder of WaveMix's segmentors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmext.arguments import Axis, Count, some
from mmext.registry import MODELS

__all__ = ['WaveMixDecoder']


@MODELS.register_module()
class WaveMixDecoder(BaseModule):
    """WaveMixDecoder: transposed convolutions enlarge one map until it has the size of the image, with nothing between them.

    Jeevan, Viswanathan, Anandu, Sethi, *WaveMix: A Resource-efficient Neural Network for Image Analysis*, 2022,
    arXiv 2205.14375.

    ::

        map (C, stride 4) ─ 4 x 4, up 2 (C1, stride 2) ─ 4 x 4, up 2 (C2, stride 1) ─ 1 x 1 of the head

    The 1 x 1 to classes is a stock ``FCNHead`` with ``num_convs=0``. So it has mmseg's losses and its dropout.

    Args:
        in_channels: C.
        channels: Channels behind each doubling. The authors have 128 and 64 for 192 and for 256 channels.
        in_index: Which of the maps that come in.
        init_cfg: As in mmengine.

    Shape:
        A sequence of maps to one map of (N, channels[-1], 2^k H, 2^k W) for k doublings, in a tuple.

    Raises:
        ValueError: If ``in_index`` is not among the maps.

    Example:
        >>> neck = WaveMixDecoder(in_channels=16, channels=(8, 4))
        >>> [tuple(y.shape) for y in neck([torch.randn(1, 16, 5, 6)])]
        [(1, 4, 20, 24)]
    """

    example = dict(in_channels=16, channels=(8, 4))

    def __init__(
        self,
        in_channels: Count,
        channels: Annotated[Sequence[Count], some] = (128, 64),
        in_index: Axis = -1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_index, self.num_outs = in_index, 1
        self.layers = nn.Sequential(
            *(nn.ConvTranspose2d(before, after, 4, 2, 1) for before, after in pairwise((in_channels, *channels)))
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Enlarge one of ``inputs``."""
        if not -len(inputs) <= self.in_index < len(inputs):
            raise ValueError(f'WaveMixDecoder takes map in_index={self.in_index}, but {len(inputs)} maps came in')
        return (self.layers(inputs[self.in_index]),)
