"""SCNN: messages are passed from row to row and from column to column of a map, in four directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmext.arguments import Cfg, Count, Repeats, some
from mmext.registry import MODELS

__all__ = ['SCNN', 'MessagePassing']

DIRECTIONS = ('down', 'up', 'right', 'left')


class MessagePassing(nn.Module):
    r"""One direction: each row takes a message from the row that was changed before it.

    .. math:: x'_0 = x_0, \qquad x'_i = x_i + \mathrm{ReLU}(K * x'_{i-1})

    Args:
        channels: C.
        direction: ``'down'``, ``'up'``, ``'right'`` or ``'left'``; the last two pass between columns.
        kernel_size: Length of K along a row, odd.

    Shape:
        (N, C, H, W) to the same. ``weight`` is (C, C, kernel_size).
    """

    def __init__(self, channels: int, direction: str, kernel_size: int = 9) -> None:
        super().__init__()
        self.direction = direction
        self.kernel_size = kernel_size  # a plain number, also where a trace makes tensors of shapes
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel as the authors do; five is their allowance for the depth."""
        channels, _, length = self.weight.shape
        nn.init.normal_(self.weight, std=(2 / (5 * length * channels * channels)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Pass the messages through the whole map."""
        along_rows = self.direction in ('down', 'up')
        # Rows first and contiguous: each step then reads one block.
        rows = (x.permute(2, 0, 1, 3) if along_rows else x.permute(3, 0, 1, 2)).contiguous().unbind(0)
        if self.direction in ('up', 'left'):
            rows = rows[::-1]
        padding, passed = self.kernel_size // 2, [rows[0]]
        for row in rows[1:]:
            passed.append(row + F.relu(F.conv1d(passed[-1], self.weight, padding=padding)))
        if self.direction in ('up', 'left'):
            passed.reverse()
        return torch.stack(passed, 2 if along_rows else 3)

    def extra_repr(self) -> str:
        return f'{self.weight.shape[0]}, {self.direction}, kernel_size={self.kernel_size}'


@MODELS.register_module()
class SCNN(BaseModule):
    """SCNN: messages pass through each map, down, up, right and left, so that long thin objects hold together.

    Pan et al., *Spatial As Deep: Spatial CNN for Traffic Scene Understanding*, AAAI 2018, arXiv 1712.06080.

    ::

        level i (C_i) ── 1x1, norm, ReLU ── down ── up ── right ── left ── level i (out_channels)
                         (only where C_i != out_channels)

    Each direction works on the result of the one before, see :class:`MessagePassing`. There is neither bias nor norm in it.
    Stand-alone or behind any neck, for one level or several; each level has kernels of its own.

    Args:
        in_channels: Channels of each level.
        out_channels: Channels of every output.
        levels: Which levels pass messages; the others are only reduced. A large map takes long, as its rows wait for
            each other.
        directions: Which passes, in their order.
        kernel_size: Length of the kernels, odd.
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
        norm_cfg: Cfg = dict(type='BN'),  # noqa: B006
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if unknown := sorted(set(directions) - set(DIRECTIONS)):
            raise ValueError(f'SCNN knows the directions {DIRECTIONS}, got {unknown[0]!r}')
        if kernel_size % 2 == 0:
            raise ValueError(f'SCNN needs an odd kernel_size, so that a message stays where it is, got {kernel_size=}')
        numbers = range(len(in_channels))
        self.levels = tuple(numbers) if levels is None else tuple(levels)
        if not set(self.levels) <= set(numbers):
            raise ValueError(f'SCNN has the levels 0 to {len(in_channels) - 1} of in_channels, got {levels=}')
        self.reduce = ModuleList(
            nn.Identity() if channels == out_channels else ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg)
            for channels in in_channels
        )
        self.passes = ModuleList(
            nn.Sequential(*(MessagePassing(out_channels, d, kernel_size) for d in directions if number in self.levels))
            for number in numbers
        )

    def init_weights(self) -> None:
        """Draw the kernels of the messages as well; the hosts know only their own layers."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, MessagePassing):
                module.reset_parameters()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Pass the messages through each map."""
        if len(inputs) != len(self.reduce):
            raise ValueError(
                f'SCNN has in_channels for {len(self.reduce)} levels, got {len(inputs)} maps; name the channels of each'
            )
        return tuple(passes(reduce(x)) for x, reduce, passes in zip(inputs, self.reduce, self.passes, strict=True))
