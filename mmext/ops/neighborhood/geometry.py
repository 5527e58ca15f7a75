"""Where the taps of a neighbourhood lie: sizes, border rules and the laws their arguments obey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmext.ops.arguments import MOST, pair

__all__ = ['BORDERS', 'GROUP_MAPS', 'Window', 'axis_table', 'check_window', 'output_size', 'resolve']

BORDERS = ('zero', 'shift', 'replicate', 'reflect')
GROUP_MAPS = ('block', 'interleave')
_SHIFT = "border='shift' slides whole windows inside the image: it needs stride 1, an odd kernel and padding='same'"


class Window(NamedTuple):
    """The window as the operators take it; ``padding`` is (top, bottom, left, right)."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    padding: list[int]
    shift: bool
    interleave: bool


def resolve(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int],
    dilation: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    border: str,
    group_map: str,
) -> Window:
    """Check the arguments of the public functions against each other and write them as a :class:`Window`."""
    kernel, steps, spread = pair('kernel_size', kernel_size), pair('stride', stride), pair('dilation', dilation)
    if border not in BORDERS:
        raise ValueError(f'border must be one of {BORDERS}, got {border!r}')
    if group_map not in GROUP_MAPS:
        raise ValueError(f'group_map must be one of {GROUP_MAPS}, got {group_map!r}')
    if border == 'shift' and not (isinstance(padding, str) and padding == 'same'):
        raise ValueError(
            f"border='shift' slides whole windows inside the image: it needs padding='same', got {padding=}"
        )
    if isinstance(padding, str) and padding != 'same':
        raise ValueError(f"padding must be 'same', an integer or two of them, got {padding!r}")
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        sides = [side for r in reach for side in (r // 2, r - r // 2)]
    else:
        sides = [p for p in pair('padding', padding, least=0) for _ in range(2)]
    window = Window(kernel, steps, spread, sides, border == 'shift', group_map == 'interleave')
    check_window(window)
    return window


def check_window(window: Window) -> None:
    """Check the entries of a window that need not come from :func:`resolve`: the compiled operators count in 64 bits.

    Raises:
        ValueError: If there are too many or too few of them, or one is out of range.
    """
    for name, count, least in (('kernel', 2, 1), ('stride', 2, 1), ('dilation', 2, 1), ('padding', 4, 0)):
        entries = getattr(window, name)
        if len(entries) != count or not all(least <= entry <= MOST for entry in entries):
            raise ValueError(f'{name} must have {count} entries from {least} to 2^31 - 1, got {list(entries)}')
    if window.shift and (list(window.stride) != [1, 1] or any(k % 2 == 0 for k in window.kernel)):
        raise ValueError(f'{_SHIFT}, got stride {list(window.stride)} and kernel {list(window.kernel)}')


def output_size(size: Sequence[int], window: Window) -> tuple[int, ...]:
    """Return the number of windows on each axis of a ``size`` image.

    Raises:
        ValueError: If no window fits.
    """
    if window.shift:
        if any(k * d > n for n, k, d in zip(size, window.kernel, window.dilation, strict=True)):
            raise ValueError(
                f"border='shift' needs kernel * dilation <= size, got kernel {window.kernel}, dilation "
                f'{window.dilation}, size {list(size)}'
            )
        return tuple(size)
    sides = (sum(window.padding[:2]), sum(window.padding[2:]))
    room = [n + p - d * (k - 1) - 1 for n, p, d, k in zip(size, sides, window.dilation, window.kernel, strict=True)]
    if any(r < 0 for r in room):
        raise ValueError(
            f'no window of kernel {window.kernel} and dilation {window.dilation} fits into size {list(size)} with '
            f'padding {window.padding} (top, bottom, left, right)'
        )
    return tuple(r // s + 1 for r, s in zip(room, window.stride, strict=True))


def axis_table(window: Window, axis: int, length: int, device: torch.device | str = 'cpu') -> Tensor:
    """Return N(o, k) of one axis as (outputs, kernel); -1 where the tap lies outside of the image.

    ``shift``: the windows of a residue class modulo the dilation start at the class's first member and stop at its last.
    """
    kernel, stride, dilation = window.kernel[axis], window.stride[axis], window.dilation[axis]
    tap = torch.arange(kernel, device=device)
    if window.shift:
        output = torch.arange(length, device=device)
        residue = output % dilation
        members = (length - residue + dilation - 1) // dilation
        first = torch.minimum(output // dilation - (kernel - 1) // 2, members - kernel).clamp(min=0)
        return (residue + dilation * first)[:, None] + dilation * tap
    reach = length + sum(window.padding[2 * axis : 2 * axis + 2]) - dilation * (kernel - 1)
    output = torch.arange((reach - 1) // stride + 1, device=device)
    at = output[:, None] * stride - window.padding[2 * axis] + dilation * tap
    return torch.where((at >= 0) & (at < length), at, -1)
