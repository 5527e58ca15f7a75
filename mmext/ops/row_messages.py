"""Messages from row to row of a map: one matrix product for each row, and derivatives without a graph of all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mmext.ops._native import native_status
from mmext.ops._operator import operator, primals

__all__ = ['row_messages', 'row_messages_reference']

#: About so many pixels share a product for the gradient of the kernel.
PIXELS = 512


def row_messages(rows: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False) -> Tensor:
    r"""Return what each row is told by the row before it.

    .. math:: m_0 = 0, \qquad m_i = \mathrm{ReLU}(K * (x_{i-1} + m_{i-1}) + b)

    Rows wait for each other, so each is small work. The compiled form needs five ninths of the multiplications, see
    ``cuda_ops/cpu/row_messages_cpu.cpp``. Without it, a row's windows are laid out in a buffer that stays in the cache, and
    multiplied by the whole kernel at once. The backward pass goes through the rows in the same way, and makes the gradient
    of the kernel from many rows together.

    Args:
        rows: x, (L, N, W, C).
        weight: K, (C, C, k) as of ``nn.Conv1d``, k odd. Borders are padded by zeros.
        bias: b, (C,), or None.
        reverse: Whether the last row is the first one.

    Returns:
        m, of the shape and type of ``rows``, contiguous.

    Raises:
        ValueError: If shapes or types do not fit.
    """
    channels = rows.shape[-1]
    if (
        rows.ndim != 4
        or weight.ndim != 3
        or tuple(weight.shape[:2]) != (channels, channels)
        or weight.shape[2] % 2 == 0
    ):
        raise ValueError(
            f'rows (L, N, W, C) need a kernel (C, C, k) with k odd, got {list(rows.shape)} and {list(weight.shape)}'
        )
    if not rows.dtype == weight.dtype == (weight if bias is None else bias).dtype:
        raise ValueError(f'rows, weight and bias must be of one type, got {rows.dtype} and {weight.dtype}')
    if torch.onnx.is_in_onnx_export():
        return row_messages_reference(rows, weight, bias, reverse)
    return _messages(rows, weight, bias, reverse)


def row_messages_reference(rows: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """Compute the same from convolutions of single rows, differentiable in every mode."""
    sequence = rows.transpose(2, 3).unbind(0)
    sequence = sequence[::-1] if reverse else sequence
    messages = [torch.zeros_like(sequence[0])]
    padding = int(weight.shape[2]) // 2  # torch 2.5 traces sizes as tensors, which a convolution does not take
    for row in sequence[:-1]:
        messages.append(F.conv1d(row + messages[-1], weight, bias, padding=padding).relu())
    return torch.stack(messages[::-1] if reverse else messages).transpose(2, 3).contiguous()


class _Windows:
    """The windows of some rows after others, as a matrix with a column for each tap and channel."""

    def __init__(self, rows: Tensor, taps: int, count: int = 1) -> None:
        _, images, width, channels = rows.shape
        padded = rows.new_zeros(count, images, width + taps - 1, channels)
        self.center = padded[:, :, taps // 2 : taps // 2 + width]
        # Pixels are beside each other, so a window is one piece of memory.
        shape, strides = (count, images, width, taps * channels), (*padded.stride()[:2], channels, 1)
        self._seen = padded.as_strided(shape, strides)
        self._columns = rows.new_empty(shape)

    def columns(self, count: int = 1) -> Tensor:
        """Return the windows of the first ``count`` rows that ``center`` holds."""
        return self._columns[:count].copy_(self._seen[:count]).flatten(0, 2)


def _order(rows: Tensor, reverse: bool) -> list[int]:
    return list(range(len(rows)))[:: -1 if reverse else 1]


def _compiled(rows: Tensor, weight: Tensor) -> bool:
    """Return whether the compiled recurrence runs: for a kernel that it makes cheaper, on the CPU, in the types it has."""
    return (
        rows.device.type == 'cpu'
        and rows.dtype in (torch.float32, torch.float64)
        and weight.shape[2] > 1
        and native_status().which == 'native'
    )


def _run(rows: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    if _compiled(rows, weight):
        return torch.ops.mmext.row_recurrence(rows, weight, bias, None, reverse)
    rows = rows.contiguous()
    messages, order = torch.empty_like(rows), _order(rows, reverse)
    for first in order[:1]:
        messages[first].zero_()
    matrix = weight.permute(2, 1, 0).flatten(0, 1)
    windows = _Windows(rows, weight.shape[2])
    for before, here in pairwise(order):
        torch.add(rows[before], messages[before], out=windows.center[0])
        told = messages[here].flatten(0, 1)
        if bias is None:
            torch.mm(windows.columns(), matrix, out=told)
        else:
            torch.addmm(bias, windows.columns(), matrix, out=told)
        told.relu_()
    return messages


def _fake(rows: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    return rows.new_empty(rows.shape)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    rows, weight, bias, ctx.reverse = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(rows, weight, output)
    ctx.save_for_forward(rows, weight, output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    rows, weight, messages = ctx.saved_tensors
    # Where the gradients are differentiated again, they are made of parts that torch differentiates.
    make = _differentiable_gradients if torch.is_grad_enabled() else _gradients
    to_rows, to_weight, to_bias = make(rows, weight, messages, grad, ctx.reverse)
    return to_rows, to_weight, to_bias if ctx.has_bias else None, None


def _differentiable_gradients(
    rows: Tensor, weight: Tensor, messages: Tensor, grad: Tensor, reverse: bool
) -> tuple[Tensor, ...]:
    order, taps = _order(rows, reverse), weight.shape[2]
    to_rows, passed = {order[-1]: torch.zeros_like(rows[0])}, {order[0]: torch.zeros_like(rows[0])}
    for here, before in pairwise(reversed(order)):
        passed[here] = (grad[here] + to_rows[here]) * (messages[here] > 0)
        back = F.conv_transpose1d(passed[here].transpose(1, 2), weight, padding=taps // 2)
        to_rows[before] = back.transpose(1, 2)
    heard, told = _pairs(reverse)
    seen = F.pad((rows + messages)[heard], (0, 0, taps // 2, taps // 2)).unfold(2, taps, 1)
    through = torch.stack([passed[i] for i in range(len(rows))])
    to_weight = torch.einsum('lnwct,lnwo->oct', seen, through[told])
    return torch.stack([to_rows[i] for i in range(len(rows))]), to_weight, through.sum((0, 1, 2))


def _pairs(reverse: bool) -> tuple[slice, slice]:
    """Return the rows that speak, and those that they speak to."""
    return (slice(1, None), slice(None, -1)) if reverse else (slice(None, -1), slice(1, None))


def _gradients(rows: Tensor, weight: Tensor, messages: Tensor, grad: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    rows, grad, taps = rows.contiguous(), grad.contiguous(), weight.shape[2]
    flipped = weight.flip(2).transpose(0, 1)
    if _compiled(rows, weight):
        to_rows = torch.ops.mmext.row_recurrence(grad, flipped, None, messages, not reverse)
        passed = (grad + to_rows).mul_(messages > 0)
    else:
        to_rows, passed = _gradients_by_row(grad, flipped, messages, reverse)
    heard, told = _pairs(reverse)
    passed, total = passed[told], weight.new_zeros(taps * weight.shape[1], weight.shape[0])
    step = max(1, PIXELS // max(1, rows.shape[1] * rows.shape[2]))
    windows = _Windows(rows, taps, step)
    for x, m, theirs in zip(*(t.split(step) for t in (rows[heard], messages[heard], passed)), strict=True):
        torch.add(x, m, out=windows.center[: len(x)])
        total.addmm_(windows.columns(len(x)).t(), theirs.flatten(0, 2))
    to_weight = total.unflatten(0, (taps, -1)).permute(2, 1, 0)
    return to_rows, to_weight, passed.sum((0, 1, 2))


def _gradients_by_row(grad: Tensor, flipped: Tensor, messages: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows, and those that pass through each row's message."""
    to_rows, passed, order = torch.empty_like(grad), torch.empty_like(grad), _order(grad, reverse)
    for first, last in zip(order[:1], order[-1:], strict=True):
        passed[first].zero_()
        to_rows[last].zero_()
    matrix = flipped.permute(2, 1, 0).flatten(0, 1)
    windows = _Windows(grad, flipped.shape[2])
    for here, before in pairwise(reversed(order)):
        torch.add(grad[here], to_rows[here], out=passed[here])
        passed[here].mul_(messages[here] > 0)
        windows.center[0].copy_(passed[here])
        torch.mm(windows.columns(), matrix, out=to_rows[before].flatten(0, 1))
    return to_rows, passed


def _jvp(op: Callable, ctx: Any, *tangents: Tensor | None) -> Tensor | None:
    rows, weight, messages = primals(ctx)
    d_rows, d_weight, d_bias = tangents[:3]
    padding, order, source = weight.shape[2] // 2, _order(rows, ctx.reverse), rows + messages
    changes = {order[0]: torch.zeros_like(rows[0])}
    for before, here in pairwise(order):
        moved = changes[before] if d_rows is None else d_rows[before] + changes[before]
        change = F.conv1d(moved.transpose(1, 2), weight, d_bias, padding=padding)
        if d_weight is not None:
            change = change + F.conv1d(source[before].transpose(1, 2), d_weight, padding=padding)
        changes[here] = change.transpose(1, 2) * (messages[here] > 0)
    return torch.stack([changes[i] for i in range(len(rows))])


def _vmap(op: Callable, axes: Sequence[int | None], *inputs: Any) -> tuple[Tensor, int]:
    rows, weight, bias, reverse = inputs
    axis, *others = axes[:3]
    if axis is not None and others == [None, None]:
        whole = rows.movedim(axis, 1)
        return op(whole.flatten(1, 2), weight, bias, reverse).unflatten(1, whole.shape[1:3]), 1
    count = next(x.shape[a] for x, a in zip(inputs, axes, strict=False) if a is not None)

    def one(i: int) -> list:
        return [x if a is None else x.select(a, i) for x, a in zip((rows, weight, bias), axes[:3], strict=True)]

    return torch.stack([op(*one(i), reverse) for i in range(count)]), 0


_messages = operator(
    'row_messages(Tensor rows, Tensor weight, Tensor? bias, bool reverse) -> Tensor',
    _run,
    _fake,
    _save,
    _backward,
    _jvp,
    _vmap,
)


def _multiply_adds(rows: list[int], weight: list[int]) -> int:
    return max(rows[0] - 1, 0) * prod(rows[1:3]) * prod(weight)


@register_flop_formula(torch.ops.mmext.row_messages)
def _flops(rows: list[int], weight: list[int], *args: Any, out_shape: list[int] | None = None, **_: Any) -> int:
    return 2 * _multiply_adds(rows, weight)


complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS['mmext::row_messages'] = lambda i, o: _multiply_adds(
    get_shape(i[0]), get_shape(i[1])
)
