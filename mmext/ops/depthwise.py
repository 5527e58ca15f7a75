"""Depthwise convolution, routed around the cliffs of the CPU library under ``F.conv2d``.

oneDNN on x86 computes most depthwise convolutions with kernels made for them, but falls back to im2col and a matrix
product, 10 to 40 times slower, for (torch 2.11, AVX-512, float32 and bfloat16; measured as ``benchmark_ops.py`` does)

- the forward pass in NCHW with a horizontal padding of 7 or more (K >= 15);
- the weight gradient with a kernel 5 or more wide (in NCHW also with any dilation);

and has slow spots for kernels 11 and 13 wide in channels_last, and for kernels of one tap, which it may run channel by
channel. All of them have detours in plain torch, exact to rounding:

- pad first and convolve without padding; or go through channels_last where the kernel is wider than half the image, because
  the padded image is then mostly zeros;
- write the weight gradient as one forward depthwise convolution of the input, an image of B * C channels, with the output's
  gradient as its kernel;
- widen the kernel to 15 columns with zeros;
- multiply every channel by its tap.

Taps of a large kernel that reach beyond a small map wherever the kernel stands are left out before any of that.

Everything else is ``F.conv2d``: every other device and dtype, and whatever runs in forward mode or within a transform of
``torch.func``.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy
from torch.nn.grad import conv2d_input

from mmext.numerics import in_transform
from mmext.ops.arguments import pair

__all__ = ['depthwise_conv2d', 'takes_detour']

_MEASURED_HERE = torch.backends.mkldnn.is_available() and platform.machine() in ('x86_64', 'AMD64')
_ROUTED_TYPES = (torch.float32, torch.bfloat16)
#: The horizontal padding from which on torch's forward in NCHW falls off the cliff.
SLOW_PADDING = 7


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Convolve every channel with its own kernel, as ``F.conv2d(..., groups=C)`` does.

    Args:
        x: (N, C, H, W) or (C, H, W).
        weight: (C, 1, kh, kw).
        bias: (C,).
        stride: As in ``F.conv2d``.
        padding: As in ``F.conv2d``.
        dilation: As in ``F.conv2d``.

    Returns:
        What ``F.conv2d`` returns, up to rounding, in the memory format of ``x``.

    Raises:
        ValueError: If stride, padding or dilation is neither an integer nor one or two of them, or out of range.
        RuntimeError: What ``F.conv2d`` raises of tensors that do not fit together.
    """
    if isinstance(x, Proxy):  # torch.fx records the call, whose sizes it does not know
        return x.tracer.create_proxy(
            'call_function', depthwise_conv2d, (x, weight, bias, stride, padding, dilation), {}
        )
    if weight.ndim != 4:
        raise ValueError(f'depthwise_conv2d needs a weight of (C, 1, kh, kw), got {list(weight.shape)}')
    groups = weight.shape[0]
    steps, spread = pair('stride', stride), pair('dilation', dilation)
    resolved, sides = _resolve_padding(padding, weight.shape, steps, spread)
    if (
        not _MEASURED_HERE
        or x.device.type != 'cpu'
        or x.ndim != 4
        or x.shape[1] != groups
        or sides is None
        or torch.jit.is_tracing()
        or in_transform()
        or not _is_near(x, weight, steps, sides, spread)
    ):
        return F.conv2d(x, weight, bias, steps, resolved, spread, groups)
    if torch.is_autocast_enabled('cpu'):
        dtype = torch.get_autocast_dtype('cpu')
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if x.dtype not in _ROUTED_TYPES or x.dtype != weight.dtype:
        return F.conv2d(x, weight, bias, steps, resolved, spread, groups)
    weight, sides = _within_reach(weight, x.shape[-2:], steps, sides, spread)
    biased = bias is None or (bias.shape == (groups,) and bias.dtype == x.dtype)  # all else is F.conv2d's to refuse
    if biased and tuple(weight.shape[2:]) == (1, 1) and steps == [1, 1] and sides == [0, 0]:
        taps = weight.view(-1, 1, 1)
        return x * taps if bias is None else torch.addcmul(bias.view(-1, 1, 1), x, taps)
    learns = torch.is_grad_enabled() and weight.requires_grad
    if learns and _weight_gradient_falls(weight, spread, _is_channels_last(x)):
        return _Routed.apply(x, weight, bias, steps, sides, spread)
    return _forward(x, weight, bias, steps, sides, spread)


def takes_detour(
    kernel: tuple[int, ...], padding: int | tuple[int, int] | str, dilation: int | tuple[int, int]
) -> bool:
    """Tell whether torch's own forward is slow in NCHW on a CPU, so that :func:`depthwise_conv2d` takes another way.

    Args:
        kernel: Shape of the kernel, (C, 1, kh, kw).
        padding: As in ``F.conv2d``.
        dilation: As in ``F.conv2d``.
    """
    _, sides = _resolve_padding(padding, kernel, [1, 1], pair('dilation', dilation))
    return sides is not None and sides[1] >= SLOW_PADDING


def _resolve_padding(
    padding: int | tuple[int, int] | str, kernel: Sequence[int], stride: list[int], dilation: list[int]
) -> tuple[list[int] | str, list[int] | None]:
    """Return the padding as ``F.conv2d`` takes it, and as [vertical, horizontal], None where two sides of an axis differ."""
    if not isinstance(padding, str):
        sides = pair('padding', padding, least=0)
        return sides, sides
    if padding == 'valid':
        return padding, [0, 0]
    if padding != 'same':
        raise ValueError(f"padding must be 'same', 'valid', an integer or two of them, got {padding!r}")
    if stride != [1, 1]:
        raise ValueError(f"padding='same' needs stride 1, got {stride=}; give the padding in pixels")
    reach = [d * (k - 1) for d, k in zip(dilation, kernel[-2:], strict=True)]
    return padding, None if any(r % 2 for r in reach) else [r // 2 for r in reach]


def _is_near(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> bool:
    """Return whether no tap or window lies so far beyond the image that padding it would cost more than a detour saves."""
    return all(
        max(s, p, d) <= n + k
        for s, p, d, n, k in zip(stride, padding, dilation, x.shape[-2:], weight.shape[-2:], strict=True)
    )


def _within_reach(
    weight: Tensor, size: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """Leave out the taps that see nothing but the padding from every pixel, where it keeps the size, and so much padding."""
    kernel = weight.shape[-2:]
    lost = [
        max(-((max(n, 1) - 1 - p) // d), 0) if d * (k - 1) == 2 * p else 0
        for n, k, p, d in zip(size, kernel, padding, dilation, strict=True)
    ]
    if stride != [1, 1] or not any(lost):
        return weight, padding
    rows, cols = (slice(far, k - far) for far, k in zip(lost, kernel, strict=True))
    return weight[:, :, rows, cols], [p - far * d for p, far, d in zip(padding, lost, dilation, strict=True)]


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _weight_gradient_falls(weight: Tensor, dilation: list[int], channels_last: bool) -> bool:
    height, width = weight.shape[-2:]
    if channels_last:
        return width >= 5 and height >= 3
    return width >= 5 or (width >= 3 and dilation[1] > 1)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Convolve by the fastest route."""
    groups, width = weight.shape[0], weight.shape[-1]
    vertical, horizontal = padding
    if _is_channels_last(x):
        if width in (11, 13) and stride == dilation == [1, 1]:
            extra = (15 - width) // 2
            return F.conv2d(x, F.pad(weight, (extra, extra)), bias, 1, (vertical, horizontal + extra), 1, groups)
    elif horizontal >= 7:
        if 2 * width > x.shape[-1] and dilation == [1, 1]:
            x = x.contiguous(memory_format=torch.channels_last)
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups).contiguous()
        x, padding = F.pad(x, (horizontal, horizontal, vertical, vertical)), [0, 0]
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _weight_gradient(
    x: Tensor,
    grad: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Correlate every channel's input with its gradient: a forward convolution in which they are image and kernel.

    Stride and dilation change places: the gradient's pixels lie ``stride`` apart in the input, the taps ``dilation``.
    """
    images, channels = grad.shape[:2]
    if not images:
        return (x.sum() * grad.sum()).expand(channels, 1, *kernel)
    vertical, horizontal = padding
    x = F.pad(x.contiguous(), (horizontal, horizontal, vertical, vertical))
    x = x.reshape(1, images * channels, *x.shape[-2:])
    grad = grad.reshape(images * channels, 1, *grad.shape[-2:])
    each = F.conv2d(x, grad, None, dilation, 0, stride, images * channels)[..., : kernel[0], : kernel[1]]
    return each.reshape(images, channels, *kernel).sum(0).unsqueeze(1)


class _Routed(torch.autograd.Function):
    """The convolution with the routed weight gradient; both derivatives are made of differentiable parts."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        return _forward(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, *ctx.options = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            stride, padding, dilation = ctx.options
            grad_x = conv2d_input(x.shape, weight, grad, stride, padding, dilation, weight.shape[0])
        if needs_weight:
            grad_weight = _weight_gradient(x, grad, list(weight.shape[-2:]), *ctx.options)
        if needs_bias and ctx.has_bias:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None
