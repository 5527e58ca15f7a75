"""SCNN's messages from row to row and from column to column of a map, as a block that stands behind any map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import Sequential
from torch import Tensor, nn

from mmext.arguments import Count, Repeats
from mmext.ops.row_messages import row_messages
from mmext.registry import MODELS

__all__ = ['DIRECTIONS', 'MessagePassing', 'SCNNBlock']

DIRECTIONS = ('down', 'up', 'right', 'left')


class MessagePassing(nn.Module):
    r"""One direction: each row takes a message from the row that was changed before it.

    .. math:: x'_0 = x_0, \qquad x'_i = x_i + \mathrm{ReLU}(K * x'_{i-1} + b)

    Args:
        channels: C.
        direction: ``'down'``, ``'up'``, ``'right'`` or ``'left'``; the last two pass between columns.
        kernel_size: Length of K along a row, odd.
        bias: Whether there is a b.
        skip_first: Whether up and left leave the first row, or column, as it is.

    Shape:
        (N, C, H, W) to the same. ``weight`` is (C, C, kernel_size).
    """

    def __init__(
        self, channels: int, direction: str, kernel_size: int = 9, bias: bool = False, skip_first: bool = False
    ) -> None:
        super().__init__()
        self.direction, self.kernel_size = direction, kernel_size
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.skips_first = skip_first and direction in ('up', 'left')
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the kernel as the authors do; five is their allowance for the depth."""
        channels, _, length = self.weight.shape
        nn.init.normal_(self.weight, std=(2 / (5 * length * channels * channels)) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pass the messages through the whole map."""
        # Rows first and channels last: each step then reads one block of memory.
        along_rows = self.direction in ('down', 'up')
        rows = (x.permute(2, 0, 3, 1) if along_rows else x.permute(3, 0, 2, 1)).contiguous()
        reverse = self.direction in ('up', 'left')
        told = row_messages(*_of_one_type(rows, self.weight, self.bias), reverse)
        if self.skips_first:
            told = torch.cat([torch.zeros_like(told[:1]), told[1:]])
        passed = rows + told.to(rows.dtype)
        return passed.permute((1, 3, 0, 2) if along_rows else (1, 3, 2, 0))

    def extra_repr(self) -> str:
        return f'{self.weight.shape[0]}, {self.direction}, kernel_size={self.kernel_size}, bias={self.bias is not None}'


def _of_one_type(rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors in the type of an autocast, as a convolution has them, or in the widest of theirs."""
    kind = rows.device.type
    half = torch.is_autocast_enabled(kind) and rows.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if half else torch.promote_types(rows.dtype, weight.dtype)
    return rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@MODELS.register_module()
class SCNNBlock(Sequential):
    """Messages pass through a map: down, up, right and left, so that long thin objects hold together.

    Pan et al., *Spatial As Deep: Spatial CNN for Traffic Scene Understanding*, AAAI 2018, arXiv 1712.06080.

    Each direction works on the result of the one before, see :class:`MessagePassing`. It is a plug-in of a backbone, and a
    block for rules with ``after``::

        backbone=dict(plugins=[dict(cfg=dict(type='mmext.SCNNBlock'), stages=(0, 0, 0, 1), position='after_conv3')])

    As a neck it is ``mmext.SCNN``.

    Args:
        in_channels: C.
        directions: Which passes, in their order.
        kernel_size: Length of the kernels, odd.
        bias: Whether a message has a bias. The authors have none; a later port, pytorch-auto-drive, does.
        skip_first: Whether up and left leave the first row, or column, as it is. That port does so; the authors do not.
        init_cfg: As in mmengine.

    Shape:
        (N, C, H, W) to the same.

    Raises:
        ValueError: If a direction is unknown, or the kernel is even.

    Example:
        >>> block = SCNNBlock(8, directions=('down', 'right'))
        >>> block(torch.randn(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    example = dict(in_channels=8)

    def __init__(
        self,
        in_channels: Count,
        directions: Sequence[str] = DIRECTIONS,
        kernel_size: Repeats = 9,
        bias: bool = False,
        skip_first: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if unknown := sorted(set(directions) - set(DIRECTIONS)):
            raise ValueError(f'SCNNBlock knows the directions {DIRECTIONS}, got {unknown[0]!r} in {directions=}')
        if kernel_size % 2 == 0:
            raise ValueError(
                f'SCNNBlock needs an odd kernel_size, so that a message stays where it is, got {kernel_size=}'
            )
        passes = (MessagePassing(in_channels, d, kernel_size, bias, skip_first) for d in directions)
        super().__init__(*passes, init_cfg=init_cfg)
