"""Aggregation over neighbourhoods with a weight for every pixel and tap, and the two operators dual to it.

With N(o, k) the source pixel that tap k of output pixel o sees, and g(c) the group of channel c:

    aggregate          out[b, c, o]  = sum_k              w[b, g(c), k, o] * v[b, c, N(o, k)]
    aggregate_adjoint  u[b, c, i]    = sum_{N(o, k) = i}  w[b, g(c), k, o] * z[b, c, o]
    correlate          l[b, g, k, o] = sum_{g(c) = g}     q[b, c, o] * v[b, c, N(o, k)]

One trilinear form read three ways, <z, aggregate(v, w)> = <w, correlate(z, v)> = <v, aggregate_adjoint(z, w)>: each
operator's derivatives are the other two, so backward and double backward need no further kernels. Involution, LSConv,
ContMix, neighbourhood attention and translation-variant convolution are `aggregate` with different weights.

Each operator has a compiled CPU and CUDA kernel (:func:`mmext.ops.native_status` says whether they run) and the reference
in ``reference.py``, which runs where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmext.ops._native import announce, native_status
from mmext.ops._operator import LIBRARY, operator, primals
from mmext.ops.arguments import integer, pair
from mmext.ops.neighborhood import reference
from mmext.ops.neighborhood.geometry import Window, axis_table, check_window, output_size, resolve

__all__ = [
    'neighborhood_aggregate',
    'neighborhood_aggregate_adjoint',
    'neighborhood_correlate',
    'neighborhood_mask',
]


def neighborhood_aggregate(
    value: Tensor,
    weight: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 'same',
    border: str = 'zero',
    group_map: str = 'block',
) -> Tensor:
    r"""Sum the neighbours of every pixel, each with its own weight.

    .. math:: \mathrm{out}_{b,c,o} = \sum_k w_{b,g(c),k,o}\, v_{b,c,N(o,k)}

    Args:
        value: (B, C, H, W).
        weight: (B, G, kh * kw, Ho, Wo), taps in row-major order, or (B, G * kh * kw, Ho, Wo) as a convolution emits it. G
            divides C. A batch of 1 serves every image, without a copy. The dtype is that of ``value``.
        kernel_size: Taps per axis, any number of them for every border but ``'shift'``, which needs odd ones.
        stride: Distance of the windows.
        dilation: Distance of the taps.
        padding: Pixels beyond the border that windows reach over; ``'same'`` centres the windows, so that stride 1 keeps
            the size (of an even kernel, the extra pixel lies after the image, as in ``F.conv2d``).
        border: What lies there. ``'zero'``; ``'replicate'`` and ``'reflect'`` as in ``F.pad``; ``'shift'``: nothing, windows
            near the border slide inside instead (neighbourhood attention's rule; stride 1, kernel * dilation <= size).
        group_map: ``'block'``: group g holds C/G consecutive channels, as in grouped convolution. ``'interleave'``: channel
            c belongs to group c mod G.

    Returns:
        (B, C, Ho, Wo), contiguous, with Ho = floor((H + padding - dilation * (kh - 1) - 1) / stride) + 1.

    Raises:
        ValueError: If the shapes, dtypes or options do not fit together.
    """
    window = resolve(kernel_size, stride, dilation, padding, border, group_map)
    value, window = _pad(value, window, border)
    weight = _unpack_weight(weight, value, window)
    _check_aggregate(value, weight, window)
    if torch.onnx.is_in_onnx_export():
        return reference.aggregate(value, weight, window)
    _announce()
    return _aggregate(value, weight, *window)


def neighborhood_aggregate_adjoint(
    grad: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 'same',
    border: str = 'zero',
    group_map: str = 'block',
) -> Tensor:
    r"""Send every pixel to its neighbours: the transpose of :func:`neighborhood_aggregate` as a map of the value.

    .. math:: u_{b,c,i} = \sum_{(o,k):\, N(o,k)=i} w_{b,g(c),k,o}\, z_{b,c,o}

    Args:
        grad: (B, C, Ho, Wo).
        weight: As for :func:`neighborhood_aggregate`.
        size: (H, W) of the result, which a stride alone does not determine.
        kernel_size: See :func:`neighborhood_aggregate`; so are the other arguments.
        stride: See there.
        dilation: See there.
        padding: See there.
        border: ``'zero'`` or ``'shift'``.
        group_map: See there.

    Returns:
        (B, C, H, W), contiguous.

    Raises:
        ValueError: If the shapes, dtypes or options do not fit together.
    """
    if border in ('replicate', 'reflect'):
        raise ValueError(
            f"neighborhood_aggregate_adjoint takes border 'zero' or 'shift', got {border!r}; differentiate "
            'neighborhood_aggregate for the others'
        )
    window = resolve(kernel_size, stride, dilation, padding, border, group_map)
    height, width = pair('size', size, least=0)
    weight = _unpack_weight(weight, grad, window)
    _check_adjoint(grad, weight, height, width, window)
    if torch.onnx.is_in_onnx_export():
        return reference.aggregate_adjoint(grad, weight, (height, width), window)
    _announce()
    return _adjoint(grad, weight, height, width, *window)


def neighborhood_correlate(
    query: Tensor,
    key: Tensor,
    groups: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 'same',
    border: str = 'zero',
    group_map: str = 'block',
) -> Tensor:
    r"""Take the inner product of every pixel with each of its neighbours, group by group.

    .. math:: l_{b,g,k,o} = \sum_{c:\, g(c)=g} q_{b,c,o}\, v_{b,c,N(o,k)}

    A tap outside of a zero border gives 0, not minus infinity: mask it with :func:`neighborhood_mask` before a softmax.

    Args:
        query: (B, C, Ho, Wo).
        key: (B, C, H, W).
        groups: G, a divisor of C.
        kernel_size: See :func:`neighborhood_aggregate`; so are the other arguments.
        stride: See there.
        dilation: See there.
        padding: See there.
        border: See there.
        group_map: See there.

    Returns:
        (B, G, kh * kw, Ho, Wo), contiguous.

    Raises:
        ValueError: If the shapes, dtypes or options do not fit together.
    """
    window, groups = resolve(kernel_size, stride, dilation, padding, border, group_map), integer('groups', groups)
    key, window = _pad(key, window, border)
    _check_correlate(query, key, groups, window)
    if torch.onnx.is_in_onnx_export():
        return reference.correlate(query, key, groups, window)
    _announce()
    return _correlate(query, key, groups, *window)


def neighborhood_mask(
    size: tuple[int, int],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 'same',
    border: str = 'zero',
    device: torch.device | str = 'cpu',
) -> Tensor:
    """Return which taps see the image, bool (kh * kw, Ho, Wo); all do unless the border is ``'zero'``."""
    window, sides = resolve(kernel_size, stride, dilation, padding, border, 'block'), pair('size', size, least=0)
    output_size(sides, window)
    rows, columns = (axis_table(window, axis, sides[axis], device) >= 0 for axis in (0, 1))
    if border != 'zero':
        rows, columns = torch.ones_like(rows), torch.ones_like(columns)
    return (rows.T[:, None, :, None] & columns.T[None, :, None, :]).flatten(0, 1)


def _announce() -> None:
    if not torch.compiler.is_compiling():
        announce()


def _pad(value: Tensor, window: Window, border: str) -> tuple[Tensor, Window]:
    """Turn the borders that no kernel knows into an image that needs none."""
    if border not in ('replicate', 'reflect'):
        return value, window
    top, bottom, left, right = window.padding
    height, width = value.shape[-2:]
    if border == 'reflect' and (max(top, bottom) >= height or max(left, right) >= width):
        raise ValueError(
            f"border='reflect' needs padding below the size, got {window.padding=}, size {[height, width]}"
        )
    unpadded = Window(window.kernel, window.stride, window.dilation, [0, 0, 0, 0], window.shift, window.interleave)
    return F.pad(value, (left, right, top, bottom), mode=border), unpadded


def _unpack_weight(weight: Tensor, value: Tensor, window: Window) -> Tensor:
    taps = window.kernel[0] * window.kernel[1]
    if weight.ndim == 4 and weight.shape[1] % taps == 0:
        weight = weight.unflatten(1, (weight.shape[1] // taps, taps))
    if weight.ndim != 5 or weight.shape[2] != taps:
        raise ValueError(
            f'weight must be (B, G, {taps}, Ho, Wo) or (B, G * {taps}, Ho, Wo) for kernel {window.kernel}, got '
            f'{list(weight.shape)}'
        )
    shared = weight.shape[0] == 1 and value.shape[0] != 1
    return weight.expand(value.shape[0], -1, -1, -1, -1) if shared else weight


def _check_pair(first: Tensor, second: Tensor, groups: int, rank: int) -> None:
    if first.ndim != 4 or second.ndim != rank:
        second_law = '(B, G, kh * kw, Ho, Wo)' if rank == 5 else '(B, C, H, W)'
        raise ValueError(
            f'the tensors must be (B, C, H, W) and {second_law}, got {list(first.shape)} and {list(second.shape)}'
        )
    if first.shape[0] != second.shape[0]:
        raise ValueError(f'both tensors must have one batch size, got {first.shape[0]} and {second.shape[0]}')
    if groups < 1 or first.shape[1] % groups != 0:
        raise ValueError(f'the channels must be a multiple of the groups, got {first.shape[1]} channels, {groups=}')


def _check_types(first: Tensor, second: Tensor) -> None:
    """Check what autocast may still change, which is why the public functions do not."""
    if first.dtype != second.dtype or not first.is_floating_point() or first.device != second.device:
        raise ValueError(
            f'both tensors must have one floating dtype and one device, got {first.dtype} on {first.device} and '
            f'{second.dtype} on {second.device}'
        )


def _check_sizes(outputs: torch.Size, source: Sequence[int], window: Window) -> None:
    if tuple(outputs) != (expected := output_size(source, window)):
        raise ValueError(
            f'a size of {list(source)} gives {list(expected)} windows of kernel {window.kernel}, stride {window.stride}, '
            f'dilation {window.dilation}, padding {window.padding} (top, bottom, left, right), got {list(outputs)}'
        )


def _check_weight(features: Tensor, weight: Tensor, window: Window) -> None:
    _check_pair(features, weight, weight.shape[1] if weight.ndim == 5 else 1, 5)
    if weight.shape[2] != window.kernel[0] * window.kernel[1]:
        raise ValueError(f'the weight has {weight.shape[2]} taps for a kernel of {window.kernel}')


def _check_aggregate(value: Tensor, weight: Tensor, window: Window) -> None:
    check_window(window)
    _check_weight(value, weight, window)
    _check_sizes(weight.shape[-2:], value.shape[-2:], window)


def _check_adjoint(grad: Tensor, weight: Tensor, height: int, width: int, window: Window) -> None:
    check_window(window)
    _check_weight(grad, weight, window)
    _check_sizes(weight.shape[-2:], (height, width), window)
    if grad.shape[-2:] != weight.shape[-2:]:
        raise ValueError(f'grad and weight must agree in size, got {list(grad.shape)} and {list(weight.shape)}')


def _check_correlate(query: Tensor, key: Tensor, groups: int, window: Window) -> None:
    check_window(window)
    _check_pair(query, key, groups, 4)
    _check_sizes(query.shape[-2:], key.shape[-2:], window)
    if query.shape[1] != key.shape[1]:
        raise ValueError(f'query and key must agree in channels, got {query.shape[1]} and {key.shape[1]}')


# What the dispatcher runs: the reference where nothing is compiled, and the shapes alone under tracing.


def _run_aggregate(value: Tensor, weight: Tensor, *window: Any) -> Tensor:
    window = Window(*window)
    _check_types(value, weight)
    _check_aggregate(value, weight, window)
    return reference.aggregate(value, weight, window)


def _run_adjoint(grad: Tensor, weight: Tensor, height: int, width: int, *window: Any) -> Tensor:
    window = Window(*window)
    _check_types(grad, weight)
    _check_adjoint(grad, weight, height, width, window)
    return reference.aggregate_adjoint(grad, weight, (height, width), window)


def _run_correlate(query: Tensor, key: Tensor, groups: int, *window: Any) -> Tensor:
    window = Window(*window)
    _check_types(query, key)
    _check_correlate(query, key, groups, window)
    return reference.correlate(query, key, groups, window)


def _fake_aggregate(value: Tensor, weight: Tensor, *window: Any) -> Tensor:
    _check_types(value, weight)
    _check_aggregate(value, weight, Window(*window))
    return value.new_empty(*value.shape[:2], *weight.shape[-2:])


def _fake_adjoint(grad: Tensor, weight: Tensor, height: int, width: int, *window: Any) -> Tensor:
    _check_types(grad, weight)
    _check_adjoint(grad, weight, height, width, Window(*window))
    return grad.new_empty(*grad.shape[:2], height, width)


def _fake_correlate(query: Tensor, key: Tensor, groups: int, *window: Any) -> Tensor:
    _check_types(query, key)
    _check_correlate(query, key, groups, Window(*window))
    kernel = window[0]
    return query.new_empty(query.shape[0], groups, kernel[0] * kernel[1], *query.shape[-2:])


# Derivatives: each operator is linear in either tensor, and its gradients are the other two.


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    first, second, *options = inputs
    ctx.save_for_backward(first, second)
    ctx.save_for_forward(first, second)
    ctx.options = options
    ctx.window = options[-len(Window._fields) :]
    ctx.nothing = (None,) * len(options)


def _aggregate_backward(ctx: Any, z: Tensor) -> tuple:
    value, weight = ctx.saved_tensors
    wants_value, wants_weight = ctx.needs_input_grad[:2]
    return (
        _adjoint(z, weight, *value.shape[-2:], *ctx.window) if wants_value else None,
        _correlate(z, value, weight.shape[1], *ctx.window) if wants_weight else None,
        *ctx.nothing,
    )


def _adjoint_backward(ctx: Any, t: Tensor) -> tuple:
    grad, weight = ctx.saved_tensors
    wants_grad, wants_weight = ctx.needs_input_grad[:2]
    return (
        _aggregate(t, weight, *ctx.window) if wants_grad else None,
        _correlate(grad, t, weight.shape[1], *ctx.window) if wants_weight else None,
        *ctx.nothing,
    )


def _correlate_backward(ctx: Any, logits: Tensor) -> tuple:
    query, key = ctx.saved_tensors
    wants_query, wants_key = ctx.needs_input_grad[:2]
    return (
        _aggregate(key, logits, *ctx.window) if wants_query else None,
        _adjoint(query, logits, *key.shape[-2:], *ctx.window) if wants_key else None,
        *ctx.nothing,
    )


def _tangent(op: Callable, ctx: Any, first: Tensor | None, second: Tensor | None, *_: Any) -> Tensor | None:
    """The product rule: the operator of either tangent and the other tensor."""
    a, b = primals(ctx)
    parts = [op(*pair, *ctx.options) for pair, t in (((first, b), first), ((a, second), second)) if t is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _by_batch(
    op: Callable, axes: Sequence[int | None], first: Tensor, second: Tensor, *options: Any
) -> tuple[Tensor, int]:
    """The rule of ``vmap`` that makes the vmapped axis a part of the batch."""
    both = list(zip((first, second), axes, strict=False))
    size = next(t.shape[axis] for t, axis in both if axis is not None)
    mapped = [t.expand(size, *t.shape) if axis is None else t.movedim(axis, 0) for t, axis in both]
    batch = mapped[0].shape[1]
    return op(*(t.flatten(0, 1) for t in mapped), *options).unflatten(0, (size, batch)), 0


def _by_channels(
    op: Callable, axes: Sequence[int | None], features: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, int]:
    """The rule of ``vmap`` where one weight may serve all: they are further channels of its groups then, it is not copied."""
    axis, weight_axis, *_ = axes
    if axis is None or weight_axis is not None:
        return _by_batch(op, axes, features, weight, *options)
    features = features.movedim(axis, 1)
    size, channels, groups, interleave = *features.shape[1:3], weight.shape[1], options[-1]
    if interleave:
        return op(features.flatten(1, 2), weight, *options).unflatten(1, (size, channels)), 1
    grouped = features.unflatten(2, (groups, channels // groups)).movedim(1, 2)
    out = op(grouped.flatten(1, 3), weight, *options)
    return out.unflatten(1, (groups, size, channels // groups)).movedim(2, 1).flatten(2, 3), 1


def _autocast_rule(op: Callable, device: str) -> Callable:
    """Return what the compiled library registers too: run ``op`` in the half type that autocast asks for just now."""

    def cast(x: Tensor) -> Tensor:
        lower = x.is_floating_point() and x.dtype != torch.float64
        return x.to(torch.get_autocast_dtype(device)) if lower else x

    def rule(first: Tensor, second: Tensor, *options: Any) -> Tensor:
        first, second = cast(first), cast(second)
        with torch.autocast(device, enabled=False):
            return op(first, second, *options)

    return rule


native_status()  # loads the compiled kernels, which then take precedence over the composite ones
_WINDOW = 'int[] kernel, int[] stride, int[] dilation, int[] padding, bool shift, bool interleave'
_aggregate = operator(
    f'neighborhood_aggregate(Tensor value, Tensor weight, {_WINDOW}) -> Tensor',
    _run_aggregate,
    _fake_aggregate,
    _save,
    _aggregate_backward,
    _tangent,
    _by_channels,
)
_adjoint = operator(
    f'neighborhood_aggregate_adjoint(Tensor grad, Tensor weight, SymInt height, SymInt width, {_WINDOW}) -> Tensor',
    _run_adjoint,
    _fake_adjoint,
    _save,
    _adjoint_backward,
    _tangent,
    _by_channels,
)
_correlate = operator(
    f'neighborhood_correlate(Tensor query, Tensor key, SymInt groups, {_WINDOW}) -> Tensor',
    _run_correlate,
    _fake_correlate,
    _save,
    _correlate_backward,
    _tangent,
    _by_batch,
)
if native_status().which == 'reference':
    for _op in (_aggregate, _adjoint, _correlate):
        LIBRARY.impl(_op, _autocast_rule(_op, 'cpu'), 'AutocastCPU')
        LIBRARY.impl(_op, _autocast_rule(_op, 'cuda'), 'AutocastCUDA')
