"""Small numerical helpers that several folders need; it imports torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, wraps
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    'adaptive_mean',
    'at_least_float32',
    'attend',
    'cached_constants',
    'full_precision',
    'in_transform',
    'is_depthwise',
    'outside_modes',
    'spread_taps',
]

T = TypeVar('T')


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a half precision ``tensor`` in float32, any other as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Return the context in which autocast is off on the device of ``tensor``."""
    # The meta device has no autocast to switch off.
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def in_transform() -> bool:
    """Return whether this runs within a transform of ``torch.func`` (``vmap``, ``grad``, ``jvp``, ...) or in forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.scaled_dot_product_attention``; the fused kernels of a CPU know neither forward mode nor transforms.

    Args:
        query: (..., N, D).
        key: (..., M, D).
        value: (..., M, E).
        bias: Added to the logits, (..., N, M).
    """
    with sdpa_kernel(SDPBackend.MATH) if in_transform() else nullcontext():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


@contextmanager
def outside_modes() -> Iterator[None]:
    """Make a constant within this context, to be kept for every later call.

    A tensor made under ``inference_mode`` cannot be trained with, one made under a fake mode holds no numbers, and no
    transform of ``torch.func`` has a say in it.
    """
    # Each is made after the one before was entered: the last acts from its making on, the first restores what it then found.
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes(), torch._C._DisableFuncTorch():
        yield


def cached_constants(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Keep the last ``maxsize`` results of a function, which are made :func:`outside_modes`.

    A compiler, which sees through the cache, has the constants in its graph.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @lru_cache(maxsize)
        def made_once(*args: object) -> T:
            with outside_modes():
                return function(*args)

        @wraps(function)
        def constant(*args: object) -> T:
            return function(*args) if torch.compiler.is_compiling() else made_once(*args)

        vars(constant)['cache_info'] = made_once.cache_info
        return constant

    return decorate


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Return whether every channel of a convolution has its own kernel: as many groups as input and output channels."""
    return layer.groups == layer.in_channels == layer.out_channels


def spread_taps(kernel: Tensor, dilation: tuple[int, int]) -> Tensor:
    """Return the undilated kernel that computes the same as ``kernel``, (..., kh, kw), with ``dilation``.

    Returns:
        (..., (kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1), zero between the taps.
    """
    if tuple(dilation) == (1, 1):
        return kernel
    sizes = [(n - 1) * d + 1 for n, d in zip(kernel.shape[-2:], dilation, strict=True)]
    spread = kernel.new_zeros(*kernel.shape[:-2], *sizes)
    spread[..., :: dilation[0], :: dilation[1]] = kernel
    return spread


def adaptive_mean(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the means of ``x`` over ``size`` bins of its last two axes, as ``F.adaptive_avg_pool2d`` does.

    ONNX knows bins of one length only. There the means are products with a constant.
    """
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    for axis, bins in zip((-2, -1), size, strict=True):
        x = (x.transpose(axis, -1) @ _bin_means(int(x.shape[axis]), bins).to(x)).transpose(axis, -1)
    return x


def _bin_means(length: int, bins: int) -> Tensor:
    """Return the (length, bins) matrix whose products are means over bins that cover the axis, and overlap where they must."""
    place, bin_ = torch.arange(length)[:, None], torch.arange(bins)
    inside = (place >= bin_ * length // bins) & (place < -((bin_ + 1) * -length // bins))
    return inside / inside.sum(0)
