"""SCNN: messages are passed from row to row and from column to column of a map, in four directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats, some
from mmext.blocks.scnn import DIRECTIONS, SCNNBlock
from mmext.necks._levels import check_maps
from mmext.registry import MODELS

__all__ = ['SCNN']


@MODELS.register_module()
class SCNN(BaseModule):
    """SCNN: messages pass through each map, down, up, right and left, so that long thin objects hold together.

    Pan et al., *Spatial As Deep: Spatial CNN for Traffic Scene Understanding*, AAAI 2018, arXiv 1712.06080.

    ::

        level i (C_i) ── 1x1, norm, ReLU ── down ── up ── right ── left ── level i (out_channels)
                         (only where C_i != out_channels)

    The passes are a :class:`mmext.SCNNBlock`, which also stands behind any map without a neck. Here it is for one level or
    several, alone or behind another neck. Each level has kernels of its own.

    Args:
        in_channels: Channels of each level.
        out_channels: Channels of every output.
        levels: Which levels pass messages; the others are only reduced. A large map takes long, as its rows wait for
            each other.
        directions: Which passes, in their order.
        kernel_size: Length of the kernels, odd.
        bias: See :class:`mmext.SCNNBlock`.
        skip_first: See :class:`mmext.SCNNBlock`.
        norm_cfg: Norm of the 1x1 convolutions.
        init_cfg: As in mmengine.

    Shape:
        A tuple of (N, C_i, H_i, W_i) to a tuple of (N, out_channels, H_i, W_i).

    Raises:
        ValueError: If a direction is unknown, the kernel is even, a level does not exist, or another number of maps
            comes in than ``in_channels`` names.

    Example:
        >>> neck = SCNN(in_channels=[4, 8], out_channels=8, levels=(1,))
        >>> [tuple(y.shape) for y in neck([torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)])]
        [(1, 8, 8, 8), (1, 8, 4, 4)]
    """

    example = dict(in_channels=(4, 8), out_channels=8)

    def __init__(
        self,
        in_channels: Annotated[Sequence[Count], some],
        out_channels: Count,
        levels: Sequence[int] | None = None,
        directions: Sequence[str] = DIRECTIONS,
        kernel_size: Repeats = 9,
        bias: bool = False,
        skip_first: bool = False,
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        numbers = range(len(in_channels))
        self.in_channels = list(in_channels)
        self.levels = tuple(numbers) if levels is None else tuple(levels)
        if not set(self.levels) <= set(numbers):
            raise ValueError(f'SCNN has the levels 0 to {len(in_channels) - 1} of in_channels, got {levels=}')
        self.reduce = nn.ModuleList(
            nn.Identity() if channels == out_channels else ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg)
            for channels in in_channels
        )
        self.passes = ModuleList(
            SCNNBlock(out_channels, directions, kernel_size, bias, skip_first)
            if number in self.levels
            else nn.Identity()
            for number in numbers
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Pass the messages through each map."""
        check_maps('SCNN', self.in_channels, inputs)
        return tuple(passes(reduce(x)) for x, reduce, passes in zip(inputs, self.reduce, self.passes, strict=True))
