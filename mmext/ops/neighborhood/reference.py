"""The neighbourhood operators in plain torch: a loop over the taps, each of which multiplies and adds shifted views.

No patch tensor is built, everything is differentiable and exports to ONNX. Half types are summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.ops.neighborhood.geometry import Window, axis_table, output_size

__all__ = ['aggregate', 'aggregate_adjoint', 'correlate']


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _grouped(x: Tensor, groups: int, window: Window) -> Tensor:
    """View the channels as (groups, channels per group), in the order of the group map."""
    if window.interleave:
        return x.unflatten(1, (x.shape[1] // groups, groups)).transpose(1, 2)
    return x.unflatten(1, (groups, x.shape[1] // groups))


def _ungrouped(x: Tensor, window: Window) -> Tensor:
    return (x.transpose(1, 2) if window.interleave else x).flatten(1, 2).contiguous()


def _tap_slices(window: Window, size: Sequence[int]) -> list[tuple[slice, slice]]:
    """Return, tap by tap, the part of the zero-padded image that the outputs of ``size`` see."""
    axes = [
        [slice(k * d, k * d + (n - 1) * s + 1, s) for k in range(kernel)]
        for kernel, d, s, n in zip(window.kernel, window.dilation, window.stride, size, strict=True)
    ]
    return [(y, x) for y in axes[0] for x in axes[1]]


def _is_near(window: Window, size: Sequence[int]) -> bool:
    """Return whether the padded image is worth having; else most taps lie far beyond the image, and tables find the others."""
    reach = [max(window.padding[:2]), max(window.padding[2:])]
    return not window.shift and all(r <= n + k for r, n, k in zip(reach, size, window.kernel, strict=True))


def _tables(window: Window, size: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return what :func:`axis_table` says of either axis, where an image with one more row and column has its zeros."""
    return [axis_table(window, axis, n, device) % (n + 1) for axis, n in enumerate(size)]


def _padding(window: Window) -> tuple[int, ...]:
    top, bottom, left, right = window.padding
    return (left, right, top, bottom)


def _shifted(x: Tensor, window: Window) -> list[Tensor]:
    """Return, tap by tap, what every output pixel sees of ``x``, (..., H, W)."""
    if _is_near(window, x.shape[-2:]):
        size = output_size(x.shape[-2:], window)
        padded = F.pad(x, _padding(window))
        return [padded[..., y, x] for y, x in _tap_slices(window, size)]
    rows, columns = _tables(window, x.shape[-2:], x.device)
    padded = F.pad(x, (0, 1, 0, 1))
    by_row = [padded.index_select(-2, r) for r in rows.unbind(1)]
    return [r.index_select(-1, c) for r in by_row for c in columns.unbind(1)]


def aggregate(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sum the neighbours of every output pixel with its weights."""
    dtype = _accumulator(value.dtype)
    grouped = _grouped(value.to(dtype), weight.shape[1], window)
    out = grouped.new_zeros(*grouped.shape[:3], *weight.shape[-2:])
    for k, seen in enumerate(_shifted(grouped, window)):
        out = out + weight[:, :, None, k].to(dtype) * seen
    return _ungrouped(out, window).to(value.dtype)


def correlate(query: Tensor, key: Tensor, groups: int, window: Window) -> Tensor:
    """Take the inner product of every output pixel with each of its neighbours, group by group."""
    dtype = _accumulator(query.dtype)
    query, seen = _grouped(query, groups, window).to(dtype), _shifted(_grouped(key.to(dtype), groups, window), window)
    return torch.stack([(query * s).sum(2) for s in seen], 2).to(key.dtype)


def aggregate_adjoint(grad: Tensor, weight: Tensor, size: tuple[int, int], window: Window) -> Tensor:
    """Send every output pixel back to the neighbours it was made of, with its weights."""
    dtype = _accumulator(grad.dtype)
    grouped = _grouped(grad.to(dtype), weight.shape[1], window)
    sent = (weight[:, :, None, k].to(dtype) * grouped for k in range(weight.shape[2]))
    if _is_near(window, size):
        left, right, top, bottom = _padding(window)
        padded = grouped.new_zeros(*grouped.shape[:3], size[0] + top + bottom, size[1] + left + right)
        for (y, x), part in zip(_tap_slices(window, grad.shape[-2:]), sent, strict=True):
            padded[..., y, x] += part
        out = padded[..., top : top + size[0], left : left + size[1]]
    else:
        rows, columns = (table.unbind(1) for table in _tables(window, size, grad.device))
        out = grouped.new_zeros(*grouped.shape[:3], size[0] + 1, size[1] + 1)
        for r in rows:
            by_row = grouped.new_zeros(*grouped.shape[:4], size[1] + 1)
            for c in columns:
                by_row = by_row.index_add(-1, c, next(sent))
            out = out.index_add(-2, r, by_row)
        out = out[..., : size[0], : size[1]]
    return _ungrouped(out, window).to(grad.dtype)
